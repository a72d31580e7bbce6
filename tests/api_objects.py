"""What an API server does with objects, whatever they are: selectors, changes by a patch, and what a watch tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Object = dict[str, Any]
Selects = Callable[[Mapping[str, Any]], bool]

_REQUIREMENT = re.compile(
    r"\s*(?P<absent>!?)(?P<key>[\w./-]+)"
    r"(?:\s*(?P<equal>==|=|!=)\s*(?P<value>[\w.-]*)|\s+(?P<within>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)
_FIELD = re.compile(r"([\w.]+?)(!?)={1,2}(.*)")

DISCOVERY: Mapping[str, Object] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "kind": "Pod",
                "namespaced": True,
                "verbs": ["create", "delete", "get", "list", "patch", "watch"],
            }
        ],
    },
}
"""What clients ask for that find their way by themselves."""


def selects(query: Mapping[str, str]) -> Selects:
    """Whether an object is one that a request is about. :param query: ``labelSelector`` and ``fieldSelector``."""
    checks = [*_labels(query.get("labelSelector", "")), *_fields(query.get("fieldSelector", ""))]
    return lambda found: all(check(found) for check in checks)


def told(kind: str, now: Object, before: Object | None, selects: Selects) -> str | None:
    """
    What a watch is told of a change: ``ADDED``, ``MODIFIED``, ``DELETED``, or nothing.

    An object that is changed so that it is not selected any more is gone for a watch, and one that begins to be is new.
    """
    was_one = before is not None and selects(before)
    if kind != "DELETED" and selects(now):
        return "MODIFIED" if was_one else "ADDED"
    return "DELETED" if was_one else None


def listed(items: list[Object], kind: str, version: int, accept: str) -> Object:
    """A list as it is answered, and of its objects' metadata only, where that is asked for."""
    about = {"resourceVersion": str(version)}
    if "PartialObjectMetadataList" not in accept:
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": about, "items": items}
    api = "meta.k8s.io/v1"
    parts = [{"kind": "PartialObjectMetadata", "apiVersion": api, "metadata": item["metadata"]} for item in items]
    return {"kind": "PartialObjectMetadataList", "apiVersion": api, "metadata": about, "items": parts}


def merge(kept: Object, given: Mapping[str, Any]) -> None:
    """As a merge patch does it."""
    for key, value in given.items():
        if value is None:
            kept.pop(key, None)
        elif isinstance(value, dict):
            merge(kept.setdefault(key, {}), value)
        else:
            kept[key] = value


def _labels(selector: str) -> Iterator[Selects]:
    at = 0
    while at < len(selector):
        found = _REQUIREMENT.match(selector, at)
        assert found, f"label selector {selector!r}"
        at = found.end()
        values: set[str] | None = None
        if found["equal"]:
            values = {found["value"]}
        elif found["within"]:
            values = {value.strip() for value in found["values"].split(",")}
        negated = bool(found["absent"]) or found["equal"] == "!=" or found["within"] == "notin"
        yield _label(found["key"], values, negated)


def _label(key: str, values: set[str] | None, negated: bool) -> Selects:
    """:param values: it has to have one of them; None: any."""

    def check(found: Mapping[str, Any]) -> bool:
        labels = found["metadata"].get("labels") or {}
        return (key in labels and (values is None or labels[key] in values)) != negated

    return check


def _fields(selector: str) -> Iterator[Selects]:
    for part in filter(None, selector.split(",")):
        found = _FIELD.fullmatch(part)
        assert found, f"field selector {selector!r}"
        path, negated, value = found.groups()
        yield _field(path, value, bool(negated))


def _field(path: str, value: str, negated: bool) -> Selects:
    def check(found: Any) -> bool:
        for key in path.split("."):
            found = (found or {}).get(key)
        return (str(found or "") == value) != negated

    return check
