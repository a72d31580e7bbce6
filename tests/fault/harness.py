"""
The loop, broken at every point: what an undisturbed run does is recorded, then each of its points is struck.

``python -m tests.fault.harness --all`` strikes every point of every step; ``--sample N --seed S`` some of them. For
each: the home is put back as it was before the step, the step is run with the fault, then run again as Airflow would
retry it, and what the home holds then is compared with the undisturbed run, while a process of its own reads tables,
online values and aliases all the while.
"""

from __future__ import annotations

import argparse
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
from airloop.errors import AirloopError, OutOfMemory, ProcessLost, ResultLost, TimedOut
from tests.fault.compare import differences, seen_wrong
from tests.fault.flights_loop import FIRST, REPOSITORY, SECOND, Home, Outcome, filled, step_server, write_data

AT_POINTS = ("kill", "full", "locked")
"""What is done at every point: SIGKILL at all of them, a full disk and a locked database before a write."""
BY_RUNNER: dict[str, type[AirloopError]] = {"oom": OutOfMemory, "hang": TimedOut, "lose": ResultLost}
"""What a task's runner has to find, name and end, and the name of it: at a step's start and at one of its writes."""
JUDGED = "killed-judged"
"""SIGKILL while the attempt's end is put on record; what its runner takes for done is not run again."""
ACTIONS = (*AT_POINTS, *BY_RUNNER, JUDGED)
MEMORY_MB = 1024
PATIENCE_S = (6.0, 25.0, 100.0)
"""Limits of an attempt that is to hit them; the longer ones are for a machine on which it did not get so far."""
_OF_RECORDS = ("rename:artifacts/runs/", "rename:artifacts/intervals/", "rename:artifacts/attempts/", "receipt")
_EQUAL_TO_A_WRITE = ("artifact:", "commit:", "publish:")
"""Points named by the code right at a write that is a point by itself."""


