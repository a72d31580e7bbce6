"""Hold an interval against what its model was trained on: drift, quality once labels arrived, freshness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from airloop.contract import Interval
from airloop.errors import BadArgument, NotFound, SchemaMismatch
from airloop.frame import StepContext, StepResult, step
from airloop.registry.refs import ModelRef
from airloop.steps.live_quality import WIDTHS, bounds, during, live_quality, places
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from airloop.domain.drift import ColumnDrift, Counts
    from airloop.training.models import Model

EVENT_TIME = "event_time"
PREDICTION = "(prediction)"
"""Name of the score among the columns."""


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
    ``false_alarm_rate`` over all columns together, by dealing days anew. Quality is measured on predictions
    whose labels became known within the interval, each label once however late it came. An event is announced when a
    limit is crossed. Without a model there is no drift.

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
        start), of an ``hour``, or none. With days, an interval of one day is not judged, neither for drift nor for
        quality: how much days differ by chance cannot be seen in it.
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
        columns = _drift(
            ctx, loaded, str(model), current, predictions, interval, min_rows, ignore, cluster, false_alarm_rate
        )
        columns = judge(columns, psi_limit=psi_limit, false_alarm_rate=false_alarm_rate, cluster=cluster or "cluster")
        drift["columns"] = [_plain(c) for c in columns]
    quality = live_quality(
        ctx, loaded, model, predictions, labels, interval, metric, max_quality_drop, min_rows, cluster
    )
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
    rate: float,
) -> list[ColumnDrift]:
    from airloop.domain.deals import draws_for
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
    within = during(interval)
    tallies = _tally(_rows(ctx, current, references, within, cluster), references, interval.start, cluster)
    kinds: dict[str, str] = {}
    if predictions is not None:
        score = {"score": model.reference["score"]}
        references = references | {PREDICTION: score["score"]}
        kinds[PREDICTION] = "score"
        scored = _rows(ctx, predictions, score, f"{within} AND model_version = '{uri}'", cluster)
        tallies[PREDICTION] = _tally(scored, score, interval.start, cluster)["score"]
    before: Mapping[str, Counts] = {}
    unread = ""
    if cluster:
        try:
            before = _before(ctx, model, references, interval.start, cluster)
        except (NotFound, SchemaMismatch) as error:
            # The rows were erased or moved since; a monitor must not stop the loop for that.
            unread = f"the {cluster}s of the training data cannot be counted: {error}"
            ctx.log.warning("No drift: %s", unread)
    draws = draws_for(len(tallies), rate)
    found = [
        column_drift(
            n, references[n], counts if before else _summed(counts), before.get(n), min_rows=min_rows,
            kind=kinds.get(n, ""), draws=draws,
        )
        for n, counts in tallies.items()
    ]  # fmt: skip
    return [replace(c, outcome="too few", why=unread) for c in found] if unread else found


def _summed(counts: Counts) -> Counts:
    total: Counts = counts.sum(axis=0)
    return total


def _before(
    ctx: StepContext, model: Model, references: Mapping[str, Any], start: datetime, cluster: str
) -> dict[str, Counts]:
    """
    The rows that the model's reference was made of, by cluster: features of the training rows, scores of those that
    it was not fitted on.

    :raises NotFound: the training table is not there any more, or not in that state.
    :raises SchemaMismatch: it has no times.
    """
    import pyarrow as pa

    examples = TableRef.parse(str(model.bundle["examples"]))
    ctx.warehouse.resolve(examples)
    if EVENT_TIME not in ctx.warehouse.schema(examples).names:
        raise SchemaMismatch(f"{examples} has no column {EVENT_TIME}", "build it with build_training_set")
    features = {n: r for n, r in references.items() if n != PREDICTION}
    rows = _rows(ctx, examples, features, "split = 'train'", cluster)
    counts = _tally(rows, features, start, cluster)
    if PREDICTION in references:
        unseen = "validation" if model.bundle["rows_validation"] else "train"
        names = list(dict.fromkeys([*model.feature_names, EVENT_TIME]))
        seen = ctx.warehouse.scan(examples, columns=names, where=f"split = '{unseen}'")
        scored = (
            pa.record_batch({"score": pa.array(model.predict(batch)), EVENT_TIME: batch.column(EVENT_TIME)})
            for batch in seen
        )
        counts[PREDICTION] = _tally(scored, {"score": references[PREDICTION]}, start, cluster)["score"]
    return counts


def _rows(
    ctx: StepContext, ref: TableRef, references: Mapping[str, Any], where: str, cluster: str
) -> Iterable[pa.RecordBatch]:
    columns = list(dict.fromkeys([*references, *([EVENT_TIME] if cluster else [])]))
    found: Iterable[pa.RecordBatch] = ctx.warehouse.scan(ref, columns=columns, where=where)
    return found


def _tally(
    batches: Iterable[pa.RecordBatch], references: Mapping[str, Any], start: datetime, cluster: str
) -> dict[str, Counts]:
    """Rows by cluster, bin and column, a chunk of the table in memory at a time; one row of counts without clusters."""
    import numpy as np

    from airloop.domain.drift import tally

    found: dict[int, dict[str, Counts]] = {}
    for batch in batches:
        at = places(batch.column(EVENT_TIME), start, WIDTHS[cluster]) if cluster else np.zeros(len(batch), np.intp)
        there, index = np.unique(at, return_inverse=True)
        for name, reference in references.items():
            counted = tally(reference, _values(batch.column(name), reference), index, len(there))
            for place, counts in zip(there.tolist(), counted, strict=True):
                own = found.setdefault(place, {})
                own[name] = own[name] + counts if name in own else counts
    none = {name: tally(reference, np.empty(0)) for name, reference in references.items()}
    return {name: np.array([c[name] for _, c in sorted(found.items())] or [none[name]]) for name in references}


def _values(column: pa.Array, reference: dict[str, Any]) -> NDArray[Any]:
    import numpy as np
    import pyarrow as pa

    if reference.get("kind") == "category":
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _freshness(ctx: StepContext, ref: TableRef, interval: Interval, oldest: timedelta | None) -> dict[str, Any]:
    """How old the newest row is that was known when the interval ended."""
    there = ctx.warehouse.schema(ref).names
    known = next((c for c in ("arrival_time", "event_time") if c in there), "")
    result: dict[str, Any] = {"table": ref.name, "newest": None, "age_hours": None, "stale": False, "why": ""}
    if not known:
        return result | {"why": f"{ref.name} has neither arrival_time nor event_time"}
    with ctx.warehouse.duckdb({"watched": ref}, workdir=ctx.workdir) as connection:
        sql = f"SELECT max({known}) FROM watched WHERE {known} < {bounds(interval)[1]}"
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
    ("value", "double?"), ("p", "double?"), ("limit", "double?"), ("crossed", "bool"), ("rows", "long"),
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
        if f["age_hours"] is not None or f["stale"]
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

    from airloop.warehouse.work import Work

    types = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_(), "long": pa.int64(),
             "time": pa.timestamp("us", tz="UTC")}  # fmt: skip
    schema = pa.schema([pa.field(n, types[t.rstrip("?")], nullable=t.endswith("?")) for n, t in columns])
    common = {"model": model, "interval_start": interval.start, "interval_end": interval.end}
    filled = [{n: (common | row).get(n) for n, _ in columns} for row in rows]
    _loosen(ctx, name, schema)
    ctx.warehouse.ensure(name, schema, key=("model", "interval_start", "interval_end", *key))
    start, end = bounds(interval)
    where = f"model = '{model}' AND interval_start = {start} AND interval_end = {end}"
    data = pa.Table.from_pylist(filled, schema=schema)
    work = Work.of(ctx.call, ctx.key, interval)
    made = ctx.warehouse.commit(
        name,
        data,
        key=ctx.warehouse.key_for(name, work),
        mode="replace",
        replace_where=where,
        properties=work.properties,
    )
    return made.ref


def _loosen(ctx: StepContext, name: str, schema: pa.Schema) -> None:
    """Let columns be NULL that an earlier airloop required."""
    if not ctx.warehouse.exists(name):
        return
    from pyiceberg.exceptions import CommitFailedException

    table = ctx.warehouse.table(name)
    free = [f.name for f in schema if f.nullable]
    tight = [f.name for f in table.schema().fields if f.required and f.name in free]
    # Another run may have done it meanwhile; if not, what is declared differs from the table, and that is said.
    with suppress(CommitFailedException):
        if tight:
            with table.update_schema() as update:
                for column in tight:
                    update.update_column(column, required=False)
