"""
A feature repository: its definitions as plain data, and the Feast store that they make.

Feast is imported only when definitions changed or a store is opened. Definition files import each other by their bare
names (``from entities import flight``), as ``feast apply`` has it; here they leave nothing behind in ``sys.modules``,
so that two repositories can be read by one process.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airloop import postgres
from airloop.config import Config, RedisAddress
from airloop.errors import BadConfiguration, TryAgain
from airloop.features.definitions import Field, RepoDefinition, ServiceDefinition, ViewDefinition
from airloop.features.refs import FeatureServiceRef, definition_files, digest_of, repository
from airloop.features.registry import FileRegistry, PostgresRegistry, Registry, feast_section
from airloop.redact import Redactor
from airloop.warehouse.store import storing

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, FeatureView, RepoConfig
    from feast.infra.registry.sql import SqlRegistry

DEFINITIONS, APPLIED = "definitions", "applied"
"""What is kept beside the registry: the definitions as plain data, and what they were applied to."""
FORMAT = 1
"""Version of the kept definitions; raising it makes them all new."""

TYPES = {
    "Float64": "double",
    "Float32": "float",
    "Int64": "int64",
    "Int32": "int32",
    "String": "string",
    "Bool": "bool",
    "UnixTimestamp": "timestamp",
}
"""Arrow's name for the types that a feature may have, by Feast's."""

_importing = threading.RLock()


def describe(config: Config) -> RepoDefinition:
    """
    What the repository defines. Read from beside the registry if nothing changed since it was written there.

    :raises BadConfiguration: there is no repository, or it defines something that we cannot use.
    """
    folder = repository(config)
    digest = _full_digest(folder)
    registry = _registry(config, folder)
    found = registry.read(DEFINITIONS)
    if found.get("digest") == digest:
        return RepoDefinition.from_json(found["definitions"])
    with registry.locked():
        defined = _define(folder, _settings(config, folder), objects_of(folder))
        registry.write(DEFINITIONS, {"digest": digest, "definitions": defined.to_json()})
        return defined


def service_of(config: Config, reference: FeatureServiceRef) -> ServiceDefinition:
    """
    The definition of a resolved feature service.

    :raises NotFound: the repository has no such service.
    :raises TryAgain: its files changed after the reference was resolved.
    """
    defined = describe(config)
    if reference.digest and reference.digest != defined.digest:
        raise TryAgain(
            f"the feature definitions changed from {reference.digest[:12]} to {defined.digest[:12]} during this step",
            "run the task again",
        )
    return defined.service(reference.name)


def apply(config: Config) -> RepoDefinition:
    """
    Bring registry and online store in line with the definitions, as ``feast apply`` does, if they changed.

    Safe to call from several processes at once; the first one does the work.
    """
    folder = repository(config)
    registry = _registry(config, folder)
    with registry.locked():
        wanted = {"digest": _full_digest(folder), "online_store": str(config.online_store)}
        online = config.online_store
        there = registry.exists() and (not isinstance(online, Path) or online.is_file())
        if not there or registry.read(APPLIED) != wanted:
            objects = objects_of(folder)
            # First what we can make of the definitions: an error there leaves the registry as it was.
            defined = _define(folder, _settings(config, folder), objects)
            _apply(_repo_config(config, folder), folder, objects)
            registry.write(DEFINITIONS, {"digest": wanted["digest"], "definitions": defined.to_json()})
            registry.write(APPLIED, wanted)
    return describe(config)


def open_store(config: Config) -> FeatureStore:
    """A Feast store on this configuration's warehouse, online store and registry; definitions are applied first."""
    apply(config)
    folder = repository(config)
    return _store(_repo_config(config, folder), folder)


def objects_of(folder: Path) -> list[Any]:
    """Every Feast object that the definition files make, each once, in the order of files and names."""
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
    from feast.data_source import DataSource

    kinds = (DataSource, Entity, FeatureView, OnDemandFeatureView, FeatureService)
    found: list[Any] = []
    with _own_modules(folder) as load:
        for path in definition_files(folder):
            if path.name != "__init__.py":
                module = load(".".join(path.relative_to(folder).with_suffix("").parts))
                found += [value for _, value in sorted(vars(module).items()) if isinstance(value, kinds)]
    return list({id(value): value for value in found}.values())


