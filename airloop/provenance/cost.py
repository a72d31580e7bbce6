"""
What runs and model versions took: attempts, added up.

A run took all of its attempts, those too that failed or found their result made already. A model version took what
everything in its lineage took that was made for it, back to the files: for each result the attempt that made it, and
those that failed on the way there. A result that many runs reuse is counted once; the seconds of finding it again are
the reusing run's, not the version's.

Where no runner told what an attempt took, the payload's own record does, without a pool; where nothing did, the attempt
is counted as unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from airloop.contract import RunInfo, attempt_record_path
from airloop.errors import NotFound
from airloop.frame import history
from airloop.provenance.prices import HOUR, Prices
from airloop.records import REDO, SHORTENED, parse, run_folder
from airloop.usage import FOLDER, GOOD, OPEN, Spent, of_run, of_task, spent, spent_by_itself
from airloop.warehouse.artifacts import ArtifactStore

if TYPE_CHECKING:
    from airloop.provenance.lineage import Graph

By = Literal["step", "run", "model", "pool", "day"]
NOT_TOLD = "not told"
"""Pool of attempts of which only the payload's own record is there."""
_ZERO = Decimal(0)


@dataclass(slots=True)
class Sum:
    """What some attempts took together."""

    attempts: int = 0
    unknown: int = 0
    """Attempts of which nobody knows what they took; they are in no other figure."""
    unpriced: int = 0
    """Attempts whose money is not in ``cost``: unknown ones, and those that the prices do not cover."""
    pods: int = 0
    seconds: Decimal = _ZERO
    queue_s: Decimal = _ZERO
    wasted_s: Decimal = _ZERO
    hours: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    """Amount times hours by resource."""
    cost: Decimal = _ZERO
    wasted_cost: Decimal = _ZERO

    def add(self, one: Spent, prices: Prices | None) -> None:
        """Count an attempt."""
        self.attempts += 1
        self.pods += one.pods
        self.queue_s += one.queue_s or _ZERO
        cost = prices.of(one) if prices is not None else None
        self.unpriced += prices is not None and cost is None
        if one.seconds is None:
            self.unknown += 1
            return
        wasted_s = one.wasted_s or _ZERO
        self.seconds += one.seconds
        self.wasted_s += wasted_s
        for resource, amount in (one.amounts or {}).items():
            self.hours[resource] += amount / HOUR
        if cost is not None:
            self.cost += cost
            self.wasted_cost += cost * wasted_s / one.seconds if one.seconds else _ZERO

    @property
    def known(self) -> bool:
        """Whether anything is known of any of them."""
        return self.attempts > self.unknown

    @property
    def wasted_share(self) -> Decimal | None:
        """Of the seconds; None: there are none."""
        return self.wasted_s / self.seconds if self.seconds else None

    def as_json(self, prices: Prices | None) -> dict[str, Any]:
        """Seconds and hours as numbers, money as text, so that no digit is lost."""
        share = self.wasted_share
        found: dict[str, Any] = {
            "attempts": self.attempts,
            "unknown": self.unknown,
            "pods": self.pods,
            "seconds": float(self.seconds) if self.known else None,
            "queue_s": float(self.queue_s),
            "wasted_s": float(self.wasted_s) if self.known else None,
            "wasted_share": None if share is None else round(float(share), 4),
            "hours": {name: round(float(hours), 6) for name, hours in sorted(self.hours.items())},
        }
        if prices is not None:
            priced = self.attempts > self.unpriced
            found |= {
                "cost": f"{self.cost:.6f}" if priced else None,
                "wasted_cost": f"{self.wasted_cost:.6f}" if priced else None,
                "currency": prices.currency,
                "unpriced": self.unpriced,
            }
        return found


def added_up(
    attempts: Iterable[Spent], names: Callable[[Spent], Iterable[str]], prices: Prices | None
) -> tuple[dict[str, Sum], Sum]:
    """
    Sums by name, and of all; an attempt of several names is in each of them, and once in the sum of all.

    :param names: of an attempt.
    """
    found: dict[str, Sum] = defaultdict(Sum)
    total = Sum()
    for one in attempts:
        total.add(one, prices)
        for name in names(one):
            found[name].add(one, prices)
    return dict(sorted(found.items())), total


def name_by(by: By) -> Callable[[Spent], Iterable[str]]:
    """How attempts are grouped; not by model, which they do not know."""
    names: dict[str, Callable[[Spent], str]] = {
        "step": lambda one: one.step,
        "run": lambda one: "/".join(filter(None, (one.run.dag_id or "by hand", one.run.run_id))),
        "pool": lambda one: one.pool or NOT_TOLD,
        "day": lambda one: datetime.fromisoformat(one.started_at).astimezone(UTC).date().isoformat(),
    }
    return lambda one: [names[by](one)]


# -------------------------------------------------------------------- runs


