"""Step ``extract``: the rows of one interval from files to a table's audit branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.errors import BadArgument, BadInterval, DuplicateKeys
from airloop.frame import StepContext, StepResult, step
from airloop.frame.logs import Progress
from airloop.sources.files import FileSet
from airloop.sources.spec import SourceSpec
from airloop.warehouse.refs import ROWS_BROUGHT, TableRef, valid_name

if TYPE_CHECKING:
    from airloop.sources.selection import Selection
    from airloop.warehouse.catalog import Commit
    from airloop.warehouse.work import Work


def _only_if_it_counts(arguments: dict[str, Any]) -> dict[str, Any]:
    """A snapshot source gives every run the same, so the interval is left out of its key."""
    source: SourceSpec = arguments["source"]
    if not source.interval_column:
        return {**arguments, "interval": None}
    if arguments["interval"] is None:
        raise BadInterval(
            f"source {source.name} is read one interval at a time (by {source.interval_column}) and this run has none",
            "schedule the DAG with a data interval or a partition key, or pass interval='start/end'",
        )
    return arguments


@step(libraries=("duckdb", "pyarrow"), prepare=_only_if_it_counts)
def extract(
    ctx: StepContext, *, source: SourceSpec, files: FileSet, table: str = "", interval: Interval | None = None
) -> StepResult:
    """
    Bring the rows of an interval from files into a table's audit branch, by key.

    Rows of earlier intervals that are new or changed in the files come too, as far back as the source's ``lateness``
    says; rows of later intervals are left to their own runs. Nothing reaches the table unless every file could be
    read. ``main`` does not move: that is for the step that validates. An interval without rows is done, with a warning.

    :param source: content of the source's YAML file, or the same as a mapping.
    :param files: paths, globs or package:NAME/path addresses; the key holds their content, not their place.
    :param table: where the rows go, if not to the source's own table.
    """
    from airloop.sources.selection import select
    from airloop.warehouse.work import Work

    name = table or source.table
    if not valid_name(name):
        raise BadArgument(f"table {name!r} is not namespace.table")
    work = Work.of(ctx.call, ctx.key, interval)
    key = ctx.warehouse.key_for(name, work)
    known = _undeclared_columns(ctx, name, source)
    progress = Progress(ctx.log, "rows read")
    selected = select(
        source,
        files.files,
        interval,
        batch=key,
        known=known,
        workdir=ctx.workdir,
        rows_per_chunk=ctx.config.rows_per_chunk,
        memory_mb=ctx.config.memory_mb,
        threads=ctx.config.cpu_threads(),
        progress=progress.add,
    )
    for line in selected.report:
        ctx.log.warning("%s", line)
    ctx.point("extract:staged")
    if selected.added:
        # A file that is refused must not leave its new columns behind.
        selected.settle()
    evolved = ctx.warehouse.ensure(
        name,
        selected.schema,
        key=source.key,
        partition_by=source.partition_by,
        description=source.description,
        optional=sorted({*known, *selected.added}),
    )
    for line in evolved:
        ctx.log.warning("%s: %s", name, line)
    first, *again = key.split(":")
    branch = "-".join(["audit", first[:12], *again])
    base = ctx.warehouse.head(name)
    commit = _commit(ctx, name, selected, key, source.key, branch, work)
    counts = asdict(selected.counts) | {
        "rows_new": commit.added,
        "rows_corrected": commit.updated,
        "rows_unchanged": selected.rows - commit.added - commit.updated,
    }
    _say(ctx, source, interval, counts)
    return StepResult(
        outputs={"table": TableRef(name, commit.snapshot)},
        counts=counts,
        details={
            "branch": branch,
            "base": base,
            "evolution": [*selected.report, *evolved],
            # Where the files were, for people and for a replay: no part of the key.
            "patterns": list(files.patterns),
            "files": [{"name": f.name, "sha256": f.sha256, "bytes": f.size} for f in files.files],
        },
        changed=ctx.is_news(commit),
    )


def _commit(
    ctx: StepContext, name: str, selected: Selection, key: str, on: Sequence[str], branch: str, work: Work
) -> Commit:
    """Bring the rows in. Keys that come twice are looked for as they are written: most files have none."""
    try:
        commit = ctx.warehouse.commit(
            name,
            selected.batches(),
            key=key,
            mode="upsert",
            on=on,
            branch=branch,
            properties={ROWS_BROUGHT: str(selected.rows), **work.properties},
        )
    except DuplicateKeys:
        if selected.settled:
            raise
        selected.settle()
        return _commit(ctx, name, selected, key, on, branch, work)
    if commit.adopted:
        # An earlier attempt wrote them; what it dropped is counted again.
        selected.settle()
    return commit


def _undeclared_columns(ctx: StepContext, name: str, source: SourceSpec) -> dict[str, str]:
    """Canonical types of the table's columns that earlier files brought without the source declaring them."""
    from airloop.sources.types import name_of
    from airloop.warehouse.evolve import OPTIONAL

    if not ctx.warehouse.exists(name):
        return {}
    optional = ctx.warehouse.table(name).properties.get(OPTIONAL, "").split(",")
    schema = ctx.warehouse.schema(name)
    return {n: name_of(schema.field(n).type) for n in optional if n in schema.names and n not in source.order}


def _say(ctx: StepContext, source: SourceSpec, interval: Interval | None, counts: dict[str, int]) -> None:
    brought = counts["rows_new"] + counts["rows_corrected"] + counts["rows_unchanged"]
    ctx.log.info(
        "%s: %s rows read, %s new, %s corrected, %s unchanged, %s of other intervals",
        source.name,
        *(f"{counts[c]:,}" for c in ("rows_in", "rows_new", "rows_corrected", "rows_unchanged", "rows_outside")),
    )
    if interval is not None and not brought - counts["rows_late"]:
        ctx.log.warning("%s: the files hold no row of %s", source.name, interval)
    if counts["rows_undated"]:
        ctx.log.warning(
            "%s: %s rows have no %s; every run brings them, so the data gate should say what becomes of them",
            source.name, f"{counts['rows_undated']:,}", source.interval_column,
        )  # fmt: skip
