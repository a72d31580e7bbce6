"""
Feast's compute engine over Iceberg: the newest known value of each entity goes online, in one switch per view.

``feature_store.yaml`` names it, ``batch_engine: {type: airloop.features.engine.IcebergComputeEngine}``, so that a bare
``feast materialize`` takes the same way as our step: it never puts an older value over a newer one. Only our step,
which names a snapshot and a key, moves the watermark.

What it does not do: transformations and aggregations that Feast would run (views read prepared tables), writing to the
offline store, stores other than Feast's SQLite and Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.repo_config import FeastConfigBaseModel

from airloop.errors import BadConfiguration
from airloop.features.encode import KEY_VERSION, encode_keys, encode_values, value_texts
from airloop.features.latest import ROWS_PER_CHUNK, LatestRows, Lost, find_lost
from airloop.features.online import MAX_FEATURES, Chunk, OnlineStore, OnlineTable, Switched, Watermark
from airloop.features.source import IcebergSource
from airloop.features.store import table_ref, warehouse_of
from airloop.features.watermark import NOTHING_NEW, counts_from, first_arrival_since
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa

    from airloop.warehouse.catalog import Warehouse

log = logging.getLogger("airloop.online")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class IcebergComputeEngineConfig(FeastConfigBaseModel):
    """What ``batch_engine`` in ``feature_store.yaml`` may say."""

    type: Literal["airloop.features.engine.IcebergComputeEngine"] = "airloop.features.engine.IcebergComputeEngine"
    """This engine."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a step asks of the engine beyond what Feast can say."""

    warehouse: Warehouse
    source: TableRef
    """The very snapshot to read."""
    key: str
    """Key of the step; kept with the watermark."""
    start_us: int
    until_us: int
    """The run's interval, microseconds since 1970."""
    workdir: Path | None = None


class IcebergMaterializationJob(MaterializationJob):
    """A materialisation that has ended."""

    def __init__(self, task: MaterializationTask, result: Switched | None, error: BaseException | None) -> None:
        self.task = task
        self.result = result
        self._error = error

    def status(self) -> MaterializationJobStatus:
        return MaterializationJobStatus.ERROR if self._error else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        return self._error

    def should_be_retried(self) -> bool:
        return False

    def job_id(self) -> str:
        return f"{self.task.feature_view.name}-{self.task.end_time.isoformat()}"

    def url(self) -> str | None:
        return None


class IcebergComputeEngine(ComputeEngine):
    """See the module."""

    def update(
        self,
        project: str,
        views_to_delete: Sequence[Any],
        views_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
    ) -> None:
        """Nothing to prepare: the online store makes its own tables."""

    def teardown_infra(self, project: str, fvs: Sequence[Any], entities: Sequence[Any]) -> None:
        """Nothing to remove: the online store drops its own tables."""

    def _materialize_one(
        self, registry: Any, task: MaterializationTask, *, request: Request | None = None, **kwargs: Any
    ) -> IcebergMaterializationJob:
        try:
            return IcebergMaterializationJob(task, self._run(task, request), None)
        except Exception as error:  # noqa: BLE001 - handed over whole
            # Feast raises what the job holds.
            return IcebergMaterializationJob(task, None, error)

    def _run(self, task: MaterializationTask, request: Request | None) -> Switched:
        view = FeastView.of(self.repo_config, task)
        online = view.store
        # Feast makes its table its own way; a view that was never applied has none yet.
        self.online_store.update(self.repo_config, [], [task.feature_view], [], [], partial=True)
        with online.locked(view.table):
            online.forget_if_lost(view.table)
            if request is None:
                return _bare(online, view, task, warehouse_of(self.repo_config))
            return _for_step(online, view, request)


