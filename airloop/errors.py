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
import re
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

    Only faults of the surroundings are classified: a full or read-only disk or bucket, a locked SQLite, a service that
    does not answer, memory. A bug stays an unclassified error with its traceback.

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
    if (found := _of_bucket(error, text)) is not None:
        return found
    if type(error).__module__.partition(".")[0] in ("psycopg", "psycopg2"):
        return _of_postgres(error)
    if type(error).__module__ == "pyiceberg.exceptions":
        return _of_catalog(error, text)
    unanswered = {"ConnectionError", "Timeout"} & {kind.__name__ for kind in type(error).__mro__}
    if unanswered and type(error).__module__ == "requests.exceptions":
        return Unreachable(f"a service does not answer: {text}", "see `airloop doctor`")
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return Unreachable(f"a service does not answer: {text}", "see `airloop doctor`")
    if isinstance(error, MemoryError):
        return OutOfMemory(f"out of memory: {text}", "raise the task's memory or lower rows_per_chunk")
    return None


def _of_catalog(error: BaseException, text: str) -> AirloopError | None:
    """Of an Iceberg REST catalog, by the names of PyIceberg's errors."""
    said = f"the Iceberg catalog: {' '.join(text.split())}"
    name = type(error).__name__
    if name in ("UnauthorizedError", "ForbiddenError", "OAuthError", "AuthorizationExpiredError"):
        return BadConfiguration(said, "correct the credentials, PYICEBERG_CATALOG__AIRLOOP__… or AWS_…")
    if name in ("ServiceUnavailableError", "ServerError", "TooManyRequestsError"):
        return Unreachable(said, "the task can be run again")
    if name == "CommitStateUnknownException":
        return Unreachable(
            f"{said}: nobody knows whether it was done", "run the task again: it finds what it committed"
        )
    return None


_OF_BUCKET: tuple[tuple[str, type[AirloopError], str, str], ...] = (
    ("NO_SUCH_BUCKET|NoSuchBucket", BadConfiguration, "there is no such bucket", "make it, or correct the address"),
    (
        "INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|ExpiredToken|InvalidToken"
        "|RequestTimeTooSkewed|REQUEST_EXPIRED",
        BadConfiguration,
        "the store does not accept the credentials",
        "correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or this machine's clock",
    ),
    (
        "QuotaExceeded|StorageFull|InsufficientStorage|HTTP (status )?507",
        StoreFull,
        "the store is full",
        "free space or raise the quota, then run the task again",
    ),
    (
        "ACCESS_DENIED|HTTP (status )?40[13]",
        StoreReadOnly,
        "no access",
        "see that the credentials are right, and that their user may list, get, put and delete below the prefix",
    ),
    (
        "NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT"
        "|HTTP (status )?(408|429|5[0-9][0-9])|error for HTTP ",
        Unreachable,
        "the store does not answer",
        "start it or correct AWS_ENDPOINT_URL_S3; the task can be run again",
    ),
    (
        "Path does not exist|HTTP 404",
        NotFound,
        "a file of a table is not there",
        "was it removed by age, or is AWS_ENDPOINT_URL_S3 another store's?",
    ),
)
"""What Arrow or DuckDB says of a request to a bucket, and what it means; the first that is found counts."""


def _of_bucket(error: BaseException, text: str) -> AirloopError | None:
    # They give words only, and what DuckDB says may come through Arrow. No credentials are in it.
    said_so = any(word in text for word in ("AWS Error ", "Path does not exist", "HTTP Error: ", "error for HTTP "))
    duckdb = "duckdb" in type(error).__module__ and type(error).__name__ in ("HTTPException", "IOException")
    if not (duckdb or (isinstance(error, OSError) and said_so)):
        return None
    said = " ".join(text.partition("Authentication Failure")[0].split())
    for pattern, kind, found, advice in _OF_BUCKET:
        if re.search(pattern, said):
            return kind(f"{found}: {said}", advice)
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


_REFUSED = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry", "certificate")
"""In what PostgreSQL says when it refuses a connection for good. It gives no code for that."""


def _of_postgres(error: BaseException) -> AirloopError | None:
    # Told by their codes, so that nobody has to import the driver. Their texts hold no password.
    code = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
    text = f"PostgreSQL: {' '.join(str(error).split())}"
    names = {kind.__name__ for kind in type(error).__mro__}
    if code[:2] == "28" or (not code and "OperationalError" in names and any(word in text for word in _REFUSED)):
        return BadConfiguration(text, "correct the address, its user and its password; see `airloop doctor`")
    if (code[:2] in ("08", "57") and code != "57014") or code == "53300" or (not code and "OperationalError" in names):
        return Unreachable(text, "start it, or wait until it is there again; see `airloop doctor`")
    if "InterfaceError" in names and "closed" in text:
        return Unreachable(text, "the connection was lost; the task can be run again")
    if code in ("40001", "40P01", "55P03", "57014"):
        return StoreBusy(text, "others were at it at the same time; the task can be run again")
    if code in ("53100", "53200", "53400"):
        return StoreFull(text, "free space or raise the server's limit, then run the task again")
    if code in ("25006", "42501"):
        return StoreReadOnly(text, "name the primary, with a user who may write to the database")
    return None
