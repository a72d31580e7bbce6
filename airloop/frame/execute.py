"""
One attempt at one step: bind, resolve, look for the key, run, publish, hand back the receipt.

Whatever the step does, the attempt's record says how it ended, as far as the store can be written. What ends the whole
process leaves none: whoever started it sees that and writes it. A second attempt with the same key waits for the first
and then finds its manifest.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airloop.config import Config
from airloop.contract import (
    ENV_RECEIPT,
    ENV_SPAWNED_AT,
    RESERVED_ROLES,
    Call,
    Exit,
    Receipt,
    RunInfo,
    attempt_id,
)
from airloop.errors import AirloopError, BadArgument, BadConfiguration, ContractBroken, TryAgain, classify
from airloop.faults import point
from airloop.frame.archive import archive
from airloop.frame.compare import Side, differences, earlier_attempt, evidence, sentence
from airloop.frame.key import KEY_FORMAT, Code, canonical, changes, code_of, key_of, loaded, replaced_since
from airloop.frame.logs import Redactor
from airloop.frame.manifest import (
    describe_outputs,
    masked,
    outputs_exist,
    plain,
    publish_attempt,
    publish_manifest,
    read_manifest,
)
from airloop.frame.running import Announced
from airloop.frame.step import Step, StepContext, StepResult, resolve
from airloop.frame.tables import describe_tables, replaced_output
from airloop.locks import check_needed, locks_of
from airloop.records import status_of
from airloop.reference import Reference, Scope
from airloop.warehouse.artifacts import ArtifactStore

log = logging.getLogger("airloop.step")


def execute(
    step: Step, call: Call, config: Config, redact: Redactor, *, spawned_at: str | None = None
) -> tuple[Receipt, AirloopError | None]:
    """
    Make one attempt. Never raises for what the step did: the error comes back beside the receipt.

    :param spawned_at: when a runner set out to start this process, ISO 8601; kept in the attempt's record.
    :returns: the receipt, and the error unless the step is done; an unclassified error comes wrapped in
        :class:`AirloopError` with exit code 1.
    """
    if not call.attempt:
        call = _with_attempt(call)
    store = ArtifactStore(config.artifacts)
    clock = _Clock()
    record: dict[str, Any] = {
        "step": step.name,
        "run": asdict(call.run),
        "interval": call.interval.as_json() if call.interval else None,
        "host": socket.gethostname(),
        "spawned_at": spawned_at,
        "started_at": _now(),
    }
    error: AirloopError | None = None
    # Upkeep knows of the attempt until its record lies there.
    with ExitStack() as announcement:
        try:
            point("start")
            announced = announcement.enter_context(Announced(config, call))
            receipt = _attempt(step, call, config, store, redact, clock, record, announced)
        except BaseException as caught:
            if isinstance(caught, KeyboardInterrupt | SystemExit):
                raise
            error = _as_airloop_error(caught, redact)
            receipt = Receipt(call.attempt, status_of(error), key=record.get("key", ""))
        record |= {"finished_at": _now(), "seconds": clock.seconds(), "resources": _resources()}
        if error is not None:
            kind, cause = type(error).__name__, type(error.__cause__ or error).__name__
            record["error"] = {"class": kind, "type": cause, "message": str(error)}
        try:
            uri = publish_attempt(store, receipt, record, redact)
            if error is not None:
                receipt = Receipt(receipt.attempt, receipt.status, receipt.key, uri)
        except (OSError, AirloopError) as cause:
            # The store is full, read-only or away: the step's own error says so already, or becomes this one.
            log.error("the attempt's record cannot be written: %s", cause)
            error = error or classify(cause) or AirloopError(f"the attempt's record cannot be written: {cause}")
            receipt = Receipt(receipt.attempt, status_of(error), receipt.key)
    return receipt, error


def _attempt(
    step: Step,
    call: Call,
    config: Config,
    store: ArtifactStore,
    redact: Redactor,
    clock: _Clock,
    record: dict[str, Any],
    announced: Announced,
) -> Receipt:
    # Before anything large is imported: the less time a deployment has to come in between, the better.
    code = code_of(step)
    record["code"] = {"fingerprint": code.fingerprint}
    if record["spawned_at"] is not None:
        # A process made for this attempt has imported its code since it began, or has it from one that looked then.
        _refuse(step, replaced_since(code, _began()))
    scope = Scope(config, call.interval)
    bound = step.bind(call.arguments, call.interval)
    # A step with an explicit interval resolves its references as of that interval.
    if bound.get("interval") is not None:
        scope = Scope(config, bound["interval"])
    arguments = {name: resolve(value, scope) for name, value in bound.items()}
    announced.resolved()
    key = key_of(step, arguments, code)
    record["key"] = key
    record["arguments"] = {name: canonical(value) for name, value in arguments.items()}
    keyless = [name for name in arguments if not step.parameters[name].in_key]
    if keyless:
        record["keyless"] = keyless
    clock.mark("resolve")
    with _locked(config, key):
        clock.mark("wait")
        # Named by the key, so that what a killed attempt left there goes with the next one.
        workdir = config.home / "work" / f"{step.name.rpartition(':')[2]}-{key[:16]}"
        try:
            _empty(workdir)
            context = StepContext(config, call, key, store, workdir, logging.getLogger("airloop.step"))
            if call.interval != scope.interval:
                context.call = Call(call.step, call.arguments, call.attempt, call.run, scope.interval, call.force)
            reused = "force=True" if call.force else _reusable(step, context, scope, arguments)
            if not isinstance(reused, str):
                clock.mark("reuse")
                manifest, uri, digest = reused
                record["reused"] = {"made_at": manifest["finished_at"], "made_by": manifest["run"]}
                made_by = manifest["run"]
                log.info(
                    "Reused: key %s was made at %s by %s/%s; code, arguments and inputs are the same",
                    key[:12], manifest["finished_at"][:19], made_by["dag_id"] or "cli", made_by["run_id"] or "-",
                )  # fmt: skip
                return Receipt(call.attempt, "reused", key, uri, digest)
            _say_why(store, record, _references("", dict(arguments)), code, reused, redact)
            tree = archive(store, step, arguments, config)
            _refuse_changed(step, code)
            imported = loaded(code)
            clock.mark("archive")
            point("run")
            started_at = _now()
            result = step.function(context, **arguments)
            clock.mark("run")
            _check_result(step, result)
            _refuse_changed(step, code, imported)
            manifest = _manifest(step, call, config, key, arguments, code, tree, result, started_at, clock)
            if point("manifest"):
                return Receipt(call.attempt, "done", key)
            check_needed()
            uri, digest = publish_manifest(store, step.name, key, manifest, redact)
            return Receipt(call.attempt, "done", key, uri, digest)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)


def _check_result(step: Step, result: Any) -> None:
    """
    Refuse a result that nobody could read back; numbers of NumPy become Python's.

    :raises BadArgument: it is none, or a part of it is no JSON, or an output's role is taken.
    """
    if not isinstance(result, StepResult):
        raise BadArgument(f"step {step.name} returned {type(result).__name__}, not a StepResult")
    taken = sorted(RESERVED_ROLES.intersection(result.outputs))
    if taken:
        raise BadArgument(
            f"step {step.name} returned outputs as {', '.join(taken)}: names of other parts of a task's result",
            f"give them roles other than {', '.join(sorted(RESERVED_ROLES))}",
        )
    for name, figure in result.metrics.items():
        if not math.isfinite(figure):
            raise BadArgument(f"step {step.name} measured {name} = {figure}", "leave out what is not a number")
    for part in ("counts", "metrics", "details", "links", "changed", "event"):
        setattr(result, part, plain(getattr(result, part), f"step {step.name} returned a result whose {part}"))


def _refuse_changed(step: Step, code: Code, imported: Collection[str] = ()) -> None:
    """
    Refuse to go on with other code than the key stands for.

    :param imported: modules that were in memory before the step ran: what became of their files did not touch it.
    :raises TryAgain: a module was replaced on disk since.
    """
    try:
        changed = [name for name in changes(code, code_of(step)) if name not in imported]
    except (OSError, SyntaxError, BadConfiguration) as cause:
        # In the middle of a deployment.
        raise TryAgain(f"step {step.name}: its code is being replaced: {cause}", "run the task again") from cause
    _refuse(step, changed)


def _refuse(step: Step, replaced: list[str]) -> None:
    if replaced:
        raise TryAgain(
            f"step {step.name}: its code was replaced while it was at work: {', '.join(replaced)}",
            "the next attempt works with the code that is there then",
        )


def _reusable(
    step: Step, context: StepContext, scope: Scope, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], str, str] | str:
    """The manifest under the key, its address and digest; else why it cannot be reused, empty if there is none."""
    from airloop.frame.manifest import manifest_name
    from airloop.warehouse.artifacts import sha256
    from airloop.warehouse.work import Work

    manifest = read_manifest(context.artifacts, step.name, context.key)
    if manifest is None:
        return ""
    gone = outputs_exist(manifest, scope)
    if gone:
        return f"key {context.key[:12]} made {gone}, which is gone"
    work = Work.of(context.call, context.key, arguments.get("interval"))
    replaced = replaced_output(manifest, context.config, work)
    if replaced:
        return f"key {context.key[:12]} made {replaced}"
    if step.still_there is not None and not step.still_there(context, manifest):
        return f"the effect of key {context.key[:12]} is gone"
    name = manifest_name(step.name, context.key)
    return manifest, context.artifacts.uri(name), sha256(context.artifacts.read_bytes(name))


def _say_why(
    store: ArtifactStore, record: dict[str, Any], inputs: Iterable[str], code: Code, reason: str, redact: Redactor
) -> None:
    """
    Log and record why a task that ran before, for the same interval, is not reused.

    :param inputs: paths of arguments that are references.
    :param reason: if it is not a difference between the two.
    """
    if reason:
        record["not_reused"] = reason
    try:
        before = earlier_attempt(store, RunInfo(**record["run"]), record["interval"])
        if before is not None:
            record["compared_with"] = {"attempt": before["attempt"], "run_id": before["run"]["run_id"]}
        if before is not None and not reason:
            known = {"inputs": inputs, "code": asdict(code)}
            now = Side.of(record | {"arguments": masked(record["arguments"], redact)}, known)
            reason = sentence(differences(Side.of(before, evidence(store, before)), now))
    except Exception as error:  # noqa: BLE001  it only explains; a record that cannot be read must not stop the work
        log.warning("why this is not reused cannot be told: %s: %s", type(error).__name__, redact(str(error)))
    if reason:
        log.info("Not reused: %s", redact(reason))


def _manifest(
    step: Step,
    call: Call,
    config: Config,
    key: str,
    arguments: Mapping[str, Any],
    code: Code,
    tree: str,
    result: StepResult,
    started_at: str,
    clock: _Clock,
) -> dict[str, Any]:
    return {
        "step": step.name,
        "key": key,
        "key_format": KEY_FORMAT,
        "attempt": call.attempt,
        "run": asdict(call.run),
        "interval": canonical(arguments.get("interval")),
        "arguments": {name: canonical(value) for name, value in arguments.items()},
        "inputs": {
            path: {"kind": ref.kind, "reference": str(ref)} for path, ref in _references("", dict(arguments)).items()
        },
        "outputs": describe_outputs(result.outputs),
        "tables": describe_tables(result.outputs, config),
        "counts": result.counts,
        "metrics": result.metrics,
        "details": result.details,
        "links": result.links,
        "changed": result.changed,
        "event": result.event,
        "code": {
            "fingerprint": code.fingerprint,
            "modules": code.modules,
            "libraries": code.libraries,
            "tree": tree,
            # How the step is named in a call, wherever its short name comes from.
            "target": f"{step.module}:{step.function.__name__}",
        },
        "threads": config.cpu_threads(),
        "python": sys.version.split()[0],
        "started_at": started_at,
        "finished_at": _now(),
        "seconds": clock.seconds(),
        "resources": _resources(),
    }


def _references(path: str, value: Any) -> dict[str, Reference]:
    if isinstance(value, Reference):
        return {path: value}
    if isinstance(value, Mapping):
        pairs = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {}
    return {p: r for sub, v in pairs for p, r in _references(sub, v).items()}


def run_from_environment(step: Step, config: Config, redact: Redactor) -> int:
    """
    Serve the contract: make the attempt that the environment asks for, leave the receipt, return the exit code.

    :raises ContractBroken: the environment holds no call or no place for the receipt.
    """
    call = Call.from_environment()
    receipt_path = os.environ.get(ENV_RECEIPT)
    if not receipt_path:
        raise ContractBroken(f"{ENV_RECEIPT} is not set", "start steps through an operator or `airloop run STEP`")
    receipt, error = execute(step, call, config, redact, spawned_at=os.environ.get(ENV_SPAWNED_AT))
    if error is not None:
        report_error(error, redact)
    if not point("receipt"):
        _write_receipt(Path(receipt_path), receipt)
    return int(error.exit_code if error is not None else Exit.DONE)


def report_error(error: AirloopError, redact: Redactor) -> None:
    """Log an error: expected ones in one line, a bug with its traceback."""
    if error.exit_code == 1:
        log.error("%s", redact(str(error)), exc_info=error.__cause__ or error)
    else:
        log.error("%s: %s", type(error).__name__, redact(str(error)))


def _write_receipt(path: Path, receipt: Receipt) -> None:
    # A container's termination message is a mounted file: it can be written, not replaced by rename.
    path.write_text(receipt.to_json())


def _as_airloop_error(caught: BaseException, redact: Redactor) -> AirloopError:
    known = classify(caught)
    if known is caught and isinstance(caught, AirloopError):
        return caught
    error = known or AirloopError(redact(f"{type(caught).__name__}: {caught}"))
    error.__cause__ = caught
    return error


def _with_attempt(call: Call) -> Call:
    attempt = attempt_id(call.run, os.getpid(), time.time_ns())
    return Call(call.step, call.arguments, attempt, call.run, call.interval, call.force)


@contextmanager
def _locked(config: Config, key: str) -> Iterator[None]:
    """One attempt at a key at a time; says what it waits for. The task's own time limit ends the wait."""
    locks, patience_s = locks_of(config), 2.0
    while (held := locks.take(f"steps/{key[:16]}", timeout_s=patience_s)) is None:
        log.info("waiting for another run of the same step (key %s)", key[:12])
        patience_s = 30.0
    try:
        yield
    finally:
        held.release()


def _empty(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _began() -> float:
    """Unix time at which this process was there, by the kernel's ticks: up to one of them late."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) + 1
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def _resources() -> dict[str, float | int]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
        "peak_rss_bytes": max(own.ru_maxrss, children.ru_maxrss) * 1024,
    }


class _Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = round(self._seconds.get(phase, 0.0) + now - self._last, 4)
        self._last = now

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)