@dataclass(frozen=True, slots=True)
class FeastView:
    """What has to be known of a Feast feature view to serve it."""

    source: str
    """Name of its Iceberg table."""
    store: OnlineStore
    table: OnlineTable
    keys: tuple[tuple[str, Any], ...]
    """Name and ``ValueType`` of each key column."""
    features: tuple[tuple[str, Any], ...]
    """Name and ``ValueType`` of each feature."""
    event_time: str
    arrival_time: str
    ttl: timedelta | None

    @classmethod
    def of(cls, config: Any, task: MaterializationTask) -> FeastView:
        """:raises BadConfiguration: the view or the store is of a kind that this engine does not serve."""
        from feast.infra.online_stores.helpers import compute_table_id

        view = task.feature_view
        version = config.entity_key_serialization_version
        _refuse(version != KEY_VERSION, f"entity_key_serialization_version {version}")
        source = view.batch_source
        if not isinstance(source, IcebergSource):
            raise _not_served(f"a source of type {type(source).__name__} ({view.name})")
        _refuse(bool(getattr(view, "feature_transformation", None)), f"a transformation by Feast ({view.name})")
        _refuse(bool(getattr(view, "aggregations", None)), f"an aggregation by Feast ({view.name})")
        _refuse(not task.only_latest, "materialising all values instead of the latest")
        _refuse(not 0 < len(view.features) <= MAX_FEATURES, f"a view of {len(view.features)} features ({view.name})")
        name = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
        return cls(
            source=source.table,
            store=_store_of(config),
            table=OnlineTable(
                name,
                view.name,
                tuple(f.name for f in view.features),
                config.project,
                tuple(f.name for f in view.entity_columns),
            ),
            keys=tuple((f.name, f.dtype.to_value_type()) for f in view.entity_columns),
            features=tuple((f.name, f.dtype.to_value_type()) for f in view.features),
            event_time=source.timestamp_field,
            arrival_time=source.created_timestamp_column or "",
            ttl=view.ttl if view.ttl and view.ttl > timedelta(0) else None,
        )


def _store_of(config: Any) -> OnlineStore:
    """The store that a Feast configuration names. :raises BadConfiguration: it is of a kind that is not served."""
    section = config.online_store
    if section.type == "redis":
        from feast.infra.online_stores.redis import RedisOnlineStore

        from airloop.features.online_redis import OnlineRedis

        _refuse(section.redis_type != "redis", f"online_store.redis_type {section.redis_type}")
        _refuse(bool(section.key_ttl_seconds), "online_store.key_ttl_seconds")
        return OnlineRedis(RedisOnlineStore()._get_client(section))
    from airloop.features.online_sqlite import OnlineFile

    _refuse(
        section.type != "sqlite" and not section.type.endswith(".SqliteOnlineStore"), f"online store {section.type}"
    )
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    _refuse(bool(getattr(section, "vector_enabled", False)), "online_store.vector_enabled")
    _refuse(bool(section.enable_openai_compatible_store), "online_store.enable_openai_compatible_store")
    return OnlineFile(Path(SqliteOnlineStore._get_db_path(config)))


def _refuse(condition: bool, what: str) -> None:
    if condition:
        raise _not_served(what)


def _not_served(what: str) -> BadConfiguration:
    return BadConfiguration(f"this compute engine does not serve {what}", "see what airloop.features.engine does")


def _for_step(online: OnlineStore, view: FeastView, request: Request) -> Switched:
    """The run's interval: only what the watermark has not seen, and the watermark moves in the same switch."""
    snapshot = request.source.snapshot or 0
    before = online.watermark(view.table)
    late = first_arrival_since(
        request.warehouse, view.source, before.snapshot if before else 0, snapshot, view.arrival_time or view.event_time
    )
    after_us = counts_from(before.until_us if before else None, late)
    newer_state = before is None or request.warehouse.descends(view.source, snapshot, before.snapshot)
    # What is online stays true at the time of the watermark, whichever interval runs.
    as_of_us = max(request.until_us, before.until_us) if before else request.until_us
    oldest_us = None if view.ttl is None else as_of_us - view.ttl // timedelta(microseconds=1)
    lost = Lost()
    if before is not None and newer_state:
        now = LatestRows(request.warehouse, request.source, view, None, as_of_us, oldest_us)
        lost = find_lost(online, view, now, since=before.snapshot, workdir=request.workdir)
    brings = newer_state and (late != NOTHING_NEW or bool(lost.keys))
    until_us = as_of_us if brings else request.until_us
    behind = until_us < as_of_us
    if behind and after_us is not None:
        # Nothing of an older interval is new; its rows are looked at to say how many were left alone.
        after_us = min(after_us, request.start_us)
    rows = LatestRows(request.warehouse, request.source, view, after_us, until_us, oldest_us, lost)
    result = _stage_and_switch(
        online, view, rows, request.workdir,
        replace_equal=newer_state and not behind,
        watermark=Watermark(until_us, request.key, snapshot, 0),
        expire_before_us=oldest_us,
    )  # fmt: skip
    if before is not None and brings and request.until_us < as_of_us:
        result.notes.append(
            f"values of {view.table.view} are online up to {_text(as_of_us)}, later than this interval's end at "
            f"{_text(request.until_us)}; what {request.source} has brought since is online as of that time"
        )
    if behind and before is not None:
        result.notes.append(
            f"values of {view.table.view} are online up to {_text(before.until_us)} (key {before.key[:12]}); this "
            f"interval ends before that, at {_text(request.until_us)}, so nothing moved back"
        )
    if not newer_state:
        result.notes.append(f"{request.source} is an older state of the table than what is online")
    return result