@dataclass(frozen=True)
class Strike:
    """One fault at one point of one task."""

    task: Task
    action: str
    point: str

    @property
    def fault(self) -> str:
        """As ``AIRLOOP_FAULT`` has it."""
        return f"{'kill' if self.action == JUDGED else self.action}@{self.point}"

    def __str__(self) -> str:
        return f"{self.task.interval_name} {self.task.name}: {self.fault}"


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
            if JUDGED in actions and name.startswith(_OF_RECORDS):
                found.append(Strike(self, JUDGED, point))
            if "full" in actions and name.endswith(":before"):
                found.append(Strike(self, "full", point))
            if "locked" in actions and name.startswith("sql:") and name.endswith(":before"):
                found.append(Strike(self, "locked", point))
        writes = [point for point in self.points if ":before:" in point and not point.startswith(_EQUAL_TO_A_WRITE)]
        for point in ("run:1", writes[len(writes) // 2]):
            # A task that reuses what is there does not run.
            if point in self.points:
                found += [Strike(self, action, point) for action in ("oom", "hang") if action in actions]
        if "lose" in actions:
            found += [Strike(self, "lose", point) for point in ("manifest:1", "receipt:1") if point in self.points]
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

    def note(self, lost: list[str], doubled: list[str]) -> None:
        self.lost += lost
        self.doubled += doubled

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

    def plain_state_after(self, interval: Interval) -> dict[str, Any]:
        """What ``Home.state`` says at the end of an interval."""
        last = [task for task in self.tasks if task.interval == interval][-1].state_after
        return {
            name: {k: v for k, v in value.items() if k != "main was"} if isinstance(value, dict) else value
            for name, value in last.items()
            if not name.startswith("said by ")
        }

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
        for patience_s in PATIENCE_S:
            verdict = self._strike(strike, patience_s)
            if not (strike.action == "hang" and verdict.missed):
                break
        return verdict

    def _strike(self, strike: Strike, patience_s: float) -> Verdict:
        task, home, verdict = strike.task, self.home, Verdict(strike)
        self.back_to(task.before)
        # What the struck attempt reached, the point at which it was injured included.
        trace = home.folder.with_name("struck")
        trace.write_text("")
        again: Outcome | None = None
        with home.read_all_the_while() as readers:
            if strike.action in (*BY_RUNNER, JUDGED):
                done, code = self._strike_by_runner(strike, verdict, trace, patience_s)
            else:
                struck = home.run(task.step, task.call, task.interval, fault=strike.fault, fault_trace=str(trace))
                verdict.lost += _named(strike, struck)
                done, code = False, struck.code
            verdict.missed = _missed(strike, code, trace.read_text().splitlines())
            if not (done and strike.action == JUDGED):
                again = home.run(task.step, task.call, task.interval)
        verdict.looks = readers.get("looks", 0)
        if again is not None and again.code != 0:
            verdict.lost.append(f"the task: run again, it ended with {again.code}: {again.error or again.log}")
            return verdict
        if list((home.folder / "work").iterdir()):
            verdict.lost.append("its working folder is left behind")
        verdict.note(*differences(task.state_after, home.full_state()))
        verdict.lost += seen_wrong(task.state_before, task.state_after, readers)
        return verdict

    def _strike_by_runner(self, strike: Strike, verdict: Verdict, trace: Path, patience_s: float) -> tuple[bool, int]:
        """
        Have the attempt made by a runner, which has to end it and to say why.

        :returns: whether it says: done; and the exit code.
        """
        task = strike.task
        faults = {"fault": strike.fault, "fault_oom_mb": str(4 * MEMORY_MB), "fault_trace": str(trace)}
        limits = {"oom": {"memory_mb": MEMORY_MB}, "hang": {"timeout_s": patience_s}}.get(strike.action, {})
        outcome = self.home.run_by_runner(task.step, task.call, task.interval, limits, **faults)
        # An attempt is found by its record, or by that of its task, which comes first; without its receipt too.
        of_task, *later = (strike.point.startswith(name) for name in _OF_RECORDS)
        on_record = any(later) or (of_task and ":after:" in strike.point)
        of_strike: type[AirloopError] = BY_RUNNER.get(strike.action, ProcessLost)
        expected = None if on_record else of_strike
        if (type(outcome.error) if outcome.error else None) is not expected:
            verdict.lost.append(f"the name of what ended it: {outcome.error!r}, exit code {outcome.exit_code}")
        return outcome.error is None, outcome.exit_code

    def journey(self, seed: int, kills: int = 3) -> list[Verdict]:
        """
        The whole loop from its beginning, each task killed again and again before it may end; its last state is that
        of the undisturbed run.

        :param kills: points drawn for each task; an attempt that finds the work of an earlier one may not reach its
            own, all but the first.
        """
        draw = random.Random(seed)
        self.back_to(self.tasks[0].before)
        verdicts = []
        results: dict[tuple[Interval, str], Any] = {}
        arguments = self.home.tasks()
        for task in self.tasks:
            known = {name: result for (interval, name), result in results.items() if interval == task.interval}
            call = filled(arguments[task.name][1], known)
            for n in range(kills):
                strike = draw.choice(task.strikes(["kill"]))
                struck = self.home.run(task.step, call, task.interval, fault=strike.fault)
                missed = _missed(strike, struck.code)
                if n == 0 or not missed:
                    verdicts.append(Verdict(strike, missed=missed))
            again = self.home.run(task.step, call, task.interval)
            if again.code != 0:
                verdicts[-1].lost.append(f"the task: run again, it ended with {again.code}: {again.error or again.log}")
                return verdicts
            results[task.interval, task.name] = again.result
        if list((self.home.folder / "work").iterdir()):
            verdicts[-1].lost.append("working folders are left behind")
        verdicts[-1].note(*differences(self.tasks[-1].state_after, self.home.full_state()))
        return verdicts


def draw_sample(strikes: Sequence[Strike], count: int, seed: int) -> list[Strike]:
    """Some strikes at random: one at each step, as far as ``count`` goes, then any."""
    draw = random.Random(seed)
    shuffled = draw.sample(strikes, len(strikes))
    of_each_step = list({strike.task.step: strike for strike in shuffled}.values())
    rest = [strike for strike in shuffled if strike not in of_each_step]
    return [*of_each_step, *rest][:count]


def _generic(strike: Strike) -> str:
    """A point without the names of this task's own table, view or run."""
    return "/".join(p for p in strike.point.split("/") if not p.startswith(("flights_", "20")))


def _missed(strike: Strike, code: int, reached: Sequence[str] = ()) -> str:
    """
    Why a strike proves nothing: the fault did not happen. Empty: it did.

    :param reached: points of the attempt; a process that was killed needs none to tell.
    """
    killed = strike.action in ("kill", JUDGED)
    # A write that may fail without harm, such as of a cache, does not end the step: its point tells.
    happened = code == -SIGKILL if killed else strike.point in reached
    # This cache leaves out files that were written a moment ago, so time decides whether it is written to.
    by_time = strike.point.startswith("sql:file-digests.db") and code == Exit.DONE
    return "" if happened or by_time else f"not reached: ended with {code}"


def _named(strike: Strike, struck: Outcome) -> list[str]:
    """A disk or database that cannot be written to is called so, and can be tried again."""
    if strike.action == "kill" or struck.code in (Exit.DONE, Exit.TRY_AGAIN):
        return []
    return [f"the name of its error: it ended with {struck.code}, {struck.error or struck.log}"]


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
    parser.add_argument("--actions", default=",".join(ACTIONS), help=f"some of {','.join(ACTIONS)}")
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
                strikes = draw_sample(strikes, given.sample, seed)
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
