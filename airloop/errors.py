"""
Errors of Airloop. Each says what was found, what was expected and what to do; its type says whether a retry helps.

::

    AirloopError
    ├── Rejected                   exit 65: the same call would fail again
    │   ├── BadArgument            (ValueError)   an argument of a step
    │   │   └── BadInterval                       an interval is malformed, missing or empty
    │   ├── BadInput               (ValueError)   a file, row or field
    │   │   ├── SchemaMismatch                    columns or types differ from the declared ones
    │   │   └── DuplicateKeys                     two rows that are to be written share a key
    │   ├── RejectedRows           (ValueError)   a data gate said no
    │   ├── LeakageFound           (ValueError)   a feature was not known at prediction time
    │   ├── ParityBroken           (ValueError)   what is served online is not what training is given
    │   ├── NotFound               (LookupError)  a table, snapshot, model, file or step is not there
    │   ├── BadConfiguration       (ValueError)   configuration or installation
    │   ├── StoreReadOnly          (PermissionError)
    │   ├── StaleRun                              an older interval came after a newer one
    │   └── ContractBroken         (RuntimeError) the payload was not started as the contract says
    ├── TryAgain                   exit 75: something outside may recover
    │   ├── Unreachable            (ConnectionError)
    │   ├── CommitConflict                        another writer kept winning
    │   │   └── NotDescendant                     `main` moved: the audited snapshot does not build on it
    │   ├── StoreBusy              (TimeoutError) a lock was not had in time
    │   ├── StoreFull              (OSError)
    │   └── InfrastructureFailure                 what ended the process, not what it did
    │       ├── OutOfMemory        (MemoryError)
    │       ├── TimedOut           (TimeoutError)
    │       ├── ProcessLost                       ended by a signal that nobody here sent
    │       │   └── PodLost                       its pod was evicted, preempted or deleted, or its node was lost
    │       ├── NotStarted                        its pod got no node, image or quota in time, or could not be started
    │       └── ResultLost                        ended well, but its manifest is not there
    ├── CheckNotEvaluated          (RuntimeError) exit 1: a check broke; it neither passed nor rejected
    └── StepSkipped                exit 99: the DAG's author asked for it
"""

from __future__ import annotations

import errno
import socket
import sqlite3
from typing import ClassVar


class AirloopError(Exception):
    """Base of all errors that Airloop raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, advice: str = "") -> None:
        self.found = found
        self.advice = advice
        super().__init__(found, advice)

    def __str__(self) -> str:
        return f"{self.found.rstrip('.')}; {self.advice}" if self.advice else self.found


class Rejected(AirloopError):
    """The same call would fail again: a person has to change something."""

    exit_code = 65


class BadArgument(Rejected, ValueError):
    """An argument of a step is missing, unknown, of the wrong type or out of range."""


class BadInterval(BadArgument):
    """An interval is malformed, missing or empty."""


class BadInput(Rejected, ValueError):
    """A file, row or field cannot be used as it is."""


class SchemaMismatch(BadInput):
    """Columns or types differ from the declared ones in a way that no evolution rule allows."""


class DuplicateKeys(BadInput):
    """Two rows that are to be written share a key."""


class RejectedRows(Rejected, ValueError):
    """A data gate said no."""


class LeakageFound(Rejected, ValueError):
    """A feature's value was not yet known at the time of prediction."""


class ParityBroken(Rejected, ValueError):
    """A value that is served online is not what training is given."""


class NotFound(Rejected, LookupError):
    """A table, snapshot, model, file or step is not there."""


class BadConfiguration(Rejected, ValueError):
    """A setting or the installation is wrong."""


class StoreReadOnly(Rejected, PermissionError):
    """A place that has to be written cannot be."""


class StaleRun(Rejected):
    """A run of an older interval came after a newer one and must not overwrite its effect."""


class ContractBroken(Rejected, RuntimeError):
    """The payload was not started as :mod:`airloop.contract` says."""


class TryAgain(AirloopError):
    """Something outside the step failed and may recover."""

    exit_code = 75


class Unreachable(TryAgain, ConnectionError):
    """A service did not answer."""


class CommitConflict(TryAgain):
    """Other writers kept winning the commit."""


class NotDescendant(CommitConflict):
    """``main`` moved, and the snapshot to publish does not build on it: rebase and validate again."""


class StoreBusy(TryAgain, TimeoutError):
    """A lock was not had in time."""


class StoreFull(TryAgain, OSError):
    """No space is left where something has to be written."""


class InfrastructureFailure(TryAgain):
    """What ended the step's process, as opposed to what the step did."""


class OutOfMemory(InfrastructureFailure, MemoryError):
    """The process was ended because it went over its memory limit, or the machine ran out."""


class TimedOut(InfrastructureFailure, TimeoutError):
    """The process was ended because it ran over its time limit."""


class ProcessLost(InfrastructureFailure):
    """The process was ended by a signal that Airloop did not send."""


class PodLost(ProcessLost):
    """The process's pod was evicted, preempted or deleted, or its node was lost."""


class NotStarted(InfrastructureFailure):
    """The process's pod got no node, image or quota in time, or could not be started on its node."""


class ResultLost(InfrastructureFailure):
    """The process ended with success, but its manifest is not there."""


class CheckNotEvaluated(AirloopError, RuntimeError):
    """A check could not be evaluated: the rows are neither accepted nor rejected."""


class StepSkipped(AirloopError):
    """The DAG's author asked the step to skip in this situation."""

    exit_code = 99


def classify(error: BaseException) -> AirloopError | None:
    """
    The Airloop error that stands for a foreign one, or None if it has no known meaning.

    Only faults of the surroundings are classified: a full or read-only disk, a locked SQLite, a service that does not
    answer, memory. A bug stays an unclassified error with its traceback.

    What was merely being handled when an error came is looked at only for faults that may pass: whatever the error
    itself is, another try may do without both. It never says that a retry is in vain.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    caused = True
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        # An error of ours that was merely being handled says nothing about the one that came then.
        if isinstance(current, AirloopError):
            if caused:
                return current
        elif (found := _of_surroundings(current)) is not None and (caused or isinstance(found, TryAgain)):
            return found
        # SQLAlchemy wraps the driver's error without always chaining it.
        cause = getattr(current, "orig", None) or current.__cause__
        if cause is None and not current.__suppress_context__:
            caused, cause = False, current.__context__
        current = cause
    return None


def _of_surroundings(error: BaseException) -> AirloopError | None:
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no space left: {text}", "free space or move AIRLOOP_HOME, then run the task again")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return StoreReadOnly(f"cannot write: {text}", "give the worker's user write access, or move AIRLOOP_HOME")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"no access: {text}", "give the worker's user access to it")
    if isinstance(error, sqlite3.OperationalError):
        return _of_sqlite(error)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return Unreachable(f"a service does not answer: {text}", "see `airloop doctor`")
    if isinstance(error, MemoryError):
        return OutOfMemory(f"out of memory: {text}", "raise the task's memory or lower rows_per_chunk")
    return None


def _of_sqlite(error: sqlite3.OperationalError) -> AirloopError | None:
    text = str(error)
    if "locked" in text or "busy" in text:
        return StoreBusy(f"SQLite is locked: {text}", "another process holds it; the task can be run again")
    if "readonly" in text:
        return StoreReadOnly(f"SQLite: {text}", "give the worker's user write access to AIRLOOP_HOME")
    # The index of its write-ahead log is mapped memory: a full disk shows there as an I/O error.
    if "full" in text or getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR_SHM"):
        return StoreFull(f"no space left: SQLite: {text}", "free space, then run the task again")
    return None