def _bare(online: OnlineStore, view: FeastView, task: MaterializationTask, warehouse: Warehouse) -> Switched:
    """``feast materialize``: what its interval asks for, from main, and the watermark stays where it is."""
    source = table_ref(warehouse, view.source)
    before = online.watermark(view.table)
    start_us = 0 if task.disable_event_timestamp else _us(task.start_time)
    rows = LatestRows(warehouse, source, view, None, min(_us(task.end_time), _us(datetime.now(UTC))), start_us)
    newer_state = before is None or warehouse.descends(view.source, source.snapshot or 0, before.snapshot)
    return _stage_and_switch(online, view, rows, None, replace_equal=newer_state, watermark=None)


def _stage_and_switch(
    online: OnlineStore, view: FeastView, rows: LatestRows, workdir: Path | None, *, replace_equal: bool,
    watermark: Watermark | None, expire_before_us: int | None = None,
) -> Switched:  # fmt: skip
    with online.staging(view.table) as staging:
        with rows.read(workdir) as (expected, batches):
            for batch in batches:
                staging.add(encode(view, batch, texts=online.keeps_texts))
                if expected > 4 * ROWS_PER_CHUNK:
                    log.info("%s: %s of %s entities staged", view.table.view, f"{staging.rows:,}", f"{expected:,}")
        staging.verify(expected)
    return online.switch(
        view.table, replace_equal=replace_equal, watermark=watermark, expire_before_us=expire_before_us,
        lost=rows.lost.keys,
    )  # fmt: skip


def encode(view: FeastView, batch: pa.RecordBatch, *, texts: bool) -> Chunk:
    """A batch of rows ``k*, f*, e, r`` as the store keeps them, with some of them encoded by Feast itself."""
    keys = [batch.column(f"k{i}") for i in range(len(view.keys))]
    features = [batch.column(f"f{i}") for i in range(len(view.features))]
    typed = [(column, kind) for column, (_, kind) in zip(features, view.features, strict=True)]
    return Chunk(
        keys=encode_keys([(key, kind, c) for c, (key, kind) in zip(keys, view.keys, strict=True)]),
        event_us=batch.column("e").to_numpy(),
        arrival_us=batch.column("r").to_numpy(),
        values=[encode_values(column, kind) for column, kind in typed],
        texts=[value_texts(column, kind) for column, kind in typed] if texts else (),
        samples=_samples(view, keys, features, batch.num_rows),
    )


def _samples(
    view: FeastView, keys: Sequence[pa.Array], features: Sequence[pa.Array], rows: int
) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """First, middle and last row encoded one by one with Feast's own functions, to compare with."""
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    places = sorted({0, rows // 2, rows - 1}) if rows else []

    def convert(column: pa.Array, kind: Any) -> list[Any]:
        return list(python_values_to_proto_values([column[i].as_py() for i in places], kind)) if places else []

    key_values = [convert(c, kind) for c, (_, kind) in zip(keys, view.keys, strict=True)]
    feature_values = [convert(c, kind) for c, (_, kind) in zip(features, view.features, strict=True)]
    names = [name for name, _ in view.keys]
    return [
        (
            serialize_entity_key(
                EntityKey(join_keys=names, entity_values=[c[i] for c in key_values]),
                entity_key_serialization_version=KEY_VERSION,
            ),
            tuple(c[i].SerializeToString() for c in feature_values),
        )
        for i in range(len(places))
    ]


def _us(value: datetime) -> int:
    """Microseconds since 1970; a naive time is UTC, as in Feast."""
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)


def _text(value_us: int) -> str:
    return (EPOCH + timedelta(microseconds=value_us)).isoformat()
