"""Score an interval's entities with a model, on features as they were known at each entity's time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.features.refs import FeatureServiceRef
from airloop.frame import StepContext, StepResult, step
from airloop.registry.refs import ModelRef
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import pyarrow as pa

    from airloop.features.definitions import ServiceDefinition
    from airloop.training.models import Model

EVENT_TIME = "event_time"
ROWS_PER_BATCH = 100_000
"""Rows scored at a time."""


@step(libraries=("numpy", "pyarrow", "duckdb"))
def batch_score(
    ctx: StepContext,
    *,
    model: ModelRef,
    entities: TableRef,
    feature_service: FeatureServiceRef,
    tables: list[TableRef],
    table: str,
    time_column: str = EVENT_TIME,
    interval: Interval,
) -> StepResult:
    """Write a score for each entity of the interval into a table of predictions.

    An alias such as ``delay@champion`` is the model that was champion when the interval began, so no model scores
    what it has learned from. While there is none, the step does nothing and says so. A label in ``entities`` is
    never looked at. Scoring an interval again replaces the scores that differ.

    :param model: the model to score with.
    :param entities: table of entity rows: key columns, time, and what is known with the request.
    :param feature_service: which features to look up.
    :param tables: snapshots of the tables that the feature service reads.
    :param table: table of predictions; made if it is not there.
    :param time_column: column of ``entities`` with the time of prediction.
    :param interval: entities with ``start <= time < end`` are scored.
    """
    import pyarrow as pa

    from airloop.errors import BadArgument, SchemaMismatch
    from airloop.features.offline import features_for
    from airloop.features.repo import service_of
    from airloop.training.features import encode
    from airloop.training.models import load_model
    from airloop.warehouse.work import Work

    warehouse = ctx.warehouse
    keys = warehouse.key(entities.name)
    if not keys:
        raise BadArgument(f"{entities.name} has no key", "declare the columns that identify an entity row")
    declared = warehouse.schema(entities)
    if time_column not in declared.names:
        raise SchemaMismatch(f"{entities.name} has no column {time_column!r}", "name it: time_column=…")
    schema = _predictions_schema(declared, [k for k in keys if k != time_column])
    warehouse.ensure(
        table,
        schema,
        key=[EVENT_TIME if k == time_column else k for k in keys],
        partition_by=f"month({EVENT_TIME})",
        description="scores of models, one row an entity",
    )
    if model.absent:
        reason = f"there was no {model.name} model yet when the interval began; nothing is scored"
        ctx.log.info("No scores: %s", reason)
        return StepResult(
            outputs={"table": TableRef(table, warehouse.head(table)), "model": model},
            counts={"rows_scored": 0},
            details={"reason": reason},
            changed=False,
        )
    loaded = load_model(ctx.config, model)
    service = service_of(ctx.config, feature_service)
    used = sorted([*(t for t in tables if t.name in service.tables)], key=str)
    snapshots = json.dumps({t.name: t.snapshot for t in (entities, *used)}, sort_keys=True)
    tally = Tally(loaded)

    def rows(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        # Says at once what the service lacks, even when no row comes.
        encode(reader.schema.empty_table(), loaded.features, where=f"feature service {service.name}")
        for large in reader:
            for first in range(0, large.num_rows, ROWS_PER_BATCH):
                batch = large.slice(first, ROWS_PER_BATCH)
                scores = loaded.predict(batch)
                tally.add(batch, scores)
                size = batch.num_rows
                columns: dict[str, Any] = {
                    **{name: batch.column(name) for name in keys},
                    EVENT_TIME: batch.column(time_column),
                    "score": pa.array(scores),
                    "model_version": pa.repeat(str(model), size),
                    "feature_snapshots": pa.repeat(snapshots, size),
                    "_batch": pa.repeat(ctx.key, size),
                }
                arrays = [columns[f.name].cast(f.type) for f in schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    start, end = interval.start.isoformat(), interval.end.isoformat()
    where = f"\"{time_column}\" >= TIMESTAMPTZ '{start}' AND \"{time_column}\" < TIMESTAMPTZ '{end}'"
    with features_for(
        warehouse,
        entities=entities,
        service=service,
        tables=tables,
        where=where,
        time_column=time_column,
        columns=_known_with_request(loaded, service, declared),
        workdir=ctx.workdir,
    ) as reader:
        stream = rows(reader)
        work = Work.of(ctx.call, ctx.key, interval)
        key = warehouse.key_for(table, work)
        done = warehouse.commit(table, stream, key=key, mode="upsert", properties=work.properties)
        if done.adopted:
            ctx.log.info("The scores were committed by an earlier attempt, as snapshot %s", done.snapshot)
            # Only the figures are missing; the same rows give them again.
            for _ in stream:
                pass
    ctx.log.info("Scored %s rows of %s with %s", f"{tally.rows:,}", entities, model)
    return StepResult(
        outputs={"table": done.ref, "model": model},
        counts={"rows_scored": tally.rows, "rows_new": done.added, "rows_updated": done.updated},
        metrics={"mean_score": tally.mean} if tally.rows else {},
        details={
            "model": {"uri": str(model), "run_id": loaded.run_id, "key": loaded.key, "trainer": loaded.trainer},
            "feature_snapshots": json.loads(snapshots),
            "views": [view.as_lookup() for view in service.views],
            "missing": dict(tally.missing),
            **({} if tally.rows else {"reason": f"{entities} has no row in the interval"}),
        },
        # An adopted commit is new to everybody but the attempt that died before it could say so.
        changed=ctx.is_news(done),
        event={"table": str(done.ref), "model": str(model)} if ctx.is_news(done) else None,
    )


class Tally:
    """What was scored so far."""

    def __init__(self, model: Model) -> None:
        self._features = model.feature_names
        self._sum = 0.0
        self.rows = 0
        self.missing: Counter[str] = Counter()
        """Rows without a value, by feature."""

    def add(self, batch: pa.RecordBatch, scores: Any) -> None:
        self.rows += batch.num_rows
        self._sum += float(scores.sum())
        for name in self._features:
            self.missing[name] += batch.column(name).null_count

    @property
    def mean(self) -> float:
        """Mean score; 0 without rows."""
        return self._sum / self.rows if self.rows else 0.0


def _predictions_schema(entities: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            *(pa.field(name, entities.field(name).type, nullable=False) for name in keys),
            pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
            pa.field("feature_snapshots", pa.string(), nullable=False),
            pa.field("_batch", pa.string(), nullable=False),
        ]
    )


def _known_with_request(model: Model, service: ServiceDefinition, entities: pa.Schema) -> list[str]:
    """Columns of the entities that the model learned from although the service does not name them, e.g. ``carrier``."""
    served = set(service.feature_names)
    return [n for n in model.feature_names if n not in served and n in entities.names and n != model.target]
