"""
The warm server: a process that has imported the large libraries, and forks a fresh child for each step.

There is at most one per user, interpreter and import-time environment (the runner names its socket after them). It
holds a lock for as long as it lives, knows the code that it has imported, and retires when any of it has changed on
disk, when its folder is gone, or when nobody asked for ten minutes. For each request it forks a minder
(:mod:`airloop.minder`), which reads the request itself: the server never sees an environment, so it can keep no
secret. The minder forks the payload, whose environment, working directory, descriptors, signals and randomness are
those of a new interpreter. Modules of yours are not imported here, so nothing of them can be stale.

What it does not do: serve while it has a Python thread (a fork would copy locks that nobody releases), or import in
parallel. Between two imports it answers requests, so that the first steps find what is there already.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pkgutil
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import airloop
from airloop.minder.folder import runtime_folder
from airloop.minder.mind import serve
from airloop.minder.wire import Request, send
from airloop.training.environment import prepare_environment

log = logging.getLogger("airloop.warm")

IDLE_S = 600.0
"""Seconds without a request after which the server exits."""
LOOK_S = 5.0
"""Seconds between two looks whether the server's socket is still there."""
PRELOAD = (
    "airloop.payload",
    "filelock",
    "pydantic",
    "numpy",
    "pyarrow.parquet",
    "pyarrow.csv",
    "pyarrow.json",
    "pyarrow.dataset",
    "duckdb",
    "sqlalchemy.dialects.sqlite",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
    "pyiceberg.avro.decoder_fast",
    "pandas",
    "great_expectations.render.renderer.page_renderer",
    "great_expectations.render.view.view",
    "feast.feature_store",
    "feast.infra.online_stores.sqlite",
    "feast.infra.passthrough_provider",
    "feast.infra.registry.file",
    "feast.repo_operations",
    "scipy.sparse",
    "sklearn.metrics",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "xgboost",
    "skops.io",
    "mlflow.tracking",
    "mlflow.xgboost",
    "mlflow.sklearn",
    "mlflow.data",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.pyfunc.model",
    "mlflow.tracing.provider",
    "alembic.command",
    "alembic.config",
    "git",
    "airloop.*",
)
"""Modules to import: common ones first, then in the order of a loop; ``package.*``: with all modules below it."""

_NEVER = ("airloop.warm", "airloop.__main__", "airloop.cli")
_pools: Any = None
"""Thread pools of the native libraries, as threadpoolctl found them."""
_SINGLE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    """:returns: the exit code."""
    parser = argparse.ArgumentParser(prog="python -m airloop.warm", description=__doc__)
    parser.add_argument("--socket", type=Path, help="where to listen")
    parser.add_argument("--lock", type=int, help="descriptor of the lock file, locked")
    parser.add_argument("--preload", default="", help="comma-separated modules; default: a list of large libraries")
    parser.add_argument("--also", default="", help="comma-separated modules beside them")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds without a request until it exits")
    parser.add_argument("--stop", action="store_true", help="end this user's warm servers")
    given = parser.parse_args(arguments)
    if given.stop:
        for pid in stop():
            print(f"ended {pid}")
        return 0
    if given.socket is None or given.lock is None:
        parser.error("the runner starts it with --socket and --lock")
    # Not a child of the task that happened to need it first, and nothing to be waited for.
    if os.fork():
        os._exit(0)
    # Libraries tell much while they are imported.
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    preload = tuple(m for m in given.preload.split(",") if m) or PRELOAD
    preload += tuple(m for m in given.also.split(",") if m)
    Server(given.socket, given.lock, idle_s=given.idle).run(preload)
    return 0


def stop(folder: Path | None = None, *, within_s: float = 10.0) -> list[int]:
    """
    End the warm servers of a folder (default: this environment's).

    :param within_s: how long each is given to say its process id and to end.
    :returns: the process ids of those that were asked to end.
    """
    ended = []
    for path in sorted((folder or runtime_folder(os.environ)).glob("warm-*.lock")):
        deadline = time.monotonic() + within_s
        with path.open("r+") as lock:
            asked = 0
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break  # Nobody holds it, or not any more.
                except BlockingIOError:
                    lock.seek(0)
                    words = lock.read().split()
                # 0: it is being started and has no process of its own yet.
                pid = int(words[0]) if words else 0
                if pid > 0 and pid != asked:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    asked = pid
                    ended.append(pid)
                time.sleep(0.05)
    return ended


