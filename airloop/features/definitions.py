"""
What a feature repository defines, as plain data: readable without Feast, whose import costs seven seconds.

:func:`airloop.features.repo.describe` makes these from the Feast objects and keeps them beside the registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Self

from airloop.errors import NotFound
from airloop.features.asof import ViewSpec


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its name, and its type in the words of :data:`airloop.features.repo.TYPES` (``double``, ``int64``…)."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class ViewDefinition:
    """A feature view, or a service's selection from one."""

    name: str
    """Prefix of its features' columns: the view's name or the alias that a service gave it."""
    table: str
    """Iceberg table that holds its values."""
    keys: tuple[str, ...]
    """Key columns of the table."""
    features: tuple[Field, ...]
    ttl_s: float = 0.0
    """How long a value stays in use after its event time, seconds; 0: for ever."""
    event_time: str = "event_time"
    arrival_time: str = ""
    """Column that says when a value became known; empty: none is declared."""
    known_at_event: bool = False
    """The author states that values are known at their event time (``tags={"known": "at_event"}``)."""
    entity_keys: tuple[str, ...] = ()
    """Columns of the entity rows that the key columns are compared with; empty: the same names."""
    view: str = ""
    """The view's own name, where a service gave it an alias."""

    @property
    def columns(self) -> list[str]:
        """Names of its feature columns in a joined table."""
        return [f"{self.name}__{f.name}" for f in self.features]

    @property
    def spine_keys(self) -> tuple[str, ...]:
        return self.entity_keys or self.keys

    def as_lookup(self) -> dict[str, Any]:
        """How its rows are found, as JSON: what a manifest keeps to say later which row a feature came from."""
        return {name: value for name, value in asdict(self).items() if name != "features"}

    @classmethod
    def from_lookup(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_lookup`; without features."""
        return cls(**{**document, **{n: tuple(document[n]) for n in ("keys", "entity_keys")}, "features": ()})

    def spec(self, relation: str = "") -> ViewSpec:
        """
        What the point-in-time join needs.

        :param relation: name of the view or table in DuckDB; default: the table's name.
        """
        return ViewSpec(
            name=self.name,
            relation=relation or self.table,
            keys=self.keys,
            features=tuple(f.name for f in self.features),
            ttl=timedelta(seconds=self.ttl_s) if self.ttl_s else None,
            event_time=self.event_time,
            arrival_time=self.arrival_time,
            spine_keys=self.entity_keys,
        )


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """A feature service: the request features, then its views' features, in the order that a model sees them."""

    name: str
    views: tuple[ViewDefinition, ...]
    request: tuple[Field, ...] = ()
    """Columns that come with an entity row because they are known when a prediction is asked for."""

    @property
    def keys(self) -> list[str]:
        """Columns of an entity row that its views are looked up by, without repetition."""
        return list(dict.fromkeys(key for view in self.views for key in view.spine_keys))

    @property
    def feature_names(self) -> list[str]:
        return [f["name"] for f in self.describe_features()]

    @property
    def tables(self) -> list[str]:
        """Tables that its views read, sorted."""
        return sorted({view.table for view in self.views})

    def describe_features(self) -> list[dict[str, str]]:
        """Each feature column: ``name``, ``type``, ``kind`` (``request`` or ``view``) and ``view``."""
        request = [{"name": f.name, "type": f.type, "kind": "request", "view": ""} for f in self.request]
        joined = [
            {"name": column, "type": f.type, "kind": "view", "view": view.name}
            for view in self.views
            for column, f in zip(view.columns, view.features, strict=True)
        ]
        return request + joined


@dataclass(frozen=True, slots=True)
class RepoDefinition:
    """All that a feature repository defines."""

    project: str
    digest: str
    """SHA-256 of the definition files; what :class:`airloop.features.refs.FeatureServiceRef` resolves to."""
    views: dict[str, ViewDefinition] = field(default_factory=dict)
    services: dict[str, ServiceDefinition] = field(default_factory=dict)

    def service(self, name: str) -> ServiceDefinition:
        """:raises NotFound: the repository has no such service."""
        if name not in self.services:
            raise NotFound(
                f"there is no feature service {name!r}",
                f"the repository has {', '.join(sorted(self.services)) or 'none'}; define it in services.py",
            )
        return self.services[name]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; KeyError or TypeError if the document is not one."""
        return cls(
            project=document["project"],
            digest=document["digest"],
            views={name: _view(v) for name, v in document["views"].items()},
            services={
                name: ServiceDefinition(s["name"], tuple(_view(v) for v in s["views"]), _fields(s["request"]))
                for name, s in document["services"].items()
            },
        )


def _fields(documents: Iterable[dict[str, str]]) -> tuple[Field, ...]:
    return tuple(Field(**document) for document in documents)


def _view(document: dict[str, Any]) -> ViewDefinition:
    return ViewDefinition(
        **{
            **document,
            "keys": tuple(document["keys"]),
            "entity_keys": tuple(document["entity_keys"]),
            "features": _fields(document["features"]),
        }
    )
