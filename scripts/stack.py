"""
Airflow and MLflow on this machine, without Docker: `make up`, `make down`, and what `make demo` stands on.

Everything binds to the loopback interface, on free ports, and keeps its state below one folder (``.airloop``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from airloop.errors import BadConfiguration
from airloop.warehouse.mounts import refuse_network

REPOSITORY = Path(__file__).resolve().parents[1]
STARTED_WITHIN_S = 300
MARK = "AIRLOOP_STACK"
"""Environment variable by which processes of a stack are told from all others."""


_CHILDREN: list[subprocess.Popen[bytes]] = []
"""What this process started; it is to outlive this process, unless `down` comes first."""


class StackError(Exception):
    """Something of the stack did not start; the message says what and where its log is."""


@dataclass(slots=True)
class Service:
    """A process that the stack started, the leader of its own session."""

    name: str
    pid: int
    started_at: float
    log: str

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            # The same pid may belong to somebody else by now.
            return abs(process.create_time() - self.started_at) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(slots=True)
class Stack:
    """Airflow (API server with UI, scheduler, DAG processor, triggerer) and MLflow, and where their state is."""

    home: Path
    airflow_port: int = 0
    mlflow_port: int = 0
    services: list[Service] = field(default_factory=list)
    dags: Path = REPOSITORY / "dags"
    settings: dict[str, str] = field(default_factory=dict, repr=False)
    """More environment of every process, before all else: a database, an executor. Not kept with the stack."""

    @classmethod
    def load(cls, home: Path) -> Stack:
        """The stack that was started on this home, or an empty one."""
        stack = cls(home)
        with contextlib.suppress(FileNotFoundError):
            state = json.loads(stack._state_file.read_text())
            stack.airflow_port, stack.mlflow_port = state["airflow_port"], state["mlflow_port"]
            stack.services = [Service(**service) for service in state["services"]]
        return stack

    @property
    def _state_file(self) -> Path:
        return self.home / "stack.json"

    @property
    def airflow_home(self) -> Path:
        return self.home / "airflow"

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}" if self.mlflow_port else ""

    def running(self, name: str) -> bool:
        return any(service.name == name and service.alive() for service in self.services)

    def environment(self) -> dict[str, str]:
        """Environment of every process of the stack, and of commands that work on its state."""
        settings = {
            MARK: str(self.home),
            "AIRLOOP_HOME": str(self.home),
            "AIRLOOP_FEATURE_REPO": os.environ.get("AIRLOOP_FEATURE_REPO") or str(REPOSITORY / "feature_repo"),
            "AIRFLOW_HOME": str(self.airflow_home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.airflow_home / "passwords.json"),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            # The default of 32 workers is for another machine than a laptop.
            "AIRFLOW__CORE__PARALLELISM": str(max(2, min(8, (os.cpu_count() or 2) * 2))),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.airflow_home / 'airflow.db'}",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.airflow_port),
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            # A task that has ended often keeps its place until its supervisor looks again; by default that is 5 s.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            # Of a machine that is busy with other things nobody need be ended: by default three heartbeats in a row
            # that fail end a task, an answer has to be there in 5 s, and a file of DAGs read in 30 s.
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "60",
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "300",
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__AIRLOOP__MLFLOW_UI": self.mlflow_url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
        }
        mine = ("AIRFLOW__", "AIRFLOW_CONN_", "AIRFLOW_VAR_")
        # The warm server of this stack is kept below its home, not with the user's others.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(mine) and k != "XDG_RUNTIME_DIR"}
        return inherited | settings | self.settings

    def up(self, *, everything: bool = True) -> None:
        """
        Start what is not running yet, and wait until it answers.

        :param everything: also what only people and deferred tasks need: MLflow's server and the triggerer.
        :raises StackError: something did not start.
        """
        for folder in (self.home, self.airflow_home, self.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.airflow_home.chmod(0o700)
        refuse_network(self.airflow_home, "Airflow's metadata database in")
        if not self.running("api-server"):
            self.stop_orphans()
        self.services = [s for s in self.services if s.alive()]
        if not self.running("api-server"):
            self.services = []
            self.airflow_port = free_port()
        if everything and not self.running("mlflow"):
            self.mlflow_port = free_port()
        self._migrate()
        for name in ("api-server", "scheduler", "dag-processor", *(["triggerer"] if everything else [])):
            self.start(name)
        if everything:
            self._start(
                "mlflow",
                [
                    sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1",
                    "--port", str(self.mlflow_port),
                    "--backend-store-uri", f"sqlite:///{self.home / 'mlflow.db'}",
                    "--artifacts-destination", str(self.home / "mlflow"),
                ],
                {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            )  # fmt: skip
        self._wait("api-server", f"{self.airflow_url}/api/v2/monitor/health", _all_healthy)
        if everything:
            self._wait("mlflow", f"{self.mlflow_url}/health", bool)

    def start(self, name: str) -> None:
        """Start one of Airflow's programs, if it does not run: ``scheduler``, ``triggerer`` …; it is not waited for."""
        # Their log servers would listen on every interface; the API server reads the files itself.
        options = ["--skip-serve-logs"] if name in ("scheduler", "triggerer") else []
        self._start(name, [sys.executable, "-m", "airflow", name, *options])

    def down(self) -> int:
        """Stop everything on this home, orphans included; returns how many processes were ended."""
        groups = [service for service in self.services if service.alive()]
        ended = _end([psutil.Process(service.pid) for service in groups])
        ended += self.stop_orphans()
        self.services = []
        # Those that are gone are no longer anybody's.
        _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]
        self._state_file.unlink(missing_ok=True)
        return ended

    def members(self) -> list[psutil.Process]:
        """Every process of the stack that runs, those included that have lost their parents."""
        mine = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
        sessions = {service.pid: service.started_at for service in self.services}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                # Airflow's processes rename themselves, which overwrites the environment that others can see; a
                # service's session is what its children keep.
                session = os.getsid(process.pid)
                ours = session in sessions and process.create_time() >= sessions[session] - 2
                if process.pid in mine or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if ours or process.environ().get(MARK) == str(self.home):
                    found.append(process)
        return found

    def stop_orphans(self) -> int:
        """End what is left of an earlier stack on this home, its warm process included; returns how many."""
        from airloop.warm import stop as stop_warm_servers

        folder = self.home / "run"
        return _end(self.members()) + (len(stop_warm_servers(folder)) if folder.is_dir() else 0)

    def command(self, arguments: list[str]) -> int:
        """Run an ``airflow`` command on this state; returns its exit code."""
        for folder in (self.home, self.airflow_home, self.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self._migrate()
        command = [sys.executable, "-m", "airflow", *arguments]
        environment = self.environment()
        # What a person runs by hand is not part of the stack, and `make down` leaves it alone.
        del environment[MARK]
        return subprocess.run(command, env=environment, check=False).returncode

    def login(self) -> tuple[str, str]:
        """User and password of the Airflow UI."""
        passwords = json.loads((self.airflow_home / "passwords.json").read_text())
        user = next(iter(passwords))
        return user, passwords[user]

    def make_login(self) -> None:
        """Make the password file, whole or not at all, and never readable for others."""
        passwords = self.airflow_home / "passwords.json"
        # An empty one holds no login: it was being written when something ended that.
        if passwords.exists() and passwords.stat().st_size:
            return
        temporary = passwords.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"admin": secrets.token_urlsafe(12)}))
        temporary.replace(passwords)

    def _migrate(self) -> None:
        self.make_login()
        log = self.home / "logs" / "migrate.log"
        marker = self.airflow_home / "migrated"
        from importlib.metadata import version

        if marker.exists() and marker.read_text() == version("apache-airflow"):
            return
        with log.open("w") as file:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            code = subprocess.run(command, env=self.environment(), stdout=file, stderr=file, check=False).returncode
        if code:
            raise StackError(f"`airflow db migrate` failed with {code}; its output is in {log}:\n{_tail(log)}")
        (self.airflow_home / "airflow.cfg").chmod(0o600)
        marker.write_text(version("apache-airflow"))

    def _start(self, name: str, command: list[str], more: dict[str, str] | None = None) -> None:
        if self.running(name):
            return
        log = self.home / "logs" / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                env=self.environment() | (more or {}),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        _CHILDREN.append(process)
        service = Service(name, process.pid, psutil.Process(process.pid).create_time(), str(log))
        self.services = [*(s for s in self.services if s.name != name), service]
        state = {
            "airflow_port": self.airflow_port,
            "mlflow_port": self.mlflow_port,
            "services": [asdict(service) for service in self.services],
        }
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self._state_file)

    def _wait(self, name: str, url: str, good: Any) -> None:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while True:
            for service in self.services:
                if not service.alive():
                    raise StackError(f"{service.name} ended; its log is {service.log}:\n{_tail(Path(service.log))}")
            with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=30) as answer:
                if good(answer.read()):
                    return
            if time.monotonic() > deadline:
                log = next(s.log for s in self.services if s.name == name)
                raise StackError(f"{name} does not answer at {url} after {STARTED_WITHIN_S} s; its log is {log}")
            time.sleep(0.3)