class Server:
    """
    :param path: of the socket.
    :param lock: descriptor of the lock file; the lock ends with this process.
    """

    def __init__(self, path: Path, lock: int, *, idle_s: float = IDLE_S) -> None:
        self._path = path
        self._lock = lock
        self._idle_s = idle_s
        self._code = Code()
        self._asked_at = time.monotonic()
        self._listener: socket.socket | None = None
        self._identity = (0, 0)

    def run(self, preload: Sequence[str]) -> None:
        """Import, serve, exit."""
        self._say("importing")
        # Children end by themselves; a minder that wants its own back sets this back.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self._retire("asked to end"))
        # Nothing may be found in the folder in which the first task happened to run.
        sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd())]
        os.chdir("/")
        # Libraries that start their threads when they are loaded must not: threads do not survive a fork.
        for name in _SINGLE_THREAD:
            os.environ[name] = "1"
        # Read once, when the libraries are loaded.
        prepare_environment()
        gc.disable()
        begun = time.monotonic()
        for name in _expand(preload):
            try:
                importlib.import_module(name)
            except Exception as error:
                log.warning("%s is not preloaded: %s: %s", name, type(error).__name__, error)
            self._code.look()
            if name == preload[0]:
                self._listen()
            self._serve_until(time.monotonic())
        _prime()
        log.info("%d modules imported in %.1f s", len(sys.modules), time.monotonic() - begun)
        if self._listener is None:
            self._listen()
        self._say("ready")
        while True:
            self._serve_until(time.monotonic() + LOOK_S)
            if time.monotonic() - self._asked_at > self._idle_s:
                self._retire("nobody asked")
            if not self._still_mine():
                self._retire("its socket is gone")

    def _say(self, state: str) -> None:
        """Tell in the lock file who holds it, since when, and how far it is."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} {time.time():.0f} {state}".encode(), 0)

    def _listen(self) -> None:
        """Listen under a temporary name first: a socket that can be found answers."""
        with _short(self._path) as short:
            temporary = f"{short}.{os.getpid()}"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(temporary)
            os.chmod(temporary, 0o600)
            self._listener.listen(64)
            os.rename(temporary, short)
        found = os.stat(self._path)
        self._identity = (found.st_dev, found.st_ino)
        self._asked_at = time.monotonic()

    def _still_mine(self) -> bool:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _serve_until(self, deadline: float) -> None:
        while self._listener is not None:
            left = max(0.0, deadline - time.monotonic())
            waiting = select.poll()
            waiting.register(self._listener, select.POLLIN)
            if not waiting.poll(left * 1000):
                return
            connection, _ = self._listener.accept()
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if peer_uid(connection) != os.geteuid():
            return
        self._asked_at = time.monotonic()
        changed = self._code.changed()
        threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        if changed or threads:
            why = f"{changed} has changed" if changed else f"a library started threads: {', '.join(threads)}"
            self._leave()
            with contextlib.suppress(OSError):
                send(connection, {"retired": why})
            self._retire(why)
        # What is there now is never freed: the collector in children need not look at it, nor copy its pages.
        gc.freeze()
        with warnings.catch_warnings():
            # Python 3.12 warns of native threads; those of jemalloc take part in the fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._mind(connection)

    def _mind(self, connection: socket.socket) -> NoReturn:
        try:
            assert self._listener is not None
            self._listener.close()
            os.close(self._lock)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _rename_process("airloop-minder")
            connection.settimeout(30)
            send(connection, {"ready": True})
            serve(connection, become_payload)
        finally:
            os._exit(1)

    def _leave(self) -> None:
        """Make room for another server."""
        if self._listener is not None:
            if self._still_mine():
                self._path.unlink()
            self._listener.close()
            self._listener = None
        os.ftruncate(self._lock, 0)
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _retire(self, why: str) -> NoReturn:
        log.info("retired: %s", why)
        self._leave()
        logging.shutdown()
        os._exit(0)


class Code:
    """What this process has imported, as it lies on disk."""

    def __init__(self) -> None:
        self._began_ns = time.time_ns()
        self._files: dict[str, tuple[int, int, int]] = {}
        self._folders: dict[str, int] = {}
        self._seen: set[str] = set()
        self._installed = [p for p in sys.path if p.endswith(("site-packages", "dist-packages")) and os.path.isdir(p)]
        self._distributions = {p: (os.stat(p).st_mtime_ns, _distributions(p)) for p in self._installed}
        self._standard = os.path.dirname(os.__file__)

    def look(self) -> None:
        """Take note of modules that are new. Installed ones are covered by their distributions."""
        for name, module in list(sys.modules.items()):
            if name in self._seen:
                continue
            self._seen.add(name)
            path = getattr(module, "__file__", None)
            if not path or path.startswith((*self._installed, self._standard)):
                continue
            with contextlib.suppress(OSError):
                self._files[path] = _stamp(path)

    def changed(self) -> str:
        """What is not any more as it was when it was imported; empty if all is."""
        for path, stamp in self._files.items():
            try:
                now = _stamp(path)
            except OSError:
                return path
            if now != stamp or now[0] > self._began_ns:
                return path
        for folder, (stamp_ns, distributions) in self._distributions.items():
            now_ns = os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0
            if now_ns != stamp_ns:
                if _distributions(folder) != distributions:
                    return folder
                self._distributions[folder] = (now_ns, distributions)
        return ""


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


def _distributions(folder: str) -> frozenset[tuple[str, int]]:
    """Name with version, and time of installation."""
    if not os.path.isdir(folder):
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset((e.name, e.stat().st_mtime_ns) for e in entries if e.name.endswith(".dist-info"))


def become_payload(request: Request) -> NoReturn:
    """In a child: be what ``python -m airloop run STEP`` would be."""
    os.environ.clear()
    os.environ.update(request.environment)
    time.tzset()
    _rename_process("airloop-step")
    sys.argv = [str(Path(airloop.__file__).with_name("__main__.py")), *request.argv[3:]]
    if "PYTHONSAFEPATH" not in os.environ:
        sys.path.insert(0, os.getcwd())
    # A process that multiprocessing starts from here imports what it takes for the main module.
    main_module = sys.modules["__main__"]
    main_module.__spec__ = importlib.util.find_spec("airloop.__main__")
    main_module.__file__ = sys.argv[0]
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    _threads(os.environ.get("OMP_NUM_THREADS"))
    gc.enable()
    from airloop import payload

    payload.run(request.argv[-1])


def _prime() -> None:
    """Have done once what every child would do, and what cannot change without this server retiring."""
    global _pools
    # The list of distributions, kept by importlib.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("airloop")
    from airloop.frame import archive
    from airloop.frame.key import code_of
    from airloop.steps import BUILT_IN, load

    archive.prime()
    for step, target in BUILT_IN.items():
        if target.partition(":")[0] in sys.modules:
            # Reads the source that the step reaches; a file that changes is read again.
            code_of(load(step))
    with contextlib.suppress(ImportError):
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        _pools = ThreadpoolController()


def _threads(asked: str | None) -> None:
    """Native libraries were loaded with one thread; give them those that a new interpreter would have."""
    if _pools is not None:
        _pools.limit(limits=int(asked) if asked and asked.isdecimal() else len(os.sched_getaffinity(0)))


def peer_uid(connection: socket.socket) -> int:
    """User of the process at the other end of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return int(uid)


def _expand(preload: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in preload:
        if not name.endswith(".*"):
            names.append(name)
            continue
        package = importlib.import_module(name[:-2])
        found = (m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
        names += [n for n in found if not n.startswith(_NEVER)]
    return names


class _short:
    """A path by which a socket can be bound or found that is too long for the kernel's 107 bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)


def _rename_process(name: str) -> None:
    """What ``ps`` and ``top`` call this process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


if __name__ == "__main__":
    # One module, not two: children know it by its own name.
    from airloop.warm import main as run

    sys.exit(run())
