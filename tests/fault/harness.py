"""
The loop, broken at every point: what an undisturbed run does is recorded, then each of its points is struck.

``python -m tests.fault.harness --all`` strikes every point of every step; ``--sample N --seed S`` some of them. For
each: the home is put back as it was before the step, the step is run with the fault, then run again as Airflow would
retry it, and what the home holds then is compared with the undisturbed run, while a process of its own reads tables,
online values and aliases all the while.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

from airloop.contract import Exit, Interval
from tests.fault.flights_loop import FIRST, REPOSITORY, SECOND, Home, Outcome, filled, step_server, write_data

ACTIONS = ("kill", "full", "locked")
"""What is done at points: SIGKILL at all of them, a full disk and a locked database before a write."""
_EQUAL_TO_A_WRITE = ("artifact:", "commit:", "publish:")
"""Points named by the code right at a write that is a point by itself."""


@dataclass(frozen=True)
class Strike:
    """One fault at one point of one task."""

    task: Task
    action: str
    point: str

    def __str__(self) -> str:
        return f"{self.task.interval_name} {self.task.name}: {self.action}@{self.point}"


@dataclass(eq=False)
class Task:
    """One task of the undisturbed run."""

    interval: Interval
    name: str
    step: str
    call: dict[str, Any]
    before: Path
    """Copy of the home as it was before."""
    points: list[str]
    """All that were reached, in order; each ends with ``:N``."""
    state_before: dict[str, Any]
    state_after: dict[str, Any]

    @property
    def interval_name(self) -> str:
        return "first" if self.interval == FIRST else "second"

    def strikes(self, actions: Sequence[str] = ACTIONS) -> list[Strike]:
        """Everything that can be done to it."""
        found = []
        for point in self.points:
            if point.startswith(_EQUAL_TO_A_WRITE):
                continue
            name = point.rpartition(":")[0]
            if "kill" in actions:
                found.append(Strike(self, "kill", point))
            if "full" in actions and name.endswith(":before"):
                found.append(Strike(self, "full", point))
            if "locked" in actions and name.startswith("sql:") and name.endswith(":before"):
                found.append(Strike(self, "locked", point))
        return found


@dataclass
class Verdict:
    """What came of a strike."""

    strike: Strike
    lost: list[str] = field(default_factory=list)
    """What of the undisturbed run is missing, different, or was seen half done."""
    doubled: list[str] = field(default_factory=list)
    """What there is more of."""
    missed: str = ""
    """Why nothing was struck: the point was not reached."""
    looks: int = 0
    """How often the readers looked."""

    @property
    def survived(self) -> bool:
        return not (self.lost or self.doubled or self.missed)

    def __str__(self) -> str:
        words = [f"lost {line}" for line in self.lost] + [f"doubled {line}" for line in self.doubled]
        return f"{self.strike}: {'; '.join(words) or self.missed or 'survived'}"


@dataclass
class World:
    """A home in which the loop ran undisturbed, task by task, and what it was like before and after each."""

    home: Home
    tasks: list[Task]

    @classmethod
    def record(cls, home: Home, folder: Path, intervals: Iterable[Interval] = (FIRST, SECOND)) -> World:
        """
        Run the loop undisturbed and note every point that each task reaches.

        :param folder: for copies of the home.
        """
        tasks: list[Task] = []
        trace = folder / "trace"
        home.folder.mkdir(parents=True)
        state = home.full_state()
        for interval in intervals:
            results: dict[str, Any] = {}
            for name, (step, arguments) in home.tasks().items():
                before = folder / f"{len(tasks):03}"
                shutil.copytree(home.folder, before)
                call = filled(arguments, results)
                trace.write_text("")
                outcome = home.run(step, call, interval, fault_trace=str(trace))
                assert outcome.code == 0, f"{name}: {outcome.log}"
                results[name] = outcome.result
                after = home.full_state()
                points = trace.read_text().splitlines()
                tasks.append(Task(interval, name, step, call, before, points, state, after))
                state = after
        return cls(home, tasks)

    def strikes(self, actions: Sequence[str] = ACTIONS, *, every_task: bool = True) -> list[Strike]:
        """
        All that can be done to the loop.

        :param every_task: else, of tasks that are the same step in the same interval, each point once.
        """
        found = [s for task in self.tasks for s in task.strikes(actions)]
        if every_task:
            return found
        once: dict[tuple[str, ...], Strike] = {}
        for strike in found:
            task = strike.task
            once.setdefault((task.interval_name, task.step, strike.action, _generic(strike)), strike)
        return list(once.values())

    def back_to(self, before: Path) -> None:
        """The home as it was, at the same place: tables know their files by path."""
        shutil.rmtree(self.home.folder)
        shutil.copytree(before, self.home.folder)

    def strike(self, strike: Strike) -> Verdict:
        """Put the home back, strike, run the task again, compare."""
        task, home, verdict = strike.task, self.home, Verdict(strike)
        self.back_to(task.before)
        with home.read_all_the_while() as readers:
            struck = home.run(task.step, task.call, task.interval, fault=f"{strike.action}@{strike.point}")
            verdict.missed = _missed(strike, struck)
            again = home.run(task.step, task.call, task.interval)
        verdict.looks = readers.get("looks", 0)
        if again.code != 0:
            verdict.lost.append(f"the task: run again, it ended with {again.code}: {again.error or again.log}")
            return verdict
        verdict.lost += _named(strike, struck)
        if list((home.folder / "work").iterdir()):
            verdict.lost.append("its working folder is left behind")
        _compare(task.state_after, home.full_state(), verdict)
        verdict.lost += seen_wrong(task, readers)
        return verdict

    def journey(self, seed: int) -> list[Verdict]:
        """The whole loop from its beginning, each task killed at a point of its own before it is run again."""
        draw = random.Random(seed)
        self.back_to(self.tasks[0].before)
        verdicts = []
        results: dict[tuple[Interval, str], Any] = {}
        arguments = self.home.tasks()
        for task in self.tasks:
            known = {name: result for (interval, name), result in results.items() if interval == task.interval}
            call = filled(arguments[task.name][1], known)
            strike = draw.choice(task.strikes(["kill"]))
            struck = self.home.run(task.step, call, task.interval, fault=f"kill@{strike.point}")
            verdict = Verdict(strike, missed=_missed(strike, struck))
            verdicts.append(verdict)
            again = self.home.run(task.step, call, task.interval)
            if again.code != 0:
                verdict.lost.append(f"the task: run again, it ended with {again.code}: {again.error or again.log}")
                return verdicts
            results[task.interval, task.name] = again.result
        _compare(self.tasks[-1].state_after, self.home.full_state(), verdicts[-1])
        return verdicts


def _generic(strike: Strike) -> str:
    """A point without the names of this task's own table, view or run."""
    return "/".join(p for p in strike.point.split("/") if not p.startswith(("flights_", "20")))


