"""A model's quality on labels that became known within an interval, each once however late it came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.errors import SchemaMismatch
from airloop.frame import StepContext
from airloop.registry.refs import ModelRef
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from airloop.training.models import Model

LABEL = "label"
"""Column with the answer where no model says another."""
CONFIDENCE = 0.95
WIDTHS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}
"""How long a cluster is."""


def live_quality(
    ctx: StepContext,
    model: Model | None,
    ref: ModelRef,
    predictions: TableRef | None,
    labels: TableRef | None,
    interval: Interval,
    metric: str,
    max_drop: float,
    min_rows: int,
    cluster: str,
) -> dict[str, Any]:
    """Quality by model version, of the labels that became known within the interval."""
    if predictions is None or labels is None:
        return {"models": [], "unlabelled": 0, "reason": "quality needs predictions and labels"}
    names = ctx.warehouse.schema(labels).names
    target = model.target if model is not None else LABEL
    if model is not None and target not in names:
        raise SchemaMismatch(
            f"{labels} has no column {target!r}, which {ref} predicts, only {', '.join(names)}",
            "pass the table with the labels that the model was trained on",
        )
    keys = [k for k in ctx.warehouse.key(predictions.name) if k in names]
    if not keys:
        raise SchemaMismatch(
            f"{predictions.name} and {labels.name} share no key column",
            "key both tables by the columns that identify an entity",
        )
    on = " AND ".join(f'p."{k}" IS NOT DISTINCT FROM l."{k}"' for k in keys)
    start, end = bounds(interval)
    known = (
        f'SELECT p.model_version AS version, p.score AS score, l."{target}"::DOUBLE AS label, '
        f"epoch_us(p.event_time) AS moment FROM predictions p JOIN labels l ON {on} "
        f'WHERE l.arrival_time >= {start} AND l.arrival_time < {end} AND l."{target}" IS NOT NULL ORDER BY ALL'
    )
    unknown = (
        f"SELECT count(*) FROM predictions p WHERE p.{during(interval)} AND NOT EXISTS "
        f"(SELECT 1 FROM labels l WHERE {on} AND l.arrival_time < {end})"
    )
    with ctx.warehouse.duckdb({"predictions": predictions, "labels": labels}, workdir=ctx.workdir) as connection:
        unlabelled = connection.sql(unknown).fetchall()[0][0]
        if target not in names:
            reason = (
                f"there is no {ref.name} model yet to say which column of {labels.name} is the answer, "
                f"and none is called {LABEL}"
            )
            return {"models": [], "unlabelled": int(unlabelled), "reason": reason}
        rows = connection.sql(known).to_arrow_table()
    versions = rows.column("version").unique().to_pylist()
    found = []
    for version in versions:
        own = model if model is not None and version == str(ref) else None
        found.append(_quality_of(rows, version, own, metric, max_drop, min_rows, cluster, interval.start))
    why = {} if found else {"reason": "no prediction got its label within the interval"}
    return {"models": found, "unlabelled": int(unlabelled), **why}


def _quality_of(
    rows: pa.Table,
    version: str,
    model: Model | None,
    metric: str,
    max_drop: float,
    min_rows: int,
    cluster: str,
    start: datetime,
) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from airloop.domain.bootstrap import metric_interval, seed_of
    from airloop.domain.calibration import calibration
    from airloop.domain.metrics import METRICS, all_metrics

    own = rows.filter(pc.equal(rows.column("version"), version))
    labels, scores = (own.column(n).to_numpy().astype(np.float64) for n in ("label", "score"))
    times = own.column("moment").combine_chunks().cast(pa.timestamp("us", tz="UTC"))
    clusters = places(times, start, WIDTHS[cluster]) if cluster else None
    result: dict[str, Any] = {
        "version": version,
        "rows": len(labels),
        "positives": int(labels.sum()),
        "metrics": all_metrics(labels, scores),
        "calibration": calibration(labels, scores),
        "judged": None,
        "crossed": False,
        "why": "",
    }
    if len(labels) < min_rows:
        return result | {"why": f"{version}: {len(labels):,} labels, at least {min_rows:,} are needed"}
    seed = seed_of(labels, scores)
    sure = metric_interval(labels, scores, metric=METRICS[metric], clusters=clusters, confidence=CONFIDENCE, seed=seed)
    if sure is None:
        return result | {"why": f"{version}: {_no_interval(labels, clusters, cluster, metric)}"}
    reference = None if model is None else model.bundle["metrics"].get(f"validation_{metric}")
    judged = {"metric": metric, "value": sure.estimate, "low": sure.low, "high": sure.high, "reference": reference}
    if reference is None:
        return result | {"judged": judged | {"limit": None}}
    better = METRICS[metric].higher_is_better
    limit = reference - max_drop if better else reference + max_drop
    # Even the end of the interval that is kinder to the model is beyond the limit.
    crossed = sure.high < limit if better else sure.low > limit
    why = (
        f"{metric} of {version} is {sure.estimate:.4f} [{sure.low:.4f}, {sure.high:.4f}] on {len(labels):,} labels, "
        f"it was {reference:.4f} in validation; limit {limit:.4f}"
    )
    return result | {"judged": judged | {"limit": limit}, "crossed": bool(crossed), "why": why if crossed else ""}


def _no_interval(labels: NDArray[Any], clusters: NDArray[Any] | None, cluster: str, metric: str) -> str:
    """Why the labels give no interval of the metric."""
    import numpy as np

    several = len(labels) if clusters is None else len(np.unique(clusters))
    if several < 2:
        return f"{len(labels):,} labels of {several} {cluster or 'row'}, at least 2 {cluster or 'row'}s are needed"
    if labels.min() == labels.max():
        return f"all {len(labels):,} labels are {labels[0]:g}, {metric} needs both classes"
    return f"too few of the {several} {cluster or 'row'}s have labels of both classes for an interval of {metric}"


def places(times: pa.Array, start: datetime, width: timedelta) -> NDArray[Any]:
    """How many widths after the interval's start each row is."""
    import numpy as np
    import pyarrow as pa

    micros = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    first = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return np.asarray((micros - first) // (width // timedelta(microseconds=1)), dtype=np.intp)


def bounds(interval: Interval) -> tuple[str, str]:
    """Start and end as DuckDB writes times."""
    return f"TIMESTAMPTZ '{interval.start.isoformat()}'", f"TIMESTAMPTZ '{interval.end.isoformat()}'"


def during(interval: Interval) -> str:
    start, end = bounds(interval)
    return f"event_time BETWEEN {start} AND {end} - INTERVAL 1 MICROSECOND"