def attempts_of_all(store: ArtifactStore) -> list[Spent]:
    """Every attempt of every run of every loop."""
    dags = {*history.loops(store), *_ids(store, FOLDER, "dag_id")}
    return [one for dag_id in sorted(dags) for one in attempts_of_dag(store, dag_id)]


def attempts_of_dag(store: ArtifactStore, dag_id: str) -> list[Spent]:
    """Every attempt of every run of a loop."""
    folder = FOLDER + run_folder(dag_id).removeprefix("runs")
    runs = {*history.run_ids(store, dag_id), *_ids(store, folder, "run_id")}
    return [one for run_id in sorted(runs) for one in attempts_of_run(store, dag_id, run_id)]


def attempts_of_run(store: ArtifactStore, dag_id: str, run_id: str) -> list[Spent]:
    """
    Every attempt of a run, oldest first: also tries of which nothing is known.

    :raises ContractBroken: a record cannot be read.
    """
    found = [_told(store, usage) for usage in of_run(store.objects, dag_id, run_id)]
    known = {one.attempt for one in found}
    for task in history.run(store, dag_id, run_id).tasks.values():
        if task.record["attempt"] not in known:
            found.append(spent_by_itself(task.record))
    tasks: dict[tuple[str, str, str, int], list[Spent]] = defaultdict(list)
    for one in found:
        tasks[one.task].append(one)
    found += [lost for tries in tasks.values() for lost in _unknown(tries)]
    return sorted(found, key=lambda one: (one.started_at, one.run.try_number))


def _unknown(tries: list[Spent]) -> Iterator[Spent]:
    """Tries of a task of which there is no record, though a later one says that they were made."""
    last = max(tries, key=lambda one: one.run.try_number)
    seen = {one.run.try_number for one in tries}
    for number in range(1, last.run.try_number):
        if number not in seen:
            yield Spent(
                attempt="",
                step=last.step,
                run=replace(last.run, try_number=number),
                status=OPEN,
                started_at=last.started_at,
                pool=last.pool,
            )


def _told(store: ArtifactStore, usage: Mapping[str, Any]) -> Spent:
    if usage["status"] != OPEN:
        return spent(usage)
    name = attempt_record_path(usage["attempt"])
    content = store.objects.read(name)
    return spent(usage, parse(content, store.uri(name)) if content else None)


def _ids(store: ArtifactStore, folder: str, what: str) -> Iterator[str]:
    """Ids that the folders right below a folder stand for."""
    for child in store.folders(folder):
        if SHORTENED not in child:
            yield unquote(child)
            continue
        for name in store.names(f"{folder}/{child}")[:1]:
            yield str(parse(store.read_bytes(name), store.uri(name))["run"][what])


# -------------------------------------------------------------------- models


def versions_of(graph: Graph, model: str = "", version: int | None = None) -> list[str]:
    """
    Ids of registered versions, oldest first: of all models, of one, or one of them.

    :raises NotFound: there is none of the name.
    """
    from airloop.registry.lookup import registered

    known = sorted((name, number) for name, number, _, _ in registered(graph.config))
    found = [f"model:/{n}/{v}" for n, v in known if model in ("", n) and version in (None, v)]
    if model and not found:
        there = sorted({name for name, _ in known} if version is None else {f"{n}/{v}" for n, v in known if n == model})
        wanted = model if version is None else f"{model}/{version}"
        raise NotFound(
            f"no version of {wanted} is registered", f"there is {', '.join(there)}" if there else "none is registered"
        )
    return found


def attempts_of_model(graph: Graph, version: str) -> list[Spent]:
    """
    What a version was made by, oldest first: each attempt once.

    :param version: its id, ``model:/delay/3``.
    :raises ContractBroken: a record or a manifest cannot be read.
    """
    found: dict[str, Spent] = {}
    for node in graph.back(version).of_kind("step"):
        if node.facts.get("gone"):
            continue
        for one in _making(graph, node.facts):
            found[one.name] = one
    return sorted(found.values(), key=lambda one: (one.started_at, one.run.try_number))


def _making(graph: Graph, facts: Mapping[str, Any]) -> list[Spent]:
    """The attempt that made a manifest, and those of its task that failed since the last one that did not."""
    run = RunInfo(**facts["run"])
    told = [_told(graph.store, usage) for usage in of_task(graph.store.objects, run)]
    own = next((one for one in told if one.attempt == facts["attempt"]), None)
    if own is None:
        manifest = parse(graph.store.read_bytes(facts["manifest"]), f"manifest {facts['manifest']}", REDO)
        own = spent_by_itself(manifest, "done")
    if not run.dag_id:
        return [own]
    failed: list[Spent] = []
    earlier = [one for one in told if one.attempt != own.attempt and one.started_at < own.started_at]
    for one in earlier:
        failed = [] if one.status in GOOD else [*failed, one]
    return [*failed, *_unknown([*earlier, own]), own]