def _missed(strike: Strike, struck: Outcome) -> str:
    if strike.action == "kill":
        return "" if struck.code == -SIGKILL else f"not reached: ended with {struck.code}"
    # A write that may fail without harm, such as of a cache, does not end the step.
    return ""


def _named(strike: Strike, struck: Outcome) -> list[str]:
    """A disk or database that cannot be written to is called so, and can be tried again."""
    if strike.action == "kill" or struck.code in (Exit.DONE, Exit.TRY_AGAIN):
        return []
    return [f"the name of its error: it ended with {struck.code}, {struck.error or struck.log}"]


def _compare(expected: Any, found: Any, verdict: Verdict, path: str = "") -> None:
    """Note every difference: more of something is doubled, anything else lost."""
    if expected == found:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() | found.keys()):
            _compare(expected.get(name), found.get(name), verdict, f"{path}/{name}" if path else name)
        return
    more = (isinstance(expected, int) and isinstance(found, int) and found > expected) or expected is None
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) == len(found):
            expected, found = _different(expected, found)
        more = len(found) > len(expected)
    line = f"{path}: {_short(found)} instead of {_short(expected)}"
    (verdict.doubled if more else verdict.lost).append(line)


def _different(expected: list[Any], found: list[Any]) -> tuple[list[Any], list[Any]]:
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a != b]
    a, b = pairs[0]
    if isinstance(a, str) and isinstance(b, str):
        # Two long texts: from shortly before where they part.
        start = max(next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0) - 60, 0)
        return [a[start:]], [b[start:]]
    return [a], [b]


def _short(value: Any, limit: int = 300) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def seen_wrong(task: Task, readers: dict[str, Any]) -> list[str]:
    """What readers saw that no undisturbed run would have shown them, or that went back."""
    if "error" in readers:
        return [f"a reader: {readers['error']}"]
    wrong = []
    for name, states in readers["seen"].items():
        allowed = _states_of(task, name)
        at = 0
        for state in states:
            if state not in allowed[at:]:
                wrong.append(f"a reader saw {name} at {_short(states)}; it goes {_short(allowed)}")
                break
            at += allowed[at:].index(state)
    return wrong


