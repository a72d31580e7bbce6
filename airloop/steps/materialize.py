"""Put the newest known feature values online, one switch per view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.errors import BadArgument, BadConfiguration, BadInterval
from airloop.features.refs import FeatureServiceRef
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.features.definitions import ServiceDefinition
    from airloop.features.online import Switched

CLOCK_SKEW = timedelta(minutes=5)
"""How far ahead of this machine's clock an interval may end."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_online(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    """Whether what an earlier run put online, or something newer, is still there in full."""
    from airloop.features.online import OnlineTable
    from airloop.features.online_store import online_store_of

    online = online_store_of(ctx.config)
    for view in manifest["details"]["views"].values():
        # Manifests of earlier versions speak of SQLite, which needs no more than the table's name.
        project, keys = view.get("project", ""), tuple(view.get("join_keys", ()))
        found = online.watermark(OnlineTable(view["table"], view["view"], (), project, keys))
        if found is None or found.until_us < view["until_us"]:
            return False
    return True


@step(libraries=("duckdb", "feast"), still_there=is_online)
def materialize(
    ctx: StepContext,
    *,
    feature_service: FeatureServiceRef,
    tables: list[TableRef],
    feature_views: list[str] | None = None,
    interval: Interval,
) -> StepResult:
    """
    Put online what a feature service's views say at the interval's end.

    For each entity the newest value by event time that had arrived by then and is within the view's time to live.
    Only what the view's watermark has not seen is read: rows that arrived since, and rows of files that were added
    since, however late. An older value never replaces a newer one, unless the row of the newer one was withdrawn: then
    the entity gets what is left of it, or goes offline. A run of an older interval moves nothing back; what its
    tables have brought is online as of the time up to which values are. In SQLite all values of a view and its
    watermark change in one transaction. So they do in Redis up to 5,000 entities; more of them change entity by entity
    within seconds, and the watermark last.

    :param feature_service: whose views, e.g. delay_v1.
    :param tables: the feature tables to read, each at one snapshot; others than the views' are ignored.
    :param feature_views: only these of its views; default all.
    :param interval: values are those known at its end.
    """
    from airloop.features.repo import open_store, service_of

    if interval.end > datetime.now(UTC) + CLOCK_SKEW:
        raise BadInterval(
            f"the interval ends in the future, at {interval.end.isoformat()}",
            "what will be known then is not known now; run it after the interval's end",
        )
    service = service_of(ctx.config, feature_service)
    sources = _sources(service, tables, feature_views)
    store = open_store(ctx.config)
    views = {name: _materialize(ctx, store, name, source, interval) for name, source in sources.items()}
    for name, view in views.items():
        ctx.log.info(
            "%s: %s entities written, %s left alone, %s taken offline", name, f"{view['rows_written']:,}",
            f"{view['rows_skipped']:,}", f"{view['rows_expired']:,}",
        )  # fmt: skip
        for note in view["notes"]:
            ctx.log.warning("%s", note)
    counts = {
        name: sum(view[name] for view in views.values())
        for name in ("rows", "rows_written", "rows_skipped", "rows_expired")
    }
    changed = any(view["moved"] or view["rows_written"] for view in views.values())
    return StepResult(
        outputs={"feature_service": feature_service},
        counts={"views": len(views), **counts},
        details={"views": views},
        changed=changed,
        event={"feature_service": feature_service.name, "until": interval.end.isoformat()} if changed else None,
    )


def _sources(
    service: ServiceDefinition, tables: Sequence[TableRef], wanted: Sequence[str] | None
) -> dict[str, TableRef]:
    """The snapshot to read of each view, by the view's own name."""
    views = {view.view or view.name: view.table for view in service.views}
    unknown = sorted(set(wanted or ()) - set(views))
    if unknown:
        raise BadArgument(
            f"feature service {service.name} has no view {', '.join(unknown)}", f"it has {', '.join(sorted(views))}"
        )
    chosen = {name: table for name, table in views.items() if not wanted or name in wanted}
    given: dict[str, TableRef] = {}
    for ref in tables:
        if given.setdefault(ref.name, ref) != ref:
            raise BadArgument(f"table {ref.name} is given at two snapshots", f"{given[ref.name]} and {ref}; name one")
    missing = sorted(set(chosen.values()) - set(given))
    if missing:
        raise BadArgument(
            f"feature service {service.name} reads {', '.join(missing)}, which tables does not name",
            f"it names {', '.join(sorted(given)) or 'none'}; pass the results of the steps that made them",
        )
    return {name: given[table] for name, table in chosen.items()}


def _materialize(ctx: StepContext, store: Any, name: str, source: TableRef, interval: Interval) -> dict[str, Any]:
    from feast.infra.common.materialization_job import MaterializationTask

    from airloop.features.engine import FeastView, IcebergComputeEngine, Request
    from airloop.features.online_store import online_store_of

    engine = store._get_provider().batch_engine
    if not isinstance(engine, IcebergComputeEngine):
        raise BadConfiguration(
            f"feature_store.yaml has the batch_engine {type(engine).__name__}",
            "write batch_engine: {type: airloop.features.engine.IcebergComputeEngine}",
        )
    task = MaterializationTask(
        project=store.project,
        feature_view=store.get_feature_view(name),
        start_time=interval.start,
        end_time=interval.end,
    )
    target = FeastView.of(store.config, task)
    wanted = online_store_of(ctx.config).where
    if target.store.where != wanted:
        raise BadConfiguration(
            f"feature_store.yaml puts online values into {target.store.where}, Airloop looks in {wanted}",
            "write online_store: {type: sqlite, path: ${AIRLOOP_ONLINE_STORE}}",
        )
    request = Request(ctx.warehouse, source, ctx.key, _us(interval.start), _us(interval.end), ctx.workdir)
    job: Any = engine.materialize(store.registry, task, request=request)[0]
    error = job.error()
    if error is not None:
        raise error
    result: Switched = job.result
    mark = result.watermark
    assert mark is not None, "the engine was given a key: the watermark moved, or was there"
    return {
        "view": name,
        "table": target.table.name,
        "project": target.table.project,
        "join_keys": list(target.table.join_keys),
        "store": wanted,
        "source": str(source),
        "rows": result.rows,
        "rows_written": result.written,
        "rows_skipped": result.skipped,
        "rows_expired": result.expired,
        "moved": result.moved,
        "until_us": mark.until_us,
        "until": (EPOCH + timedelta(microseconds=mark.until_us)).isoformat(),
        "entities": mark.entities,
        "notes": result.notes,
    }


def _us(value: datetime) -> int:
    return (value - EPOCH) // timedelta(microseconds=1)
