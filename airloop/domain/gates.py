"""
The gate: may a challenger replace the champion? A pure function of both models' scores on the same held-out rows.

It asks in this order:

1. Are there enough rows, positives, negatives and clusters to tell? If not: **keep**, nothing was shown.
2. Does the challenger hold every absolute floor, calibration included? If not: **reject**, it is unfit by itself.
3. Is there a champion? If not: **promote** on the floors alone.
4. Is the gain's confidence interval wholly above ``min_gain``? If not: **keep**.
5. Is some slice shown to lose more than is tolerated? If so: **keep**. Every slice with rows enough is tested in the
   same way, all of them together under Holm's correction; one with too few is listed as "too few", which is not "ok".
6. **Promote.**

Two models of the same quality are told apart wrongly, in favour of the challenger, in at most
``(1 - confidence) / 2`` of the cases; ``benchmarks/gates.py`` measures it, and the power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airloop.domain.bootstrap import Difference, holm, paired_difference, seed_of
from airloop.domain.calibration import calibration, expected_calibration_error
from airloop.domain.metrics import METRICS, Floats, all_metrics
from airloop.errors import BadArgument, BadInput

Outcome = Literal["promote", "keep", "reject"]

SAME = 1e-9
"""Scores or gains closer than this are the same: what is left is rounding."""
NAMED = 5
"""Slices with too few rows that the reason names; the decision lists all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the gate demands."""

    metric: str = "roc_auc"
    """The metric that is compared; one of :data:`airloop.domain.metrics.METRICS`."""
    confidence: float = 0.95
    """Of every two-sided interval; slices fail at ``1 - confidence``, all of them together."""
    min_gain: float = 0.0
    """The gain, in the metric's unit, above which the whole interval must lie."""
    slice_tolerance: float = 0.02
    """Loss of a slice, in the metric's unit, that is put up with."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Absolute limits of the challenger: at least, for metrics where more is better, else at most; also ``ece``."""
    min_rows: int = 500
    """Held-out rows."""
    min_class_rows: int = 20
    """Held-out rows of the rarer class, over all and in each slice."""
    min_clusters: int = 5
    """Clusters over all and in each slice."""
    cluster: str = "cluster"
    """What a cluster is, for people: ``day``, ``row``…"""
    min_slice_rows: int = 200
    """Rows of a slice, fewer are not tested."""
    resamples: int = 2000
    """Of the clusters; not drawn with more than :data:`airloop.domain.bootstrap.MANY` of them."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BadArgument(f"metric {self.metric!r} is not known", f"one of {', '.join(METRICS)}")
        unknown = sorted(set(self.floors) - set(METRICS) - {"ece"})
        if unknown:
            raise BadArgument(f"floor for unknown metric {', '.join(unknown)}", f"one of {', '.join(METRICS)}, ece")
        if not 0.5 < self.confidence < 1:
            raise BadArgument(f"confidence {self.confidence} is out of range", "between 0.5 and 1, such as 0.95")
        if self.resamples < 100:
            raise BadArgument(f"{self.resamples} resamples give no stable interval", "at least 100, better 2000")
        for name, value in (("min_gain", self.min_gain), *self.floors.items()):
            if not math.isfinite(value):
                raise BadArgument(f"{name}={value} is not a number")
        if not self.slice_tolerance >= 0:
            raise BadArgument(f"slice_tolerance={self.slice_tolerance}", "a loss that is put up with, 0 or more")


@dataclass(frozen=True, slots=True)
class Floor:
    """An absolute limit and whether the challenger holds it."""

    metric: str
    limit: float
    at_least: bool
    value: float | None
    held: bool

    def __str__(self) -> str:
        sign = ("≥" if self.held else "<") if self.at_least else ("≤" if self.held else ">")
        found = "undefined" if self.value is None else f"{self.value:.4f}"
        return f"{self.metric} {found} {sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Slice:
    """How both models do on the rows with one value of a column."""

    column: str
    value: str
    rows: int
    positives: int
    outcome: Literal["ok", "worse", "too few"]
    champion: float | None = None
    challenger: float | None = None
    difference: Difference | None = None
    p_adjusted: float | None = None
    """Of "the loss is within the tolerance", under Holm's correction over all tested slices."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome with all that it rests on."""

    outcome: Outcome
    reasons: list[str]
    metric: str
    rows: int
    positives: int
    clusters: int
    challenger_metrics: dict[str, float]
    champion_metrics: dict[str, float] | None
    """None: there is no champion."""
    difference: Difference | None
    slices: list[Slice]
    floors: list[Floor]
    calibration: dict[str, Any]
    """By ``challenger`` and ``champion``: error, in the large, reliability bins."""
    policy: Policy

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; what is not defined is null, never NaN."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


