"""The error tree: what a foreign error means, and what an error says."""

from __future__ import annotations

import errno
import inspect
import socket
import sqlite3

import pytest

from airloop import errors
from airloop.errors import AirloopError, Rejected, TryAgain, classify


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errors.StoreFull),
        (OSError(errno.EROFS, "Read-only file system"), errors.StoreReadOnly),
        (PermissionError(errno.EACCES, "Permission denied"), errors.StoreReadOnly),
        (sqlite3.OperationalError("database is locked"), errors.StoreBusy),
        (sqlite3.OperationalError("attempt to write a readonly database"), errors.StoreReadOnly),
        (sqlite3.OperationalError("database or disk is full"), errors.StoreFull),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), errors.Unreachable),
        (TimeoutError("timed out"), errors.Unreachable),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), errors.Unreachable),
        (MemoryError(), errors.OutOfMemory),
        (ValueError("a bug"), None),
        (sqlite3.OperationalError("no such table: x"), None),
    ],
)
def test_only_faults_of_the_surroundings_are_classified(foreign: Exception, expected: type | None) -> None:
    known = classify(foreign)
    assert known is None if expected is None else type(known) is expected


def test_a_cause_is_classified_through_wrappers() -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert isinstance(classify(wrapped), errors.StoreFull)


def test_an_error_that_was_only_being_handled_is_not_the_error() -> None:
    found: BaseException | None = None
    try:
        try:
            raise errors.NotFound("no table")
        except errors.NotFound:
            raise TypeError("a bug in the handler")  # noqa: B904 - without a cause: that is what is tested
    except TypeError as bug:
        found = bug
    assert found is not None
    assert classify(found) is None


@pytest.mark.parametrize(
    ("handled", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), None),
        (OSError(errno.EROFS, "Read-only file system"), None),
        (OSError(errno.ENOSPC, "No space left on device"), errors.StoreFull),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), errors.Unreachable),
    ],
)
def test_a_fault_that_was_only_being_handled_never_says_that_a_retry_is_in_vain(
    handled: OSError, expected: type | None
) -> None:
    found: BaseException | None = None
    try:
        try:
            raise handled
        except OSError:
            raise KeyError("a bug in the handler")  # noqa: B904 - without a cause: that is what is tested
    except KeyError as bug:
        found = bug
    assert found is not None
    known = classify(found)
    assert known is None if expected is None else type(known) is expected
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = handled
    assert classify(wrapped) is not None, "what it was raised from says why"


def test_the_tree_at_the_top_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for name, found in inspect.getmembers(errors, inspect.isclass):
        if issubclass(found, AirloopError):
            assert name in drawn, f"{name} is not drawn"
            if found not in (AirloopError, errors.StepSkipped, errors.CheckNotEvaluated):
                assert issubclass(found, Rejected | TryAgain)


def test_an_error_says_what_was_found_and_what_to_do() -> None:
    assert str(errors.NotFound("table x is not there.", "make it")) == "table x is not there; make it"
    assert str(errors.NotFound("table x is not there")) == "table x is not there"
