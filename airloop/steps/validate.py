"""Step ``validate``: rows on an audit branch become part of the table only if they pass a suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from airloop.frame import StepContext, StepResult, step
from airloop.warehouse.refs import ROWS_BROUGHT, TableRef

VERDICT = "verdict.json"


def _published(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    """Whether ``main`` is, or builds on, what this step published."""
    ref = TableRef.parse(manifest["outputs"]["table"]["reference"])
    return ctx.warehouse.descends(ref.name, ctx.warehouse.head(ref.name), ref.snapshot or 0)


@step(libraries=("duckdb", "great-expectations", "pyarrow"), still_there=_published)
def validate(
    ctx: StepContext,
    *,
    table: TableRef,
    suite: str | dict[str, Any],
    max_quarantined_share: Annotated[float, Field(ge=0, le=1)] = 0.0,
) -> StepResult:
    """
    Audit the new rows of an audit branch with a Great Expectations suite and publish them if they pass.

    Every rule of severity critical decides; warning and info are reported only. If a rule is broken, main stays as it
    is and the broken rows are in quarantine.NAMESPACE_TABLE, each with the rules that it breaks. If all broken rules
    have meta.airloop.quarantine: true and the rows that break them are few enough, only those are kept back; if nothing
    else is new, main stays as it is, too. If main moved meanwhile, the rows go on top of it, by key, and are validated
    again.

    :param table: what extract wrote: a snapshot on an audit branch.
    :param suite: content of a suite file (JSON or YAML), or the same as a mapping.
    :param max_quarantined_share: share of the rows that came, 0 to 1, that may be kept back while the others are
        published. Rows that came and were there already count: what a source brings again is not all bad.
    """
    from airloop.quality.gate import Gate, batch_of, nothing_new

    audited = ctx.artifacts.exists(f"{ctx.folder}/{VERDICT}")
    if nothing_new(ctx.warehouse, table) and not audited:
        ctx.log.info("%s: main holds it already, there is nothing new to validate", table)
        counts = {"rows_checked": 0, "rows_quarantined": 0, "rows_published": 0, "expectations": 0}
        return StepResult(outputs={"table": table}, counts=counts, changed=False)

    from airloop.quality.suite import load_suite

    batch = batch_of(ctx.warehouse, table)
    interval = ctx.call.interval
    gate = Gate(
        warehouse=ctx.warehouse,
        audit=table,
        batch=batch,
        brought=_brought(ctx, table),
        suite=load_suite(suite),
        max_quarantined_share=max_quarantined_share,
        key=ctx.key,
        workdir=ctx.workdir,
        publish_docs=lambda folder: f"{ctx.publish('docs', folder)}/index.html",
        record=lambda verdict: ctx.publish(VERDICT, verdict),
        run_name=ctx.key[:12],
        run_time=(interval.start.isoformat() if interval else _made_at(ctx, table)),
    )
    passed = gate.run()
    outputs = {"table": passed.published}
    if passed.quarantine is not None:
        outputs["quarantine"] = passed.quarantine
    published = passed.rows - passed.quarantined
    return StepResult(
        outputs=outputs,
        counts={
            "rows_checked": passed.rows,
            "rows_quarantined": passed.quarantined,
            "rows_published": published,
            "expectations": len(gate.suite.rules),
        },
        details={**passed.details, "audited": str(table), "batch": batch, "rebases": passed.rebases},
        links={"docs": gate.docs} if gate.docs else {},
        changed=bool(published) and passed.moved,
        event={"table": str(passed.published), "rows": published} if published and passed.moved else None,
    )


def _brought(ctx: StepContext, table: TableRef) -> int:
    """How many rows the extract step had in its hands; 0 if another writer made the snapshot."""
    made = ctx.warehouse.snapshot(table.name, table.snapshot or 0)
    return int(made.summary.get(ROWS_BROUGHT, 0)) if made else 0


def _made_at(ctx: StepContext, table: TableRef) -> str:
    """When the audited snapshot was committed; the same for every attempt."""
    made = ctx.warehouse.snapshot(table.name, table.snapshot or 0)
    assert made is not None, "it was read"
    return made.committed_at.isoformat()