def finite(value: Any) -> Any:
    """The same JSON value with every figure that is not finite replaced by None."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def decide(
    *,
    labels: Floats,
    challenger: Floats,
    champion: Floats | None,
    clusters: NDArray[np.intp] | None = None,
    slices: Mapping[str, NDArray[Any]] | None = None,
    policy: Policy,
) -> Decision:
    """
    Decide between two models that scored the same rows.

    :param labels: 0 or 1, shape ``(n,)``.
    :param challenger: its scores, shape ``(n,)``, finite.
    :param champion: the same of the champion; None: there is no champion yet.
    :param clusters: integers that name each row's cluster, shape ``(n,)``; None: rows are independent.
    :param slices: values by column, each of shape ``(n,)``; None stands for a missing value.
    :raises BadInput: labels are not 0 and 1, lengths differ, or a score is not finite.
    """
    labels = np.asarray(labels, dtype=np.float64)
    scores = {"challenger": challenger} if champion is None else {"challenger": challenger, "champion": champion}
    _check(labels, scores)
    clusters_found = len(labels) if clusters is None else len(np.unique(clusters))
    facts: dict[str, Any] = {
        "metric": policy.metric,
        "rows": len(labels),
        "positives": int(labels.sum()),
        "clusters": clusters_found,
        "challenger_metrics": all_metrics(labels, challenger),
        "champion_metrics": None if champion is None else all_metrics(labels, champion),
        "calibration": {name: calibration(labels, values) for name, values in scores.items()},
        "policy": policy,
    }

    def decision(outcome: Outcome, reasons: list[str], **evidence: Any) -> Decision:
        return Decision(outcome, reasons, **facts, **({"difference": None, "slices": [], "floors": []} | evidence))

    missing = _too_few(labels, clusters_found, policy.min_rows, policy)
    if missing:
        without = " and there is no champion yet" if champion is None else ", so the champion stays"
        return decision("keep", [f"held-out rows cannot tell: {missing}{without}"])

    floors = _floors(labels, challenger, policy)
    broken = [floor for floor in floors if not floor.held]
    if broken:
        return decision("reject", [f"the challenger breaks a floor: {floor}" for floor in broken], floors=floors)
    held = f"the challenger holds every floor: {', '.join(map(str, floors))}" if floors else "no floors are set"
    if champion is None:
        return decision("promote", ["there is no champion yet to compare with", held], floors=floors)

    if np.allclose(challenger, champion, rtol=0, atol=SAME):
        return decision("keep", ["both models give the same scores on every held-out row"], floors=floors)
    difference = paired_difference(
        labels,
        champion,
        challenger,
        metric=METRICS[policy.metric],
        clusters=clusters,
        confidence=policy.confidence,
        resamples=policy.resamples,
        seed=seed_of(policy.seed, labels, "" if clusters is None else clusters),
    )
    if difference is None:
        reason = f"{policy.metric} is undefined in too many resamples: too few rows of one class, so the champion stays"
        return decision("keep", [reason], floors=floors)
    found = _slices(labels, champion, challenger, clusters, slices or {}, policy)
    evidence: dict[str, Any] = {"difference": difference, "slices": found, "floors": floors}
    comparison = _compare(policy, facts["challenger_metrics"], facts["champion_metrics"], difference)
    if not (difference.low > policy.min_gain and difference.estimate > policy.min_gain + SAME):
        return decision("keep", [f"{comparison}: not shown to be above {policy.min_gain:g}"], **evidence)
    worse = [s for s in found if s.outcome == "worse"]
    if worse:
        return decision("keep", [*(f"slice {s.column}={s.value} {s.why}" for s in worse), comparison], **evidence)
    reasons = [f"{comparison}: above {policy.min_gain:g}", held]
    tested = sum(s.outcome == "ok" for s in found)
    if found:
        reasons.append(
            f"no slice is shown to lose more than {policy.slice_tolerance:g}: {tested} tested, "
            f"{len(found) - tested} with too few rows{_names_of_too_few(found)}"
        )
    return decision("promote", reasons, **evidence)


def _names_of_too_few(slices: list[Slice]) -> str:
    names = [f"{s.column}={s.value}" for s in slices if s.outcome == "too few"]
    more = ["…"] if len(names) > NAMED else []
    return f" ({', '.join(names[:NAMED] + more)})" if names else ""


def _check(labels: Floats, scores: Mapping[str, Floats]) -> None:
    strange = ~np.isin(labels, (0.0, 1.0))
    if strange.any():
        raise BadInput(
            f"{int(strange.sum()):,} of {len(labels):,} labels are not 0 or 1 (first: row {int(np.argmax(strange))})"
        )
    for name, values in scores.items():
        if len(values) != len(labels):
            raise BadInput(f"the {name} gave {len(values):,} scores for {len(labels):,} rows")
        bad = ~np.isfinite(values)
        if bad.any():
            raise BadInput(
                f"the {name} gave {int(bad.sum()):,} scores of {len(values):,} that are not finite "
                f"(first: row {int(np.argmax(bad))})",
                "a model that cannot score every row cannot be compared; look at its training run",
            )


def _too_few(labels: Floats, clusters: int, min_rows: int, policy: Policy) -> str:
    """Why the rows cannot tell; empty if they can."""
    positives = int(labels.sum())
    rarer = min(positives, len(labels) - positives)
    if len(labels) < min_rows:
        return f"{len(labels):,} rows, at least {min_rows:,} are needed"
    if rarer == 0:
        return f"all {len(labels):,} rows are of one class, {'positive' if positives else 'negative'}"
    if rarer < policy.min_class_rows:
        return f"{rarer} rows of the rarer class, at least {policy.min_class_rows} are needed"
    if clusters < policy.min_clusters:
        return f"{clusters} clusters ({policy.cluster}), at least {policy.min_clusters} are needed"
    return ""


def _floors(labels: Floats, scores: Floats, policy: Policy) -> list[Floor]:
    found = []
    for name, limit in sorted(policy.floors.items()):
        at_least = name != "ece" and METRICS[name].higher_is_better
        if name == "ece":
            value = expected_calibration_error(labels, scores)
        else:
            value = METRICS[name].function(labels, scores, None)
        held = bool(value >= limit if at_least else value <= limit)
        found.append(Floor(name, limit, at_least, value if math.isfinite(value) else None, held))
    return found


def _compare(policy: Policy, ours: dict[str, float], theirs: dict[str, float], difference: Difference) -> str:
    return (
        f"{policy.metric} {ours[policy.metric]:.4f} against the champion's {theirs[policy.metric]:.4f}, "
        f"gain {difference.estimate:+.4f}, {100 * policy.confidence:g}% interval "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    )


def _slices(
    labels: Floats,
    champion: Floats,
    challenger: Floats,
    clusters: NDArray[np.intp] | None,
    columns: Mapping[str, NDArray[Any]],
    policy: Policy,
) -> list[Slice]:
    found: list[Slice] = []
    metric = METRICS[policy.metric]
    for column, values in columns.items():
        texts = np.array(["(none)" if v is None else str(v) for v in values], dtype=str)
        names, codes, counts = np.unique(texts, return_inverse=True, return_counts=True)
        # Every value that has rows enough is tested, however many there are. Leaving out the rarer ones would spare the
        # others little: Holm's limit for z grows from 3.1 to 3.7 when 50 slices become 500.
        by_value = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        for i in np.argsort(-counts, kind="stable"):
            name, inside = str(names[i]), by_value[i]
            own = labels[inside]
            groups = None if clusters is None else clusters[inside]
            size = len(own) if groups is None else len(np.unique(groups))
            why = _too_few(own, size, policy.min_slice_rows, policy)
            difference = None
            if not why:
                difference = paired_difference(
                    own,
                    champion[inside],
                    challenger[inside],
                    metric=metric,
                    clusters=groups,
                    confidence=policy.confidence,
                    resamples=policy.resamples,
                    seed=seed_of(policy.seed, own, column, name),
                )
                why = "" if difference else "too few rows of one class for an interval"
            theirs, ours = (None if why else metric.function(own, x[inside], None) for x in (champion, challenger))
            outcome: Literal["ok", "too few"] = "too few" if why else "ok"
            positives = int(own.sum())
            found.append(Slice(column, name, len(own), positives, outcome, theirs, ours, difference, why=why))
    return _judge(found, policy)


def _judge(found: list[Slice], policy: Policy) -> list[Slice]:
    """The same slices with those marked that are shown to lose more than is tolerated."""
    tested = [(i, s, s.difference) for i, s in enumerate(found) if s.difference is not None]
    adjusted = holm([difference.p_not_below(-policy.slice_tolerance) for _, _, difference in tested])
    for (i, s, difference), p in zip(tested, adjusted, strict=True):
        worse = p <= 1 - policy.confidence
        why = (
            f"loses {-difference.estimate:.4f} [{-difference.high:+.4f}, {-difference.low:+.4f}], "
            f"more than the {policy.slice_tolerance:g} put up with (adjusted p {p:.2g})"
            if worse
            else ""
        )
        found[i] = replace(s, outcome="worse" if worse else "ok", p_adjusted=p, why=why)
    return found
