"""Labels and features as they were known, in one table split by time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from airloop.contract import Interval
from airloop.domain.durations import parse_duration
from airloop.errors import BadArgument, BadInput
from airloop.features.refs import FeatureServiceRef
from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import duckdb

    from airloop.features.definitions import ServiceDefinition

SPLITS = ("train", "validation", "holdout")
PART = "__part"
"""What a row is for: one of :data:`SPLITS`, or why it is left out."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When each part begins, UTC; the last ends with ``end``."""

    start: datetime | None
    """None: with the first label."""
    validation: datetime
    holdout: datetime
    end: datetime

    def as_json(self) -> dict[str, str | None]:
        return {
            "start": self.start.isoformat() if self.start else None,
            "validation": self.validation.isoformat(),
            "holdout": self.holdout.isoformat(),
            "end": self.end.isoformat(),
        }


@step(libraries=("duckdb", "feast", "numpy", "pyarrow"))
def build_training_set(
    ctx: StepContext,
    *,
    labels: TableRef,
    feature_service: FeatureServiceRef,
    tables: list[TableRef],
    table: str,
    label_column: str = "label",
    time_column: str = "event_time",
    known_column: str = "arrival_time",
    window: str = "",
    holdout: str = "7d",
    validation: str = "7d",
    max_feature_auc: Annotated[float, Field(gt=0.5, le=1)] = 0.97,
    allow: list[str] = [],
    interval: Interval,
) -> StepResult:
    """
    Join labels with the features that were known at each label's time, check for leakage, and split by time.

    Two gates refuse leakage: no value may have arrived after the time of its row, and no feature alone may give the
    label away (:mod:`airloop.domain.target_leakage`).

    A label is used if its time is in the window and it was known at the interval's end; one that is not yet known
    waits for the next run. The hold-out is the window's last part, the validation rows come before it, the rest
    trains. A training label that became known only after the validation part began is left out (and likewise before
    the hold-out): whoever trained then would not have had it. Only the request columns that the feature service
    declares become features; no other column of the labels does.

    :param labels: table with entity keys, time, request columns, label and when the label became known.
    :param feature_service: name of the Feast feature service.
    :param tables: the snapshot of each table that the service's views read.
    :param table: namespace.table that is replaced by the training set; earlier ones stay as snapshots.
    :param label_column: column with the answer; rows where it is NULL are left out.
    :param time_column: the time of prediction.
    :param known_column: when the label became known.
    :param window: how far back from the interval's end, such as 90d; empty: all.
    :param holdout: length of the last part, which no model is trained on: 7d; none for no such part.
    :param validation: length of the part before it, for early stopping: 7d; none for no such part.
    :param max_feature_auc: a feature that alone ranks the labels better than this gives them away, and is refused.
    :param allow: features that are kept although they seem to give the label away; the manifest records it.
    :param interval: the run's; its end is the time at which the training set is built, as it were.
    """
    from airloop.features.giveaways import refuse_giveaways
    from airloop.features.leakage import refuse_leaks
    from airloop.features.offline import choose_tables, join_features, make_spine, types_of
    from airloop.features.repo import service_of

    bounds = _bounds(interval, window, holdout, validation)
    service = service_of(ctx.config, feature_service)
    chosen = choose_tables(service, tables)
    keys = list(dict.fromkeys([*ctx.warehouse.key(labels.name), *service.keys]))
    special = [time_column, label_column, known_column]
    _refuse_special(service, special, keys)
    with ctx.warehouse.duckdb({**chosen, "spine.labels": labels}, workdir=ctx.workdir) as connection:
        dated = [f"{f.name}__arrival_time" for f in service.request]
        present = types_of(connection, "spine.labels")
        handed = [*keys, *special, *(c for c in dated if c in present)]
        ctx.log.info("Joining %s with %d views of %s", labels, len(service.views), feature_service.name)
        inside = _in_window(bounds, time_column)
        make_spine(connection, "spine.labels", service, handed, called=labels.name, where=inside)
        _make_parts(connection, bounds, label_column, time_column, known_column)
        counts = _counts(connection)
        _refuse_empty(counts, labels, bounds)
        joined = join_features(connection, "examples_spine", service, time_column=time_column)
        joined.create("joined")
        ctx.point("joined")
        gate = refuse_leaks(connection, "joined", service, keys=keys[:1], time_column=time_column)
        gate["target"] = refuse_giveaways(
            connection, "joined", service, label=label_column, keys=keys, max_auc=max_feature_auc, allow=allow
        )
        for name, why in gate["target"]["allowed"].items():
            ctx.log.warning("Feature %s is allowed although %s", name, why)
        ctx.log.info("No leak: the values of %s rows had arrived when they were needed", f"{gate['rows']:,}")
        columns = [*keys, *special, PART, *service.feature_names]
        columns += [f"{view.name}__{what}" for view in service.views for what in ("event_time", "arrival_time")]
        committed = _save(ctx, connection, table, columns, keys, special, service)
        details = {
            "features": _describe(connection, service),
            "views": [view.as_lookup() for view in service.views],
            "snapshots": {name: str(ref) for name, ref in {labels.name: labels, **chosen}.items()},
            "bounds": bounds.as_json(),
            "leakage": gate,
            "label": label_column,
            "label_means": _label_means(connection, label_column),
            "label_columns_not_used": sorted(set(present) - {*handed, *(f.name for f in service.request)}),
        }
    ctx.log.info("Wrote %s: %s", committed.ref, ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    return StepResult(outputs={"table": committed.ref}, counts=counts, details=details, changed=ctx.is_news(committed))


def _bounds(interval: Interval, window: str, holdout: str, validation: str) -> Bounds:
    held, checked = parse_duration(holdout, name="holdout"), parse_duration(validation, name="validation")
    start = None
    if window:
        length = parse_duration(window, name="window")
        if held + checked >= length:
            raise BadArgument(
                f"window={window} leaves nothing to train on besides holdout={holdout} and validation={validation}",
                "make the window longer than both together",
            )
        start = interval.end - length
    return Bounds(start, interval.end - held - checked, interval.end - held, interval.end)


def _refuse_special(service: ServiceDefinition, special: list[str], keys: list[str]) -> None:
    """:raises BadArgument: the label or its arrival is asked for as a feature or as a key."""
    names = {f.name for f in service.request} | set(keys)
    wrong = [c for c in special if c in names] + (["split"] if "split" in names else [])
    if wrong or len(set(special)) < 3:
        raise BadArgument(
            f"{', '.join(wrong or special)} cannot be time, label, arrival or split and also a feature or key",
            f"see request_source of feature service {service.name} and the key of the labels",
        )


def _in_window(bounds: Bounds, time_column: str) -> str:
    from airloop.features.asof import quote, time_literal

    conditions = [f"{quote(time_column)} < {time_literal(bounds.end)}"]
    if bounds.start is not None:
        conditions.append(f"{quote(time_column)} >= {time_literal(bounds.start)}")
    return " AND ".join(conditions)


def _make_parts(
    connection: duckdb.DuckDBPyConnection, bounds: Bounds, label: str, time_column: str, known_column: str
) -> None:
    """View ``parts``: each row of the window and what it is for; view ``examples_spine``: those that are used."""
    from airloop.features.asof import quote, time_literal

    time, known = quote(time_column), quote(known_column)
    validation, holdout = time_literal(bounds.validation), time_literal(bounds.holdout)
    connection.execute(
        f"""CREATE TEMP VIEW parts AS SELECT *, CASE
            WHEN {known} IS NULL OR {known} > {time_literal(bounds.end)} THEN 'waiting'
            WHEN {quote(label)} IS NULL THEN 'unlabelled'
            WHEN {time} >= {holdout} THEN 'holdout'
            WHEN {time} >= {validation} THEN CASE WHEN {known} <= {holdout} THEN 'validation' ELSE 'embargoed' END
            WHEN {known} <= {validation} THEN 'train'
            ELSE 'embargoed' END AS {PART} FROM spine_rows"""
    )
    used = ", ".join(f"'{split}'" for split in SPLITS)
    connection.execute(f"CREATE TEMP VIEW examples_spine AS SELECT * FROM parts WHERE {PART} IN ({used})")


def _counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    found = dict(connection.execute(f"SELECT {PART}, count(*) FROM parts GROUP BY {PART}").fetchall())
    return {
        "rows": sum(found.get(split, 0) for split in SPLITS),
        **{f"rows_{split}": found.get(split, 0) for split in SPLITS},
        "rows_waiting_for_label": found.get("waiting", 0),
        "rows_unlabelled": found.get("unlabelled", 0),
        "rows_embargoed": found.get("embargoed", 0),
    }


def _refuse_empty(counts: dict[str, int], labels: TableRef, bounds: Bounds) -> None:
    """:raises BadInput: no row is left to train on."""
    if counts["rows_train"]:
        return
    others = ", ".join(f"{n:,} {name.removeprefix('rows_')}" for name, n in counts.items() if n and name != "rows")
    since = bounds.start.isoformat(sep=" ") if bounds.start else "the first label"
    raise BadInput(
        f"no training rows: of {labels.name} between {since} and {bounds.validation.isoformat(sep=' ')}, "
        f"none has a label that was known by then ({others or 'no labels in the whole window'})",
        "wait for more labels, widen the window, or shorten holdout and validation",
    )


def _save(
    ctx: StepContext,
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: list[str],
    keys: list[str],
    special: list[str],
    service: ServiceDefinition,
) -> Any:
    import json

    import pyarrow as pa

    from airloop.features.asof import quote

    selected = ", ".join(f'{PART} AS "split"' if c == PART else quote(c) for c in columns)
    # Keys, then everything else that could tell rows apart: the order must not depend on the join's threads.
    order = ", ".join(quote(c) for c in dict.fromkeys([special[0], *keys, *special]))
    rows = connection.sql(f"SELECT {selected} FROM joined ORDER BY {order}")
    reader = rows.to_arrow_reader(ctx.config.rows_per_chunk)
    required = {*special, "split"}
    schema = pa.schema([f.with_nullable(f.name not in required) for f in reader.schema])
    # A feature that the service has dropped stays as an empty column: the table's older snapshots have it.
    old = ctx.warehouse.schema(table).names if ctx.warehouse.exists(table) else []
    ctx.warehouse.ensure(
        table,
        schema,
        description=f"examples for feature service {service.name}",
        optional=[name for name in old if name not in schema.names],
    )
    return ctx.warehouse.commit(
        table,
        reader,
        key=ctx.key,
        mode="replace",
        properties={"airloop.features": json.dumps(service.describe_features(), separators=(",", ":"))},
    )


def _describe(connection: duckdb.DuckDBPyConnection, service: ServiceDefinition) -> list[dict[str, Any]]:
    """The features with the share of rows that have no value."""
    from airloop.features.asof import quote

    listed = service.describe_features()
    shares = connection.execute(
        "SELECT " + ", ".join(f"1 - count({quote(f['name'])}) / count(*)" for f in listed) + " FROM joined"
    ).fetchone()
    assert shares is not None
    return [{**f, "null_share": round(float(share), 6)} for f, share in zip(listed, shares, strict=True)]


def _label_means(connection: duckdb.DuckDBPyConnection, label: str) -> dict[str, float]:
    from airloop.features.asof import quote

    rows = connection.execute(
        f"SELECT {PART}, avg(CAST({quote(label)} AS DOUBLE)) FROM joined GROUP BY {PART} ORDER BY {PART}"
    ).fetchall()
    return {part: round(float(mean), 6) for part, mean in rows}