def _all_healthy(body: bytes) -> bool:
    health = json.loads(body)
    return all(health[name]["status"] == "healthy" for name in ("metadatabase", "scheduler", "dag_processor"))


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(leaders: list[psutil.Process], grace_s: float = 10) -> int:
    """SIGTERM, then SIGKILL after a grace, to processes and everything below them; returns how many there were."""
    processes: dict[int, psutil.Process] = {}
    for leader in leaders:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes |= {p.pid: p for p in (leader, *leader.children(recursive=True))}
    for process in processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(list(processes.values()), timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(processes)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def default_home() -> Path:
    return Path(os.environ.get("AIRLOOP_HOME") or REPOSITORY / ".airloop").resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["up", "down", "status", "airflow"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the airflow command")
    arguments = parser.parse_args()
    stack = Stack.load(default_home())
    if arguments.what == "airflow":
        return stack.command(arguments.arguments)
    if arguments.what == "down":
        print(f"Stopped {stack.down()} processes.")
        return 0
    if arguments.what == "up":
        print("Starting Airflow and MLflow …", flush=True)
        try:
            stack.up()
        except (StackError, BadConfiguration) as error:
            print(f"error: {error}", file=sys.stderr)
            stack.down()
            return 1
    elif not stack.running("api-server"):
        print("Not running; `make up` starts it.")
        return 1
    user, password = stack.login()
    print(f"Airflow  {stack.airflow_url}   user {user}, password {password}")
    print(f"Loops    {stack.airflow_url}/plugin/airloop")
    if stack.running("mlflow"):
        print(f"MLflow   {stack.mlflow_url}")
    print(f"Logs     {stack.home / 'logs'}")
    print("Stop it with `make down`.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
