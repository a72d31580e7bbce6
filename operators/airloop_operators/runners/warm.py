"""The runner's side of the warm server: find it, trust it, start it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import struct
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from airloop.contract import VERSION
from airloop.minder.folder import runtime_folder
from airloop.minder.wire import receive

log = logging.getLogger("airloop.runner")

ANSWER_S = 1.0
"""Seconds to wait for the server's answer."""
IMPORTING_S = 0.1
"""The same while it imports: it may answer late, and a new interpreter is faster then."""
CRASH_PAUSE_S = 60.0
"""Seconds after the start of a server that did not end in order until another is started."""

_IMPORT_TIME = (
    "PYTHON", "LD_", "LC_", "ARROW_", "MALLOC_", "OMP_", "OPENBLAS_", "MKL_", "KMP_", "GOMP_", "NUMEXPR_",
    "MPL", "GX_", "FEAST_",
)  # fmt: skip
_IMPORT_TIME_NAMES = frozenset({
    "HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "MLFLOW_CONFIGURE_LOGGING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_LOGGING_LEVEL", "DO_NOT_TRACK",
})  # fmt: skip
_STORES: Mapping[str, tuple[str, ...]] = {
    "AIRLOOP_CATALOG=postgres": ("psycopg", "sqlalchemy.dialects.postgresql"),
    "AIRLOOP_FEAST_REGISTRY=postgres": ("psycopg", "sqlalchemy.dialects.postgresql", "feast.infra.registry.sql"),
    "AIRLOOP_ARTIFACTS=s3": ("boto3",),
    "AIRLOOP_WAREHOUSE=s3": ("boto3",),
    "AIRLOOP_ONLINE_STORE=redis": ("redis", "feast.infra.online_stores.redis"),
    "AIRLOOP_MLFLOW=http": ("mlflow.store.tracking.rest_store", "mlflow.store.model_registry.rest_store"),
}
"""What steps import beside the server's own list, by the beginning of a setting that asks for it."""
_HARMLESS = ("PATH", "USER", "LOGNAME")
_PER_REQUEST = ("_NUM_THREADS", "_MAX_THREADS")
_SECRET_WORDS = ("PASSWORD", "PASSWD", "SECRET", "TOKEN", "_KEY", "CREDENTIAL")


class WarmServer:
    """
    The warm server that a payload with this interpreter and environment may come from.

    :param preload: modules that it imports; default its own list, and what the stores of ``environment`` need.
    :param secrets: names of variables that the server must not get.
    :param idle_s: when the server exits if nobody asks; None: its own default.
    """

    def __init__(
        self,
        python: str,
        environment: Mapping[str, str],
        *,
        preload: Sequence[str] | None = None,
        secrets: Collection[str] = (),
        idle_s: float | None = None,
    ) -> None:
        self._python = python
        self._preload = tuple(preload or ())
        self._also = () if preload else modules_for(environment)
        self._idle_s = idle_s
        matters = {name: value for name, value in environment.items() if _matters(name) and name not in secrets}
        what = [VERSION, os.path.abspath(python), self._preload, self._also, sorted(matters.items())]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        self._environment = matters | {name: environment[name] for name in _HARMLESS if name in environment}
        self._folder = runtime_folder(environment)
        self.path = self._folder / f"warm-{name}.sock"
        self._lock_path = self._folder / f"warm-{name}.lock"
        self._log_path = self._folder / f"warm-{name}.log"

    def connect(self) -> tuple[socket.socket | None, str]:
        """A connection to a minder that waits for its request, or None and why there is none."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        why = "the request was given up"
        try:
            why = self._ask(connection)
        except FileNotFoundError:
            why = "it is not there"
        except TimeoutError:
            why = "it is busy importing"
        except (OSError, EOFError) as error:
            why = f"{type(error).__name__}: {error}"
        finally:
            if why:
                connection.close()
        return (None, why) if why else (connection, "")

    def _ask(self, connection: socket.socket) -> str:
        """Connect and wait for the answer; why it will not do, or nothing."""
        importing = b"importing" in self._lock_path.read_bytes()
        connection.settimeout(IMPORTING_S if importing else ANSWER_S)
        _connect(connection, self.path)
        if _peer_uid(connection) != os.geteuid():
            # It is told nothing: a request holds secrets.
            log.warning("%s is served by another user, and not used", self.path)
            return "it is another user's"
        answer, _ = receive(connection)
        connection.settimeout(None)
        return "" if answer.get("ready") else str(answer.get("retired"))

    def start(self) -> subprocess.Popen[bytes] | None:
        """
        Start the server unless there is one, or one has just crashed; it is not waited for.

        :returns: the process that starts it and ends at once, for the caller to wait for; None if none was started.
        """
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = os.pread(lock, 64, 0).split()
            if len(left) >= 2 and time.time() - float(left[1]) < CRASH_PAUSE_S:
                return None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"0 {time.time():.0f}".encode(), 0)
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            command = [self._python, "-m", "airloop.warm", "--socket", str(self.path), "--lock", str(lock)]
            if self._preload:
                command += ["--preload", ",".join(self._preload)]
            if self._also:
                command += ["--also", ",".join(self._also)]
            if self._idle_s is not None:
                command += ["--idle", str(self._idle_s)]
            with open(self._log_path, "wb") as output:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={**self._environment, "PYTHONUNBUFFERED": "1"},
                    pass_fds=[lock],
                    start_new_session=True,
                )
        except BlockingIOError:
            return None
        finally:
            # The server's own copy keeps the lock.
            os.close(lock)


def modules_for(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Modules of the clients that steps with this environment need for their stores; nothing of an address is told."""
    found = (
        modules
        for start, modules in _STORES.items()
        if environment.get(start.partition("=")[0], "").startswith(start.partition("=")[2])
    )
    return tuple(dict.fromkeys(name for modules in found for name in modules))


def _matters(name: str) -> bool:
    """Whether a variable may decide what an import does; such a one is part of the server's identity."""
    if any(word in name for word in _SECRET_WORDS) or name.endswith(_PER_REQUEST):
        return False
    return name in _IMPORT_TIME_NAMES or name.startswith(_IMPORT_TIME)


def _connect(connection: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # The kernel takes 107 bytes of a socket's path; the folder's may be longer.
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _peer_uid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
