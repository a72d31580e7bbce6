"""Care of the state as steps, so that Airflow can schedule it: compact and gc, and a backup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from airloop.config import own_catalog
from airloop.contract import Interval
from airloop.frame import StepContext, StepResult, step


@step(libraries=("pyiceberg",), effect="it compacts tables and takes away what nobody needs")
def upkeep(
    ctx: StepContext,
    *,
    interval: Interval,
    keep_days: Annotated[float, Field(ge=0)] = 30.0,
    grace_hours: Annotated[float, Field(ge=0)] = 24.0,
) -> StepResult:
    """
    Compact all tables, then take away what nobody needs: expired snapshots and files of killed writers.

    What a model, an entry of the ledger or a run that can still be replayed names is never taken away. Loops may run
    meanwhile.

    :param interval: the run's; each run does it once.
    :param keep_days: days for which runs can be replayed whose model is not registered.
    :param grace_hours: how old a file must be that nothing names.
    """
    from airloop.upkeep.gc import collect, describe
    from airloop.upkeep.retention import Policy

    own_catalog(ctx.config, "the step upkeep")
    compacted = [ctx.warehouse.compact(name) for name in ctx.warehouse.tables()]
    for done in compacted:
        if done.changed:
            ctx.log.info("%s: %s files are %s", done.table, f"{done.files_before:,}", f"{done.files_after:,}")
    found = collect(ctx.config, Policy(keep_days), grace_s=grace_hours * 3600, own_attempt=ctx.call.attempt)
    for line in describe(found, dry_run=False):
        ctx.log.info("%s", line)
    return StepResult(
        counts={
            "tables_compacted": sum(done.changed for done in compacted),
            "branches_dropped": len(found.branches),
            "snapshots_expired": len(found.snapshots),
            "files_removed": sum(found.files.values()),
            "bytes_removed": sum(found.bytes.values()),
        },
        details={
            "gc": found.as_json(),
            "compacted": [{**asdict(done), "snapshot": str(done.snapshot)} for done in compacted if done.changed],
        },
    )


def _point_is_there(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    from airloop.upkeep.points import Vault

    return manifest["details"]["point"] in Vault(Path(manifest["arguments"]["target"])).points()


@step(still_there=_point_is_there, effect="it writes a backup")
def backup(ctx: StepContext, *, target: str, interval: Interval) -> StepResult:
    """
    Make a consistent point of everything in a folder of backups, while loops run.

    :param target: the folder, outside the home, better on another disk.
    :param interval: the run's; each run makes one point.
    """
    from airloop.upkeep.backup import backup as back_up

    made, vault = back_up(ctx.config, Path(target))
    for note in made.notes:
        ctx.log.warning("%s", note)
    ctx.log.info("%s: %s files, %s of them new", made.name, f"{len(made.files):,}", f"{vault.copied:,}")
    return StepResult(
        counts={"files": len(made.files), "bytes": made.bytes, "files_copied": vault.copied},
        details={"point": made.name, "made_at": made.made_at, "notes": made.notes},
    )
