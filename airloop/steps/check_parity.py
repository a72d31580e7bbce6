"""Hold what is served online against what training would be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from airloop.contract import Interval
from airloop.errors import BadArgument, NotFound, ParityBroken, StoreBusy
from airloop.features.refs import FeatureServiceRef
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from airloop.features.definitions import ServiceDefinition, ViewDefinition
    from airloop.features.engine import FeastView
    from airloop.features.online import Watermark
    from airloop.features.parity import ViewParity

KEYS_PER_REQUEST = 1000
SHOWN = 5
"""Mismatches that the error names."""
ATTEMPTS = 3
"""A view that is materialised while it is compared is compared again."""


def _still_equal(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    """What was equal an hour ago says nothing about now: before an earlier result is reused, all is compared anew."""
    from airloop.features.parity import keys_to_sample

    given = manifest["arguments"]
    service = FeatureServiceRef.parse(manifest["inputs"]["feature_service"]["reference"])
    sample = keys_to_sample(given["find_share"], given["confidence"])
    found = _look(ctx, service, given["feature_views"], sample, given["seed"], Interval.parse(manifest["interval"]))
    return not any(parity.keys_differing for parity, _ in found.values())


@step(libraries=("duckdb", "feast"), still_there=_still_equal)
def check_parity(
    ctx: StepContext,
    *,
    feature_service: FeatureServiceRef,
    feature_views: list[str] | None = None,
    find_share: Annotated[float, Field(ge=0, le=1)] = 0.001,
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95,
    seed: int = 0,
    interval: Interval,
) -> StepResult:
    """
    Compare values that Feast serves online with the point-in-time join at the time of the materialisation.

    As many keys of each view are drawn as find, with ``confidence``, a share ``find_share`` of wrong ones: 2,995 by
    default, all where there are fewer; others for each materialisation. One value that differs rejects the task, and it
    is named. The task looks again even when its earlier result is reused.

    :param feature_service: the result of a materialize task, or a name, e.g. delay_v1.
    :param feature_views: only these of its views; default all.
    :param find_share: share of a view's keys that must not differ unseen; 0: every key is compared.
    :param confidence: chance that such a share is seen.
    :param seed: of the draw, together with the time up to which the view is online.
    :param interval: the run's; the values online must be those known at its end, or newer.
    """
    from airloop.features.parity import keys_to_sample

    sample = keys_to_sample(find_share, confidence)
    found = _look(ctx, feature_service, feature_views, sample, seed, interval)
    _refuse([parity for parity, _ in found.values()])
    return StepResult(
        outputs={"feature_service": feature_service},
        counts={
            "views": len(found),
            "keys": sum(p.keys for p, _ in found.values()),
            "keys_compared": sum(p.checked for p, _ in found.values()),
            "values_compared": sum(p.values for p, _ in found.values()),
            "values_pushed": sum(p.pushed for p, _ in found.values()),
        },
        details={
            "sample": {"find_share": find_share, "confidence": confidence, "keys": sample or "all", "seed": seed},
            "views": {
                name: {k: v for k, v in asdict(parity).items() if k != "mismatches"}
                | {"until": _time(mark), "snapshot": mark.snapshot}
                for name, (parity, mark) in found.items()
            },
        },
        changed=False,
    )


def _look(
    ctx: StepContext,
    feature_service: FeatureServiceRef,
    feature_views: Sequence[str] | None,
    sample: int,
    seed: int,
    interval: Interval,
) -> dict[str, tuple[ViewParity, Watermark]]:
    """What the comparison of each view found, and as of which materialisation."""
    from airloop.features.repo import open_store, service_of

    views = _views(service_of(ctx.config, feature_service), feature_views)
    store = open_store(ctx.config)
    found = {name: _compare_settled(ctx, store, view, sample, seed, interval) for name, view in views.items()}
    for name, (parity, mark) in found.items():
        ctx.log.info(
            "%s: %s of %s keys compared as of %s, %s differ",
            name, f"{parity.checked:,}", f"{parity.keys:,}", _time(mark), f"{parity.keys_differing:,}",
        )  # fmt: skip
        if parity.pushed:
            ctx.log.info("%s: %s values were pushed since; not compared", name, f"{parity.pushed:,}")
    return found


def _views(service: ServiceDefinition, wanted: Sequence[str] | None) -> dict[str, ViewDefinition]:
    """The service's views by their own names, whatever it calls them, each with all features that it asks for."""
    views: dict[str, ViewDefinition] = {}
    for view in service.views:
        name = view.view or view.name
        before = views[name].features if name in views else ()
        features = tuple(dict.fromkeys((*before, *view.features)))
        views[name] = replace(view, name=name, view="", features=features, entity_keys=())
    unknown = sorted(set(wanted or ()) - set(views))
    if unknown:
        raise BadArgument(
            f"feature service {service.name} has no view {', '.join(unknown)}", f"it has {', '.join(sorted(views))}"
        )
    return {name: view for name, view in views.items() if not wanted or name in wanted}


