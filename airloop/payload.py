"""
The payload's own beginning and end: from the environment to an exit code.

Kept apart from the command line, so that a step starts without what only people need.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from airloop.config import Config
from airloop.contract import Call
from airloop.errors import AirloopError, BadConfiguration, ContractBroken
from airloop.faults import instrument
from airloop.frame.execute import report_error, run_from_environment
from airloop.frame.logs import set_up
from airloop.frame.step import Step

log = logging.getLogger("airloop.payload")


def main(step_name: str) -> int:
    """
    Make the attempt that the environment asks for; what goes wrong before it is one line in the log.

    :returns: the exit code, one of :class:`airloop.contract.Exit`, or 1.
    """
    faulthandler.enable()
    instrument()
    # Asked to end, a step still removes its working folder; one that is deep in native code is killed a little later.
    signal.signal(signal.SIGTERM, _leave_on_signal)
    redact = set_up()
    try:
        call = Call.from_environment()
        if call.step != step_name:
            raise ContractBroken(f"the call is for step {call.step}, the command for {step_name}")
        return run_from_environment(_load(step_name), Config.from_environment(), redact)
    except AirloopError as error:
        report_error(error, redact)
        return error.exit_code


def run(step_name: str) -> NoReturn:
    """:func:`main`, then the end of this process."""
    try:
        code = main(step_name)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except _AskedToEnd as signalled:
        code = 128 + signalled.number
    except SystemExit as left:
        # Codes are main()'s to give: a library that leaves by sys.exit() means neither done nor skipped nor rejected.
        log.warning("here:", exc_info=left)
        log.error("step %s was left by sys.exit(%r), which counts as a failure", step_name, left.code)
        code = 1
    except BaseException:
        log.exception("step %s failed outside its attempt", step_name)
        code = 1
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process as an interpreter does, without taking apart modules that nobody needs any more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _load(step_name: str) -> Step:
    from airloop.steps import load

    try:
        return load(step_name)
    except AirloopError:
        raise
    except Exception as cause:
        raise BadConfiguration(
            f"step {step_name} cannot be imported: {type(cause).__name__}: {cause}",
            f"try: {sys.executable} -c 'import {step_name.partition(':')[0]}'"
            if ":" in step_name
            else "see `airloop doctor`",
        ) from cause


class _AskedToEnd(SystemExit):
    """By a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def _leave_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise _AskedToEnd(number)
