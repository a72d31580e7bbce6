"""Register a challenger and let the aliases follow its gate's decision."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airloop.contract import Interval
from airloop.errors import BadArgument, StaleRun
from airloop.frame import StepContext, StepResult, step
from airloop.reference import Scope
from airloop.registry.refs import CHALLENGER, CHAMPION, NONE, DecisionRef, IncumbentRef, ModelRef

if TYPE_CHECKING:
    from airloop.registry.ledger import Entry
    from airloop.registry.models import Registered


def _still_there(ctx: StepContext, manifest: Mapping[str, Any]) -> bool:
    """Whether the ledger still has this key's entry; the version itself is an output and checked as such."""
    from airloop.registry.ledger import Ledger

    name = ModelRef.parse(manifest["outputs"]["model"]["reference"]).name
    return any(e.state in ("done", "superseded") for e in Ledger(ctx.warehouse).entries(name, key=ctx.key))


@step(still_there=_still_there)
def register(
    ctx: StepContext,
    *,
    model: ModelRef,
    gate: DecisionRef,
    name: str,
    alias: str = CHAMPION,
    any_champion: bool = False,
    interval: Interval | None = None,
) -> StepResult:
    """Register the model as a version and move the alias if the gate promoted it; every decision stands in the ledger.

    The same model is one version however often it is registered. A promotion moves ``alias``; any other decision moves
    ``challenger``. A run of an interval that ended before what is live took effect moves nothing. An asset event is
    announced only when ``alias`` moved.

    :param model: the challenger; pass the result of the evaluate task.
    :param gate: the decision; pass the result of the evaluate task.
    :param name: registered name: letters, digits, ``_ . -``.
    :param alias: alias that a promotion moves.
    :param any_champion: accept a promotion over another model than the one that the gate compared with.
    """
    from airloop.registry.ledger import Entry
    from airloop.registry.models import Registry

    if alias == CHALLENGER:
        raise BadArgument(f"alias {CHALLENGER!r} is for models that were not promoted", "use another, as champion")
    evidence = gate.read(ctx.scope)
    decision = evidence["decision"]
    if evidence["challenger"] != str(model):
        raise BadArgument(f"the gate decided about {evidence['challenger']}, not {model}", "pass one evaluate's result")
    promoted = decision["outcome"] == "promote"
    moves = alias if promoted else CHALLENGER
    registry = Registry(ctx.config, ctx.warehouse)
    with registry.locked(name):
        before = registry.known(name, ctx.key, moves)
        if promoted and before is None and not any_champion:
            _check_champion(ctx, name, alias, evidence["champion"], interval)
        registered = registry.register(
            name, model, tags=_tags(ctx, evidence), description="; ".join(decision["reasons"])[:5000]
        )
        live = registry.ledger.champion_at(name, alias)
        now = datetime.now(UTC)
        entry = registry.decide(
            Entry(
                entry=ctx.key,
                seq=0,
                model=name,
                alias=moves,
                version=registered.version,
                previous=None,
                state="intent",
                moved=True,
                outcome=decision["outcome"],
                reason="; ".join(decision["reasons"]),
                by=ctx.call.step,
                key=ctx.key,
                dag_id=ctx.call.run.dag_id,
                run_id=ctx.call.run.run_id,
                task_id=ctx.call.run.task_id,
                recorded_at=now,
                effective_at=interval.end if interval else now,
                evidence=_evidence(evidence, gate, registered),
            ),
            # The champion is not its own challenger.
            move=promoted or live is None or live.version != registered.version,
        )
        live = registry.ledger.champion_at(name, alias)
    return _result(ctx, entry, registered, live.version if live else NONE, gate, adopted=before is not None)


def _check_champion(ctx: StepContext, name: str, alias: str, compared: str, interval: Interval | None) -> None:
    """:raises StaleRun: the gate compared with another model than the one that is to be replaced."""
    live = IncumbentRef(name, alias=alias).resolve(Scope(ctx.config, interval))
    if ModelRef.parse(compared).absent and live.absent:
        return
    if compared != str(live):
        when = f"just before {interval.end.isoformat()}" if interval else "now"
        raise StaleRun(
            f"the gate compared with {compared}, but {name}@{alias} {when} is {live}",
            "run the evaluate task again, or set any_champion=True",
        )


def _tags(ctx: StepContext, evidence: Mapping[str, Any]) -> dict[str, str]:
    return {
        "airloop.examples": evidence["examples"],
        "airloop.decision": evidence["decision"]["outcome"],
        "airloop.compared_with": evidence["champion"],
        "airloop.dag_id": ctx.call.run.dag_id,
        "airloop.run_id": ctx.call.run.run_id,
    }


def _evidence(evidence: Mapping[str, Any], gate: DecisionRef, registered: Registered) -> dict[str, Any]:
    """What the ledger keeps beside the reason: figures, and where the whole decision is."""
    decision = evidence["decision"]
    return {
        "decision": str(gate),
        "compared_with": evidence["champion"],
        "examples": evidence["examples"],
        "mlflow_run": registered.run_id,
        "metric": decision["metric"],
        "rows": decision["rows"],
        "difference": decision["difference"],
        "challenger_metrics": decision["challenger_metrics"],
        "champion_metrics": decision["champion_metrics"],
        "floors": decision["floors"],
    }


def _result(
    ctx: StepContext, entry: Entry, registered: Registered, live: int, gate: DecisionRef, *, adopted: bool
) -> StepResult:
    version = ModelRef(entry.model, version=registered.version)
    champion_moved = entry.moved and entry.alias != CHALLENGER
    if champion_moved:
        what = f"{entry.model}@{entry.alias} is now version {entry.version}"
        what += f", it was version {entry.previous}" if entry.previous else ", the first"
    elif entry.state == "superseded":
        what = f"version {registered.version} was promoted too late to move {entry.model}@{entry.alias}"
    else:
        what = f"{entry.model}: version {registered.version} is not promoted"
    ctx.log.info("%s: %s", what, entry.reason)
    return StepResult(
        outputs={"model": version, "champion": str(ModelRef(entry.model, version=live)), "decision": gate},
        counts={"version": registered.version, "versions_made": int(registered.created)},
        details={
            "summary": what,
            "outcome": entry.outcome,
            "alias": entry.alias,
            "moved": entry.moved,
            "state": entry.state,
            "reason": entry.reason,
            "entry": entry.as_json(),
            "mlflow": {"run_id": registered.run_id, "experiment_id": registered.experiment_id},
        },
        # After a kill the event of the first attempt was never sent; a forced repetition has nothing new to tell.
        changed=not (adopted and ctx.call.force),
        event={
            "model": str(version),
            "alias": entry.alias,
            "version": entry.version,
            "previous": entry.previous,
            "decision": str(gate),
        }
        if champion_moved
        else None,
    )