@contextmanager
def _own_modules(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Import from ``folder`` as if it were the only place, and forget the modules afterwards."""
    names = {p.relative_to(folder).with_suffix("").parts[0] for p in definition_files(folder)}

    def take() -> dict[str, Any]:
        ours = [name for name in sys.modules if name.partition(".")[0] in names]
        return {name: sys.modules.pop(name) for name in ours}

    with _importing:
        hidden = take()
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield importlib.import_module
        finally:
            sys.path.remove(str(folder))
            sys.dont_write_bytecode = writes
            take()
            sys.modules.update(hidden)


def _apply(repo_config: RepoConfig, folder: Path, objects: list[Any]) -> None:
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView
    from feast.data_source import DataSource
    from feast.feature_view import DUMMY_ENTITY
    from feast.project import Project
    from feast.repo_contents import RepoContents
    from feast.repo_operations import extract_objects_for_apply_delete

    if repo_config.registry.registry_type != "sql":
        Path(repo_config.registry.path).parent.mkdir(parents=True, exist_ok=True)
    if repo_config.online_store.type == "sqlite":
        Path(repo_config.online_store.path).parent.mkdir(parents=True, exist_ok=True)
    store = _store(repo_config, folder)

    def of(kind: type) -> list[Any]:
        return [value for value in objects if isinstance(value, kind)]

    contents = RepoContents(
        projects=[Project(name=repo_config.project)],
        data_sources=of(DataSource),
        entities=[*of(Entity), DUMMY_ENTITY],
        feature_views=of(FeatureView),
        on_demand_feature_views=of(OnDemandFeatureView),
        stream_feature_views=[],
        label_views=[],
        feature_services=of(FeatureService),
        permissions=[],
    )
    for source in {id(v.batch_source): v.batch_source for v in of(FeatureView)}.values():
        source.validate(repo_config)
    with storing("applying the feature definitions"):
        compared = extract_objects_for_apply_delete(  # type: ignore[no-untyped-call]
            repo_config.project, store.registry, contents
        )
        changed, gone = compared[:2]
        store.apply(changed, objects_to_delete=gone, partial=False)


def _define(folder: Path, settings: dict[str, Any], objects: list[Any]) -> RepoDefinition:
    from feast import FeatureService, FeatureView
    from feast.data_source import RequestSource

    views = {v.name: v for v in objects if isinstance(v, FeatureView)}
    requests = {s.name: s for s in objects if isinstance(s, RequestSource)}
    return RepoDefinition(
        project=str(settings["project"]),
        digest=digest_of(folder),
        views={name: _view(v, v.projection) for name, v in sorted(views.items())},
        services={
            s.name: _service(s, views, requests)
            for s in sorted((o for o in objects if isinstance(o, FeatureService)), key=lambda s: str(s.name))
        },
    )


def _service(service: FeatureService, views: dict[str, FeatureView], requests: dict[str, Any]) -> ServiceDefinition:
    strange = [p.name for p in service.feature_view_projections if p.name not in views]
    if strange:
        raise BadConfiguration(
            f"feature service {service.name} takes {', '.join(strange)}, which is no feature view of the repository",
            "training sets are made of feature views; an on-demand view can be called by the model's own code",
        )
    request: tuple[Field, ...] = ()
    source = service.tags.get("request_source", "")
    if source:
        if source not in requests:
            raise BadConfiguration(
                f"feature service {service.name} names the request source {source!r}",
                f"define it as feast.RequestSource; there is {', '.join(sorted(requests)) or 'none'}",
            )
        request = tuple(_field(source, f) for f in requests[source].schema)
    return ServiceDefinition(
        service.name, tuple(_view(views[p.name], p) for p in service.feature_view_projections), request
    )


def _view(view: FeatureView, projection: Any) -> ViewDefinition:
    from feast.feature_view import DUMMY_ENTITY_ID

    from airloop.features.source import IcebergSource

    source = view.batch_source
    if not isinstance(source, IcebergSource):
        raise BadConfiguration(
            f"feature view {view.name} has a {type(source).__name__}", "use airloop.features.source.IcebergSource"
        )
    known = view.tags.get("known", "")
    if known not in ("", "at_event"):
        raise BadConfiguration(f"feature view {view.name} has the tag known={known!r}", "the only value is 'at_event'")
    keys = tuple(c.name for c in view.entity_columns if c.name != DUMMY_ENTITY_ID)
    if not view.features or (view.entities and not keys and view.entities != ["__dummy"]):
        raise BadConfiguration(
            f"feature view {view.name} leaves columns to be guessed", "list its keys and features in schema=[Field(…)]"
        )
    return ViewDefinition(
        name=projection.name_alias or view.name,
        view=view.name,
        table=source.table,
        keys=keys,
        features=tuple(_field(view.name, f) for f in projection.features),
        ttl_s=view.ttl.total_seconds() if view.ttl else 0.0,
        event_time=source.timestamp_field,
        arrival_time=source.created_timestamp_column,
        known_at_event=known == "at_event",
        entity_keys=tuple(projection.join_key_map.get(k, k) for k in keys),
    )


def _field(owner: str, field: Any) -> Field:
    if str(field.dtype) not in TYPES:
        raise BadConfiguration(
            f"{owner}: {field.name} is {field.dtype}", f"a feature's type is one of {', '.join(sorted(TYPES))}"
        )
    return Field(field.name, TYPES[str(field.dtype)])


def _settings(config: Config, folder: Path) -> dict[str, Any]:
    """``feature_store.yaml`` with ``${…}`` filled from this configuration first, then from the environment."""
    import yaml

    own = {f"AIRLOOP_{f.name.upper()}": str(getattr(config, f.name)) for f in fields(config)}
    own["AIRLOOP_FEATURE_REPO"] = str(folder)
    path = folder / "feature_store.yaml"

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        value = own.get(name, os.environ.get(name))
        if name == "AIRLOOP_ONLINE_STORE" and isinstance(config.online_store, RedisAddress):
            # Its section is replaced below; a file without quotes could hold no address.
            return "redis"
        if name == "AIRLOOP_FEAST_REGISTRY" and isinstance(config.feast_registry, str):
            return "sql"
        if value is None:
            raise BadConfiguration(f"{path} uses ${{{name}}}, which is not set", f"set the variable {name}")
        return value

    # Comments may speak of variables that nobody has to set.
    lines = ["" if line.lstrip().startswith("#") else line for line in path.read_text().splitlines()]
    try:
        document = yaml.safe_load(re.sub(r"\$\{(\w+)\}|\$(\w+)", fill, "\n".join(lines)))
    except yaml.YAMLError as cause:
        # Its text quotes what was filled in, passwords in part.
        found, mark = getattr(cause, "problem", None), getattr(cause, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise BadConfiguration(
            f"{path} is no YAML: {found or 'it cannot be read'}{where}", "a value with a colon or a brace needs quotes"
        ) from None
    if not isinstance(document, dict) or not document.get("project"):
        raise BadConfiguration(f"{path} names no project", "see Feast's documentation of the file")
    if isinstance(config.online_store, RedisAddress):
        from airloop.features.online_redis import feast_section as redis_section

        # The file names SQLite, or a Redis with options of its own: where it is, the configuration says.
        section = document.get("online_store")
        kept = section if isinstance(section, dict) and section.get("type") == "redis" else {}
        document["online_store"] = {**kept, **redis_section(config.online_store)}
    if isinstance(config.feast_registry, str):
        section = document.get("registry")
        kept = section if isinstance(section, dict) and section.get("registry_type") == "sql" else {}
        document["registry"] = {**kept, **feast_section(config.feast_registry)}
    offline = document.get("offline_store")
    offline = {"type": offline} if isinstance(offline, str) else dict(offline or {})
    if offline.get("type") == "airloop.features.store.IcebergOfflineStore":
        # Our store works on this very configuration, whatever the process's environment says.
        document["offline_store"] = {**offline, "environment": {**own, **offline.get("environment", {})}}
    return document


def _redactor(config: Config) -> Redactor:
    """For the passwords of all addresses that a store's settings may have been given."""
    given = {f.name: str(getattr(config, f.name)) for f in fields(config)}
    given["online_store"] = getattr(config.online_store, "url", "")
    return Redactor.from_environment({**os.environ, **given})


def _said(error: ValueError) -> str:
    """What an error says, without the values that it is about: they may be cut within a password."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in wrong)


def _repo_config(config: Config, folder: Path) -> RepoConfig:
    from feast import RepoConfig

    settings = _settings(config, folder)
    try:
        made = RepoConfig(**settings)
    except ValueError as cause:
        # It quotes what it was given, addresses with passwords among it, in whole or in part.
        raise BadConfiguration(
            f"{folder / 'feature_store.yaml'} cannot be used: {_redactor(config)(_said(cause))}",
            "see Feast's documentation of the file",
        ) from None
    made.repo_path = folder
    return made


def _full_digest(folder: Path) -> str:
    """Digest of all that decides what is kept: definitions, ``feature_store.yaml``, Feast's version, our format."""
    parts = [str(FORMAT), version("feast"), digest_of(folder), (folder / "feature_store.yaml").read_text()]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _registry(config: Config, folder: Path) -> Registry:
    if isinstance(config.feast_registry, Path):
        return FileRegistry(config.feast_registry)
    return PostgresRegistry(config.feast_registry, str(_settings(config, folder)["project"]))


def _store(made: RepoConfig, folder: Path) -> FeatureStore:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(folder), config=made)
    if made.registry.registry_type == "sql":
        with storing("opening Feast's registry"):
            engine = cast("SqlRegistry", store.registry).write_engine
        postgres.own_after_fork(engine)
        # Feast closes nothing itself.
        weakref.finalize(store, engine.dispose)
    return store
