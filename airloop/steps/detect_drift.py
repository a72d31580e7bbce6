"""Hold an interval against what its model was trained on: drift, quality once labels arrived, freshness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from airloop.contract import Interval
from airloop.errors import BadArgument, SchemaMismatch
from airloop.frame import StepContext, StepResult, step
from airloop.registry.refs import ModelRef
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from airloop.domain.drift import ColumnDrift, Counts
    from airloop.training.models import Model

EVENT_TIME = "event_time"
PREDICTION = "(prediction)"
"""Name of the score among the columns."""
CONFIDENCE = 0.95


@step(libraries=("numpy", "duckdb"))
def detect_drift(
    ctx: StepContext,
    *,
    model: ModelRef,
    current: TableRef,
    predictions: TableRef | None = None,
    labels: TableRef | None = None,
    watch: list[TableRef] = [],
    table: str = "monitoring.drift",
    quality_table: str = "monitoring.quality",
    psi_limit: Annotated[float, Field(gt=0)] = 0.2,
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01,
    cluster: Literal["day", "hour", ""] = "day",
    min_rows: Annotated[int, Field(ge=2)] = 200,
    metric: Literal["roc_auc", "average_precision", "log_loss", "brier", "accuracy"] = "roc_auc",
    max_quality_drop: Annotated[float, Field(gt=0)] = 0.05,
    max_age: str = "",
    ignore: list[str] = [],
    interval: Interval,
) -> StepResult:
    """Compare an interval's features and predictions with the model's training data, and measure its quality.

    A column has drifted if its population stability index reaches ``psi_limit`` and chance is ruled out at
    ``false_alarm_rate`` over all columns together. Quality is measured on predictions whose labels became known within
    the interval, each label once however late it came. An event is announced when a limit is crossed. Without a model
    there is no drift.

    :param model: whose training data is the reference; ``NAME@champion`` is the champion as of the interval's start.
    :param current: table with the model's features; its rows of the interval are compared.
    :param predictions: table of predictions, of any interval.
    :param labels: table of labels with ``arrival_time``; with ``predictions`` it gives the quality.
    :param watch: tables whose freshness is reported; those above are watched anyway.
    :param table: table of the drift and freshness figures.
    :param quality_table: table of the quality figures.
    :param psi_limit: population stability index that counts as drift, if it is significant too.
    :param false_alarm_rate: chance of a false alarm over all columns together.
    :param cluster: rows that are not independent of each other: those of a ``day`` (24 hours, from the interval's
        start), of an ``hour``, or none. They count for as many independent rows as they are worth.
    :param min_rows: with fewer rows nothing is judged.
    :param metric: the metric whose loss raises an alarm; the others are only recorded.
    :param max_quality_drop: loss against the model's validation rows, in the metric's unit, that is put up with.
    :param max_age: how old the newest known row of a table may be at the interval's end: ``90m``, ``36h``, ``2d``;
        default no limit.
    :param ignore: features that are not judged, such as the month, which is never the same again.
    """
    from airloop.domain.drift import judge
    from airloop.domain.durations import parse_duration
    from airloop.training.models import load_model

    oldest = (parse_duration(max_age, name="max_age") if max_age else None) or None
    loaded = None if model.absent else load_model(ctx.config, model)
    drift: dict[str, Any] = {"columns": []}
    if loaded is None:
        drift["reason"] = f"there was no {model.name} model yet when the interval began: nothing to compare with"
        ctx.log.info("No drift: %s", drift["reason"])
    else:
        columns = _drift(ctx, loaded, str(model), current, predictions, interval, min_rows, ignore, cluster)
        columns = judge(columns, psi_limit=psi_limit, false_alarm_rate=false_alarm_rate)
        drift["columns"] = [_plain(c) for c in columns]
    quality = _quality(ctx, loaded, str(model), predictions, labels, interval, metric, max_quality_drop, min_rows)
    watched = {str(t): t for t in (current, predictions, labels, *watch) if t is not None}
    freshness = [_freshness(ctx, t, interval, oldest) for t in watched.values()]

    crossed = [f"{c['column']}: {c['why']}" for c in drift["columns"] if c["outcome"] == "drifted"]
    crossed += [q["why"] for q in quality["models"] if q["crossed"]]
    crossed += [f["why"] for f in freshness if f["stale"]]
    for line in crossed:
        ctx.log.warning("Limit crossed: %s", line)
    name = model.name or "run"
    rows = _drift_rows(drift["columns"], freshness, str(model), psi_limit, oldest)
    written = _write(ctx, table, _DRIFT, ("column", "statistic"), name, interval, rows)
    figures = _write(ctx, quality_table, _QUALITY, ("version", "metric"), name, interval, _quality_rows(quality))
    psi = [c["psi"] for c in drift["columns"] if c["outcome"] != "too few"]
    judged = [q for q in quality["models"] if q["judged"] is not None]
    return StepResult(
        outputs={"table": written, "quality": figures, "model": model},
        counts={
            "columns": len(drift["columns"]),
            "columns_drifted": sum(c["outcome"] == "drifted" for c in drift["columns"]),
            "columns_too_few": sum(c["outcome"] == "too few" for c in drift["columns"]),
            "labelled": sum(q["rows"] for q in quality["models"]),
            "unlabelled": quality["unlabelled"],
            "tables_stale": sum(f["stale"] for f in freshness),
            "crossed": len(crossed),
        },
        metrics=({"psi_max": max(psi)} if psi else {})
        | ({f"live_{metric}": judged[-1]["judged"]["value"]} if judged else {}),
        details={"drift": drift, "quality": quality, "freshness": freshness, "crossed": crossed},
        event={"model": str(model), "crossed": crossed[:20]} if crossed else None,
    )


def _drift(
    ctx: StepContext,
    model: Model,
    uri: str,
    current: TableRef,
    predictions: TableRef | None,
    interval: Interval,
    min_rows: int,
    ignore: Sequence[str],
    cluster: str,
) -> list[ColumnDrift]:
    from airloop.domain.drift import column_drift

    unknown = sorted(set(ignore) - set(model.feature_names))
    if unknown:
        raise BadArgument(f"ignore: {uri} has no feature {', '.join(unknown)}", "name features of the model")
    references = {n: r for n, r in model.reference["features"].items() if n not in ignore}
    there = ctx.warehouse.schema(current).names
    missing = sorted(set(references) - set(there))
    if missing:
        raise SchemaMismatch(
            f"{current} has no column {', '.join(missing)}, which {uri} was trained on",
            "pass the training set or a table with the model's features",
        )
    tallies = _tally(ctx, current, references, _during(interval), interval, cluster)
    found = [column_drift(n, references[n], counts, min_rows=min_rows) for n, counts in tallies.items()]
    if predictions is not None:
        score = {"score": model.reference["score"]}
        where = f"{_during(interval)} AND model_version = '{uri}'"
        counts = _tally(ctx, predictions, score, where, interval, cluster)["score"]
        found.append(column_drift(PREDICTION, score["score"], counts, min_rows=min_rows, kind="score"))
    return found


def _tally(
    ctx: StepContext, ref: TableRef, references: dict[str, Any], where: str, interval: Interval, cluster: str
) -> dict[str, Counts]:
    """Rows by cluster, bin and column, a chunk of the table in memory at a time."""
    import numpy as np
    import pyarrow as pa

    from airloop.domain.drift import tally

    width = {"day": timedelta(days=1), "hour": timedelta(hours=1)}.get(cluster)
    size = 1 if width is None else -(-(interval.end - interval.start) // width)
    reader = ctx.warehouse.scan(ref, columns=[*references, *([EVENT_TIME] if width else [])], where=where)

    def count(name: str, column: pa.Array, places: NDArray[Any] | None) -> Counts:
        return tally(references[name], _values(column, references[name]), places, size)

    empty = None if width is None else np.empty(0, dtype=np.intp)
    counts = {n: count(n, pa.array([], reader.schema.field(n).type), empty) for n in references}
    for batch in reader:
        places = None if width is None else _places(batch.column(EVENT_TIME), interval.start, width)
        for name in references:
            counts[name] += count(name, batch.column(name), places)
    return counts


def _places(times: pa.Array, start: datetime, width: timedelta) -> NDArray[Any]:
    """How many widths after the interval's start each row is."""
    import numpy as np
    import pyarrow as pa

    micros = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    first = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return np.asarray((micros - first) // (width // timedelta(microseconds=1)), dtype=np.intp)


def _values(column: pa.Array, reference: dict[str, Any]) -> NDArray[Any]:
    import numpy as np
    import pyarrow as pa

    if reference.get("kind") == "category":
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _quality(
    ctx: StepContext,
    model: Model | None,
    uri: str,
    predictions: TableRef | None,
    labels: TableRef | None,
    interval: Interval,
    metric: str,
    max_drop: float,
    min_rows: int,
) -> dict[str, Any]:
    """Quality by model version, of the labels that became known within the interval."""
    if predictions is None or labels is None:
        return {"models": [], "unlabelled": 0, "reason": "quality needs predictions and labels"}
    target = model.target if model is not None else "label"
    keys = [k for k in ctx.warehouse.key(predictions.name) if k in ctx.warehouse.schema(labels).names]
    if not keys:
        raise SchemaMismatch(
            f"{predictions.name} and {labels.name} share no key column",
            "key both tables by the columns that identify an entity",
        )
    on = " AND ".join(f'p."{k}" IS NOT DISTINCT FROM l."{k}"' for k in keys)
    start, end = _bounds(interval)
    known = (
        f'SELECT p.model_version AS version, p.score AS score, l."{target}"::DOUBLE AS label, '
        f"epoch_us(p.event_time) AS moment FROM predictions p JOIN labels l ON {on} "
        f'WHERE l.arrival_time >= {start} AND l.arrival_time < {end} AND l."{target}" IS NOT NULL ORDER BY ALL'
    )
    unknown = (
        f"SELECT count(*) FROM predictions p WHERE p.{_during(interval)} AND NOT EXISTS "
        f"(SELECT 1 FROM labels l WHERE {on} AND l.arrival_time < {end})"
    )
    with ctx.warehouse.duckdb({"predictions": predictions, "labels": labels}, workdir=ctx.workdir) as connection:
        rows = connection.sql(known).to_arrow_table()
        unlabelled = connection.sql(unknown).fetchall()[0][0]
    versions = rows.column("version").unique().to_pylist()
    found = []
    for version in versions:
        own = model if model is not None and version == uri else None
        found.append(_quality_of(rows, version, own, metric, max_drop, min_rows))
    reason = {} if found else {"reason": "no prediction got its label within the interval"}
    return {"models": found, "unlabelled": int(unlabelled), **reason}


def _quality_of(
    rows: pa.Table, version: str, model: Model | None, metric: str, max_drop: float, min_rows: int
) -> dict[str, Any]:
    import numpy as np
    import pyarrow.compute as pc

    from airloop.domain.bootstrap import metric_interval, seed_of
    from airloop.domain.calibration import calibration
    from airloop.domain.metrics import METRICS, all_metrics

    own = rows.filter(pc.equal(rows.column("version"), version))
    labels, scores = (own.column(n).to_numpy().astype(np.float64) for n in ("label", "score"))
    moments = own.column("moment").to_numpy()
    days = (moments - moments.min()) // 86_400_000_000
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
    sure = metric_interval(labels, scores, metric=METRICS[metric], clusters=days, confidence=CONFIDENCE, seed=seed)
    if sure is None:
        return result | {"why": f"{version}: {metric} is not defined for {len(labels):,} labels"}
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


def _freshness(ctx: StepContext, ref: TableRef, interval: Interval, oldest: timedelta | None) -> dict[str, Any]:
    """How old the newest row is that was known when the interval ended."""
    there = ctx.warehouse.schema(ref).names
    known = next((c for c in ("arrival_time", "event_time") if c in there), "")
    result: dict[str, Any] = {"table": ref.name, "newest": None, "age_hours": None, "stale": False, "why": ""}
    if not known:
        return result | {"why": f"{ref.name} has neither arrival_time nor event_time"}
    with ctx.warehouse.duckdb({"watched": ref}, workdir=ctx.workdir) as connection:
        sql = f"SELECT max({known}) FROM watched WHERE {known} < {_bounds(interval)[1]}"
        newest: datetime | None = connection.sql(sql).fetchall()[0][0]
    if newest is None:
        stale = oldest is not None
        return result | {"stale": stale, "why": f"{ref.name} has no row known by the interval's end"}
    age = interval.end - newest.astimezone(UTC)
    stale = oldest is not None and age > oldest
    return result | {
        "newest": newest.astimezone(UTC).isoformat(),
        "age_hours": round(age / timedelta(hours=1), 6),
        "stale": stale,
        "why": f"the newest row of {ref.name} is {age} old at the interval's end, over {oldest}" if stale else "",
    }


def _plain(column: ColumnDrift) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(column)


_COMMON = (("model", "string"), ("interval_start", "time"), ("interval_end", "time"))
_DRIFT = (
    *_COMMON, ("version", "string"), ("kind", "string"), ("column", "string"), ("statistic", "string"),
    ("value", "double"), ("p", "double?"), ("limit", "double?"), ("crossed", "bool"), ("rows", "long"),
    ("reference_rows", "long?"),
)  # fmt: skip
_QUALITY = (
    *_COMMON, ("version", "string"), ("metric", "string"), ("value", "double"), ("low", "double?"),
    ("high", "double?"), ("reference", "double?"), ("limit", "double?"), ("crossed", "bool"), ("rows", "long"),
    ("positives", "long"),
)  # fmt: skip


def _drift_rows(
    columns: Sequence[dict[str, Any]],
    freshness: Sequence[dict[str, Any]],
    version: str,
    psi_limit: float,
    oldest: timedelta | None,
) -> list[dict[str, Any]]:
    rows = []
    for c in columns:
        common = {k: c[k] for k in ("kind", "column", "rows", "reference_rows")} | {"version": version}
        statistics = {"missing": c["missing"]}
        if c["outcome"] != "too few":
            statistics |= {"js": c["js"]} | ({"ks": c["ks"]} if c["ks"] is not None else {})
            crossed = c["outcome"] == "drifted"
            rows.append(common | {"statistic": "psi", "value": c["psi"], "p": c["p_adjusted"], "limit": psi_limit,
                                  "crossed": crossed})  # fmt: skip
        rows += [common | {"statistic": s, "value": v, "crossed": False} for s, v in statistics.items()]
    limit = oldest / timedelta(hours=1) if oldest else None
    rows += [
        {"version": version, "kind": "freshness", "column": f["table"], "statistic": "age_hours",
         "value": f["age_hours"], "limit": limit, "crossed": f["stale"], "rows": 0}
        for f in freshness
        if f["age_hours"] is not None
    ]  # fmt: skip
    return rows


def _quality_rows(quality: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for q in quality["models"]:
        common = {"version": q["version"], "rows": q["rows"], "positives": q["positives"]}
        for name, value in (q["metrics"] | {"calibration_error": q["calibration"]["error"]}).items():
            judged = q["judged"] if q["judged"] is not None and q["judged"]["metric"] == name else {}
            extra = {k: judged.get(k) for k in ("low", "high", "reference", "limit")}
            crossed = bool(judged) and q["crossed"]
            rows.append(common | extra | {"metric": name, "value": value, "crossed": crossed})
    return rows


def _write(
    ctx: StepContext,
    name: str,
    columns: Sequence[tuple[str, str]],
    key: tuple[str, ...],
    model: str,
    interval: Interval,
    rows: list[dict[str, Any]],
) -> TableRef:
    """Put an interval's figures of a model in the place of those that an earlier run left."""
    import pyarrow as pa

    types = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_(), "long": pa.int64(),
             "time": pa.timestamp("us", tz="UTC")}  # fmt: skip
    schema = pa.schema([pa.field(n, types[t.rstrip("?")], nullable=t.endswith("?")) for n, t in columns])
    common = {"model": model, "interval_start": interval.start, "interval_end": interval.end}
    filled = [{n: (common | row).get(n) for n, _ in columns} for row in rows]
    ctx.warehouse.ensure(name, schema, key=("model", "interval_start", "interval_end", *key))
    start, end = _bounds(interval)
    where = f"model = '{model}' AND interval_start = {start} AND interval_end = {end}"
    data = pa.Table.from_pylist(filled, schema=schema)
    return ctx.warehouse.commit(name, data, key=ctx.key, mode="replace", replace_where=where).ref


def _bounds(interval: Interval) -> tuple[str, str]:
    """Start and end as DuckDB writes times."""
    return f"TIMESTAMPTZ '{interval.start.isoformat()}'", f"TIMESTAMPTZ '{interval.end.isoformat()}'"


def _during(interval: Interval) -> str:
    start, end = _bounds(interval)
    return f"event_time BETWEEN {start} AND {end} - INTERVAL 1 MICROSECOND"
