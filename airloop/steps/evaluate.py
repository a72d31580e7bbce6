"""Hold a challenger against the champion on the held-out rows, and decide."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from airloop.errors import BadArgument, BadInput, Rejected, SchemaMismatch
from airloop.frame import StepContext, StepResult, step
from airloop.registry.refs import DecisionRef, IncumbentRef, ModelRef
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from airloop.domain.gates import Decision
    from airloop.training.models import Model

EVENT_TIME = "event_time"
HOLDOUT = "split = 'holdout'"

Share = Annotated[float, Field(gt=0, lt=1)]


@step(libraries=("numpy",))
def evaluate(
    ctx: StepContext,
    *,
    challenger: ModelRef,
    champion: IncumbentRef,
    examples: TableRef,
    metric: Literal["roc_auc", "average_precision", "log_loss", "brier", "accuracy"] = "roc_auc",
    confidence: Share = 0.95,
    min_gain: float = 0.0,
    slices: list[str] = [],
    slice_tolerance: Annotated[float, Field(ge=0)] = 0.02,
    floors: dict[str, float] = {},
    max_calibration_error: Share | None = None,
    min_rows: Annotated[int, Field(ge=2)] = 500,
    min_slice_rows: Annotated[int, Field(ge=2)] = 200,
    cluster: str = "day",
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000,
    seed: int = 0,
    on_reject: Literal["keep", "fail"] = "keep",
) -> StepResult:
    """Compare challenger and champion on the same held-out rows; the decision, with its reasons, is data.

    A challenger is promoted if it holds every floor, its gain's confidence interval lies above ``min_gain``, and no
    slice is shown to lose more than ``slice_tolerance``. Without a champion the floors alone decide. Too few rows, or
    rows of one class, keep what is live. "Keep" and "reject" are results, not failures.

    :param challenger: the model that wants to be champion.
    :param champion: the model to beat, usually ``NAME@champion``: what that was just before the interval's end;
        ``model:/NAME/none``: there is none.
    :param examples: training table; its rows of split ``holdout`` are what both models are measured on.
    :param metric: what is compared: ``roc_auc``, ``average_precision``, ``log_loss``, ``brier`` or ``accuracy``.
    :param confidence: of the two-sided interval of the gain; slices are judged at ``1 - confidence``, together.
    :param min_gain: gain in the metric's unit above which the whole interval must lie.
    :param slices: columns, or ``month``, by whose values the models are compared too.
    :param slice_tolerance: loss of a slice, in the metric's unit, that is put up with.
    :param floors: absolute limits of the challenger by metric, at least where more is better, else at most.
    :param max_calibration_error: largest expected calibration error of the challenger; default no limit.
    :param min_rows: fewer held-out rows decide nothing.
    :param min_slice_rows: smaller slices are listed as too few and not judged.
    :param cluster: rows that are drawn together in resamples because they are not independent: ``day`` (24 hours,
        counted from the first held-out row), ``hour``, a column, or empty for single rows.
    :param resamples: how many; more make the interval steadier, not narrower. With over 100 clusters none are drawn.
    :param seed: of the resamples, beside the rows' own content.
    :param on_reject: ``fail`` ends the task with an error if the challenger breaks a floor.
    """
    from airloop.domain.gates import Policy, decide
    from airloop.training.models import load_model
    from airloop.warehouse.artifacts import sha256

    if challenger.absent:
        raise BadArgument(f"challenger {challenger} is no model", "pass the result of a train task")
    limits = floors | ({"ece": max_calibration_error} if max_calibration_error is not None else {})
    policy = Policy(
        metric=metric,
        confidence=confidence,
        min_gain=min_gain,
        slice_tolerance=slice_tolerance,
        floors=limits,
        min_rows=min_rows,
        min_slice_rows=min_slice_rows,
        cluster=cluster or "row",
        resamples=resamples,
        seed=seed,
    )
    ours = load_model(ctx.config, challenger)
    theirs = None if champion.absent else load_model(ctx.config, champion)
    if theirs is not None and theirs.target != ours.target:
        raise BadInput(
            f"{challenger} predicts {ours.target!r}, {champion} predicts {theirs.target!r}: they cannot be compared"
        )
    rows = _held_out(ctx, examples, ours, theirs, slices, cluster)
    labels = _labels(rows, ours.target, examples)
    scores = {"challenger": ours.predict(rows)}
    if theirs is not None:
        scores["champion"] = _champion_scores(theirs, rows, champion)
    decision = decide(
        labels=labels,
        challenger=scores["challenger"],
        champion=scores.get("champion"),
        clusters=_clusters(rows, cluster),
        slices={name: _slice(rows, name) for name in slices},
        policy=policy,
    )
    for reason in decision.reasons:
        ctx.log.info("%s: %s", decision.outcome, reason)
    document = {
        "challenger": str(challenger),
        "champion": str(champion),
        "examples": str(examples),
        "decision": decision.as_json(),
    }
    content = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    ctx.publish("decision.json", content)
    if decision.outcome == "reject" and on_reject == "fail":
        raise Rejected(
            f"{challenger} is not fit to be registered: {'; '.join(decision.reasons)}",
            "look at the training run, or set on_reject='keep' to go on with the champion",
        )
    return StepResult(
        outputs={
            "model": challenger,
            "champion": str(champion),
            "examples": examples,
            "decision": DecisionRef(f"{ctx.folder}/decision.json", sha256(content)),
        },
        counts=_counts(decision),
        metrics=_metrics(decision),
        details={
            "outcome": decision.outcome,
            "reasons": decision.reasons,
            "decision": document["decision"],
            "curves": {name: _curves(labels, values) for name, values in scores.items()},
        },
    )


def _held_out(
    ctx: StepContext, examples: TableRef, ours: Model, theirs: Model | None, slices: list[str], cluster: str
) -> pa.Table:
    """The held-out rows with every column that is needed and there."""
    there = ctx.warehouse.schema(examples).names
    needed = [ours.target, "split"]
    if cluster in ("day", "hour"):
        needed.append(EVENT_TIME)
    elif cluster:
        needed.append(cluster)
    for name in slices:
        needed.append(EVENT_TIME if name == "month" and name not in there else name)
    missing = sorted(set(needed) - set(there))
    if missing:
        raise SchemaMismatch(
            f"{examples} has no column {', '.join(missing)}; it has {', '.join(there)}",
            "the gate needs the target, split, event_time, the cluster's and the slices' columns",
        )
    wanted = {*needed, *ours.feature_names, *(theirs.feature_names if theirs else ())}
    return ctx.warehouse.scan(examples, columns=[n for n in there if n in wanted], where=HOLDOUT).read_all()


def _labels(rows: pa.Table, target: str, examples: TableRef) -> NDArray[np.float64]:
    import numpy as np
    import pyarrow as pa

    column = rows.column(target)
    if column.null_count:
        raise BadInput(
            f"{examples}: {column.null_count:,} of {rows.num_rows:,} held-out rows have no {target}",
            "a training table holds only rows whose label is known",
        )
    labels: NDArray[np.float64] = column.cast(pa.float64()).to_numpy().astype(np.float64)
    return labels


def _champion_scores(champion: Model, rows: pa.Table, ref: ModelRef) -> NDArray[np.float64]:
    try:
        return champion.predict(rows)
    except SchemaMismatch as cause:
        raise SchemaMismatch(
            f"champion {ref} cannot score the held-out rows: {cause.found}",
            f"keep its features in the training set, or evaluate against model:/{ref.name or 'NAME'}/none once and "
            "register with any_champion=True",
        ) from cause


def _clusters(rows: pa.Table, cluster: str) -> NDArray[np.intp] | None:
    import numpy as np
    import pyarrow as pa

    if not cluster or not rows.num_rows:
        return None if not cluster else np.empty(0, dtype=np.intp)
    if cluster not in ("day", "hour"):
        column = rows.column(cluster).combine_chunks()
        codes = column.dictionary_encode(null_encoding="encode").indices
        return np.asarray(codes.to_numpy(), dtype=np.intp)
    # From the first row on, not from midnight UTC: that is evening somewhere, and a storm must not be cut in two.
    micros = rows.column(EVENT_TIME).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return np.asarray((micros - micros.min()) // {"day": 86_400_000_000, "hour": 3_600_000_000}[cluster], dtype=np.intp)


def _slice(rows: pa.Table, name: str) -> NDArray[Any]:
    import numpy as np

    if name in rows.column_names:
        values = rows.column(name).to_pylist()
    else:
        values = [time.strftime("%Y-%m") for time in rows.column(EVENT_TIME).to_pylist()]
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _counts(decision: Decision) -> dict[str, int]:
    return {
        "rows": decision.rows,
        "positives": decision.positives,
        "clusters": decision.clusters,
        "slices": len(decision.slices),
        "slices_too_few": sum(s.outcome == "too few" for s in decision.slices),
        "slices_worse": sum(s.outcome == "worse" for s in decision.slices),
    }


def _metrics(decision: Decision) -> dict[str, float]:
    found = {f"challenger_{name}": value for name, value in decision.challenger_metrics.items()}
    found |= {f"champion_{name}": value for name, value in (decision.champion_metrics or {}).items()}
    for name, value in decision.calibration.items():
        if value["error"] is not None:
            found[f"{name}_ece"] = value["error"]
    if decision.difference is not None:
        found |= {
            "gain": decision.difference.estimate,
            "gain_low": decision.difference.low,
            "gain_high": decision.difference.high,
        }
    return found


def _curves(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> dict[str, Any]:
    """What the report draws of one model."""
    from airloop.domain.calibration import reliability
    from airloop.domain.metrics import roc_curve, score_histogram

    return {
        "roc": roc_curve(labels, scores),
        "reliability": reliability(labels, scores),
        "scores": score_histogram(labels, scores),
    }