def _states_of(task: Task, name: str) -> list[Any]:
    """The states of a table, of online values, or of an alias, in their order."""
    before, after = task.state_before, task.state_after
    if name.endswith(" is there"):
        return [True]
    if "@" in name:
        model, _, alias = name.partition("@")
        return [s.get("aliases", {}).get(model, {}).get(alias) for s in (before, after)]
    if name.startswith("online "):
        ends = [s[name]["content"] if s.get(name, {}).get("rows") else None for s in (before, after)]
        return ends if name in before else [None, *ends]
    was = (before.get(name) or {}).get("main was", [])
    return [was[-1] if was else None, *after[name]["main was"][len(was) :]]


@dataclass
class Tally:
    """Points tried, survived, lost, doubled."""

    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    @property
    def failures(self) -> list[Verdict]:
        return [v for v in self.verdicts if not v.survived]

    def __str__(self) -> str:
        tried = len(self.verdicts)
        survived = sum(v.survived for v in self.verdicts)
        lost = sum(bool(v.lost) for v in self.verdicts)
        doubled = sum(bool(v.doubled) for v in self.verdicts)
        missed = sum(bool(v.missed) for v in self.verdicts)
        looks = sum(v.looks for v in self.verdicts)
        words = f"points tried {tried:,} / survived {survived:,} / lost {lost:,} / doubled {doubled:,}"
        return f"{words} (not reached {missed:,}; readers looked {looks:,} times)"

    def by(self, part: str) -> str:
        """A table for people: by ``step`` or ``action``."""
        of = {"step": lambda v: v.strike.task.step, "action": lambda v: v.strike.action}[part]
        tried, survived = Counter(map(of, self.verdicts)), Counter(of(v) for v in self.verdicts if v.survived)
        return "\n".join(f"  {name:20} tried {tried[name]:5,}  survived {survived[name]:5,}" for name in sorted(tried))


def main(arguments: Sequence[str] | None = None) -> int:
    """:returns: 0 if everything survived, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.harness", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every point of every task, instead of a sample")
    parser.add_argument("--once", action="store_true", help="of tasks that are the same step, each point once")
    parser.add_argument("--sample", type=int, default=40, help="how many points, drawn at random")
    parser.add_argument("--seed", type=int, default=None, help="of the draw; default: another one each time")
    parser.add_argument("--actions", default=",".join(ACTIONS), help="some of kill,full,locked")
    parser.add_argument("--only", default="", help="points whose description contains this")
    parser.add_argument("--journeys", type=int, default=1, help="whole loops with a kill in every task")
    parser.add_argument("--list", action="store_true", help="print the points and strike none")
    parser.add_argument("--folder", type=Path, help="where homes are; default a temporary folder")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="airloop-faults-", dir=given.folder))
    begun = time.monotonic()
    try:
        code = folder / "code"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "airloop", code / "airloop", ignore=ignored)
        shutil.copytree(REPOSITORY / "feature_repo", folder / "repo", ignore=ignored)
        with step_server(code) as server:
            home = Home(server, folder / "home", write_data(folder / "data"), folder / "repo")
            world = World.record(home, folder)
            strikes = [
                s for s in world.strikes(given.actions.split(","), every_task=not given.once) if given.only in str(s)
            ]
            print(f"seed {seed}; {len(strikes):,} strikes at the points of {len(world.tasks)} tasks", flush=True)
            if given.list:
                print(*strikes, sep="\n")
                return 0
            if not given.all:
                strikes = random.Random(seed).sample(strikes, min(given.sample, len(strikes)))
            tally = Tally()
            for strike in strikes:
                _tell(tally, world.strike(strike))
            for n in range(given.journeys):
                for verdict in world.journey(seed + n):
                    _tell(tally, verdict)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(tally.by("action"), tally.by("step"), sep="\n")
    print(f"{tally}; seed {seed}, {time.monotonic() - begun:,.0f} s")
    return 1 if tally.failures else 0


def _tell(tally: Tally, verdict: Verdict) -> None:
    tally.add(verdict)
    if not verdict.survived:
        print(verdict, flush=True)
    elif len(tally.verdicts) % 50 == 0:
        print(tally, flush=True)


if __name__ == "__main__":
    sys.exit(main())