def _compare_settled(
    ctx: StepContext, store: Any, view: ViewDefinition, sample: int, seed: int, interval: Interval
) -> tuple[ViewParity, Watermark]:
    """:raises StoreBusy: the view is materialised again and again meanwhile."""
    mark = _watermark(store, view, interval)
    for _ in range(ATTEMPTS):
        found = _compare(ctx, store, view, mark, sample, seed)
        after = _watermark(store, view, interval)
        if after == mark:
            return found, mark
        mark = after
    raise StoreBusy(f"{view.name} was materialised again while it was compared, {ATTEMPTS} times", "try again later")


def _watermark(store: Any, view: ViewDefinition, interval: Interval) -> Watermark:
    """
    Up to when the view says it is online.

    :raises NotFound: it was never materialised, or not up to the interval's end.
    """
    served = _served(store, view.name, interval)
    mark = served.store.recorded(served.table)
    if mark is None or mark.until_us < _us(interval):
        state = f"is online only up to {_time(mark)}" if mark else "was never materialised"
        raise NotFound(
            f"feature view {view.name} {state}, the interval ends at {interval.end.isoformat()}",
            "run materialize before, on the same interval, service and online store",
        )
    return mark


def _served(store: Any, name: str, interval: Interval) -> FeastView:
    from feast.infra.common.materialization_job import MaterializationTask

    from airloop.features.engine import FeastView

    task = MaterializationTask(
        project=store.project,
        feature_view=store.get_feature_view(name),
        start_time=interval.start,
        end_time=interval.end,
    )
    return FeastView.of(store.config, task)


def _compare(ctx: StepContext, store: Any, view: ViewDefinition, mark: Watermark, sample: int, seed: int) -> ViewParity:
    from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL

    from airloop.features.parity import ViewParity, compare, draw_sample, offline_values

    features = [f"{view.name}:{f.name}" for f in view.features]
    tables = {view.table: TableRef(view.table, mark.snapshot)}
    with ctx.warehouse.duckdb(tables, workdir=ctx.workdir) as connection:
        keys = draw_sample(connection, view, sample=sample, seed=seed, until_us=mark.until_us)
        found = ViewParity(view.name, keys)
        for rows, offline in offline_values(connection, view, batch=KEYS_PER_REQUEST):
            asked = rows if view.keys else [{DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL}]
            answer = store.get_online_features(features, asked, full_feature_names=True)
            online = answer.to_dict(include_event_timestamps=True)
            compare(found, view, rows, offline, online, until_us=mark.until_us, kept=SHOWN)
    return found


def _refuse(found: Sequence[ViewParity]) -> None:
    """:raises ParityBroken: some value differs."""
    broken = [p for p in found if p.keys_differing]
    if not broken:
        return
    counts = ", ".join(f"{p.view} {p.keys_differing:,} of {p.checked:,} keys" for p in broken)
    first = "; ".join(str(m) for m in [m for p in broken for m in p.mismatches][:SHOWN])
    raise ParityBroken(
        f"values served online differ from what training is given: {counts} (first: {first})",
        "find out who else writes to the online store; to fill it anew, drop the view's table there and materialise",
    )


def _us(interval: Interval) -> int:
    from datetime import timedelta

    from airloop.features.parity import EPOCH

    return (interval.end - EPOCH) // timedelta(microseconds=1)


def _time(mark: Watermark) -> str:
    from datetime import timedelta

    from airloop.features.parity import EPOCH

    return (EPOCH + timedelta(microseconds=mark.until_us)).isoformat()
