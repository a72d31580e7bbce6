"""
Processes of ``warehouse_process.py`` out of one that has imported everything: six at once are there in some tenths of a
second instead of seconds, and it is their work that happens at once, not their imports.

They share code and nothing else: no catalog, client or connection is open before they are made.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Self

REPOSITORY = Path(__file__).resolve().parents[2]
PRELOAD = (
    "boto3",
    "duckdb",
    "numpy",
    "psutil",
    "psycopg",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pyiceberg.avro.decoder_fast",
    "pyiceberg.catalog.rest",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "tests.fault.warehouse_process",
    *(f"airloop.warehouse.{path.stem}" for path in sorted((REPOSITORY / "airloop" / "warehouse").glob("[a-z]*.py"))),
)


class Forks:
    """
    Makes processes, in a ``with`` block.

    :param prefix: the command that all of them run below, such as ``unshare --mount``.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-W", "error", "-m", "tests.fault.forks", str(theirs.fileno())],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.wait()

    def start(self, words: Sequence[str], environment: dict[str, str], folder: Path = REPOSITORY) -> Fork:
        """As ``python -W error warehouse_process.py WORDS`` would be, in this folder with this environment."""
        reading, writing = os.pipe()
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the process closes it
        minder, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"."], [writing, log.fileno(), theirs.fileno()])
        os.close(writing)
        _say(minder, {"words": list(words), "environment": environment, "folder": str(folder)})
        return Fork(minder, os.fdopen(reading), log)


class Fork:
    """One process, with as much of a :class:`subprocess.Popen` as tests need."""

    def __init__(self, minder: socket.socket, stdout: IO[str], log: IO[str]) -> None:
        self.stdout = stdout
        self.returncode: int | None = None
        self._minder, self._log = minder, log
        self._pid = _hear(minder)

    def ended(self) -> bool:
        """Whether it has, by now."""
        return bool(select.select([self._minder], [], [], 0)[0])

    def pause(self) -> None:
        """Let it do nothing until :meth:`go_on`, or until it is killed."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; the process id is its own until :meth:`communicate`, whether it has ended or not."""
        os.kill(self._pid, signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; what it has written to its two outputs."""
        with self.stdout, self._log, self._minder:
            out = self.stdout.read()
            self.returncode = _hear(self._minder)
            self._log.seek(0)
            return out, self._log.read()


def _say(connection: socket.socket, document: Any) -> None:
    connection.sendall(json.dumps(document).encode() + b"\n")


def _hear(connection: socket.socket) -> int:
    """One line, and nothing of the next."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        assert byte, f"who makes the processes has gone; the last it said: {line!r}"
        line += byte
    return int(line)


def main() -> None:
    """``python -m tests.fault.forks DESCRIPTOR``: make what is asked for at this socket, until nobody asks any more."""
    for name in PRELOAD:
        importlib.import_module(name)
    gc.collect()
    # The collector of a child need not look at all this, nor copy its pages.
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            asked, files, _, _ = socket.recv_fds(control, 1, 3)
            if not asked:
                return
            if not _fork():
                _mind(*files)
            for file in files:
                os.close(file)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of native threads; those of allocators take part in the fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _mind(out: int, log: int, asking: int) -> NoReturn:
    """Make the process, tell its id and then how it ended, and keep the id from others until nobody asks any more."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection = socket.socket(fileno=asking)
        request = json.loads(connection.makefile().readline())
        child = _fork()
        if not child:
            _become(request, out, log)
        os.close(out)
        _say(connection, child)
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert end is not None
        _say(connection, end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)
        connection.recv(1)
        os.waitpid(child, 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _become(request: dict[str, Any], out: int, log: int) -> NoReturn:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(log, 2)
        os.close(out)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        from tests.fault.warehouse_process import main as work

        work(*request["words"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
