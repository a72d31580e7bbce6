"""The warm server itself: one at a time, trusted, forgetful, and never stale."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airloop.warm import stop
from airloop_operators.runners.base import RunRequest
from airloop_operators.runners.local import LocalRunner
from airloop_operators.runners.warm import WarmServer
from tests.payload_runs import PRELOAD, alive, wait_for_server, wait_until, warm_server

Make = Callable[..., RunRequest]


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    """A runtime folder for one test."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    yield folder
    if (folder / "airloop").is_dir():
        stop(folder / "airloop")


@pytest.fixture
def server(make_request: Make) -> WarmServer:
    return warm_server(make_request("count"))


@pytest.fixture
def runner() -> LocalRunner:
    return LocalRunner(preload=PRELOAD, grace_s=2.0)


def test_the_first_step_does_not_wait_and_later_ones_are_warm(
    runner: LocalRunner,
    make_request: Make,
    server: WarmServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert runner.run(make_request("count")).resources["start"] == "cold"
    assert "the warm server: it is not there, starting it" in caplog.text
    wait_for_server(server)
    assert runner.run(make_request("count")).resources["start"] == "warm"


def test_two_first_steps_at_once_start_one_server(
    make_request: Make,
    server: WarmServer,
    run_folder: Path,
) -> None:
    threads = [
        threading.Thread(target=LocalRunner(preload=PRELOAD).run, args=(make_request("count", rows=n),))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = wait_for_server(server)
    # A minder that was asked nothing is a moment longer there.
    wait_until(lambda: [p for p, command in _warm_processes() if str(run_folder) in command] == [pid])
    assert len(list((run_folder / "airloop").glob("*.lock"))) == 1


def test_changed_code_means_a_new_server(
    runner: LocalRunner,
    make_request: Make,
    tmp_path: Path,
    code: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    own = tmp_path / "own"
    shutil.copytree(code, own)
    request = make_request("count", environment={"PYTHONPATH": str(own)})
    first = wait_for_server(warm_server(request))
    with (own / "airloop" / "faults.py").open("a") as file:
        file.write("\n# changed\n")
    again = make_request("count", environment={"PYTHONPATH": str(own)})
    assert runner.run(again).resources["start"] == "cold"
    assert "faults.py has changed, starting it" in caplog.text
    second = wait_for_server(warm_server(request))
    assert second != first
    wait_until(lambda: not alive(first))
    assert runner.run(make_request("count", environment={"PYTHONPATH": str(own)})).resources["start"] == "warm"


def test_a_step_of_ones_own_is_never_stale(
    runner: LocalRunner,
    make_request: Make,
    server: WarmServer,
    tmp_path: Path,
) -> None:
    wait_for_server(server)
    module = tmp_path / "own_steps.py"
    head = "from airloop.frame import StepResult, step\n\n\n@step()\ndef one(ctx):\n"
    text = head + "    return StepResult(counts={'n': %d})\n"
    counts = []
    for number in (1, 22):
        module.write_text(text % number)
        outcome = runner.run(make_request("own_steps:one", cwd=tmp_path))
        assert outcome.resources["start"] == "warm"
        assert outcome.manifest is not None
        counts.append(outcome.manifest["counts"]["n"])
    assert counts == [1, 22]


def test_children_are_random_and_leave_nothing_behind(
    runner: LocalRunner,
    make_request: Make,
    server: WarmServer,
    tmp_path: Path,
) -> None:
    wait_for_server(server)
    drawn = []
    for number in range(2):
        path = tmp_path / f"{number}.json"
        assert runner.run(make_request("draw", path=str(path))).resources["start"] == "warm"
        drawn.append(json.loads(path.read_text()))
    assert drawn[0]["numbers"] != drawn[1]["numbers"]
    assert [d["left"] for d in drawn] == [None, None]


def test_the_server_never_sees_a_secret(
    runner: LocalRunner,
    make_request: Make,
    server: WarmServer,
) -> None:
    pid = wait_for_server(server)
    value = "0b5f-correct-horse-battery-staple"
    request = make_request("talk", secret="DB_PASSWORD", secrets={"DB_PASSWORD": value})
    outcome = runner.run(request)
    assert (outcome.error, outcome.resources["start"]) == (None, "warm")
    assert value.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert not _in_memory(pid, value.encode())


def test_a_server_for_other_import_time_settings_is_another_one(make_request: Make) -> None:
    def path(**variables: str) -> Path:
        return warm_server(make_request("count", environment=variables)).path

    assert path() == path(OMP_NUM_THREADS="2", AIRLOOP_CATALOG="x", MY_TOKEN="y", PATH="/bin")
    assert len({path(), path(TZ="Asia/Tokyo"), path(PYTHONHASHSEED="0"), path(LC_ALL="C")}) == 4


def test_nobody_else_is_served(server: WarmServer, run_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can try as somebody else")
    wait_for_server(server)
    # Even if the folders' permissions were lost.
    for path in (run_folder, *run_folder.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o711)
    (run_folder / "airloop").chmod(0o711)
    server.path.chmod(0o777)
    program = """
import os, socket, sys
os.setgid(65534), os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
os.chdir(os.path.dirname(sys.argv[1]))
s.connect(os.path.basename(sys.argv[1]))
s.settimeout(240)
print(s.recv(100))
"""
    done = subprocess.run([sys.executable, "-c", program, str(server.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "b''"


def test_an_open_folder_is_not_trusted(
    runner: LocalRunner,
    make_request: Make,
    run_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (run_folder / "airloop").mkdir()
    (run_folder / "airloop").chmod(0o755)
    outcome = runner.run(make_request("count"))
    assert (outcome.error, outcome.resources["start"]) == (None, "cold")
    assert "is open to others (mode 755); chmod 700" in caplog.text


def test_a_socket_of_another_user_gets_no_request(
    runner: LocalRunner,
    make_request: Make,
    server: WarmServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can listen as somebody else")
    program = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
os.chdir(os.path.dirname(sys.argv[1]))
s.bind(os.path.basename(sys.argv[1]))
os.setgid(65534), os.setuid(65534)
s.listen()
print("ready", flush=True)
c, _ = s.accept()
c.settimeout(240)
try:
    c.sendall(b'\\0\\0\\0\\x0f{"ready": true}')
    got = c.recv(100000)
except ConnectionError:
    got = b""
os.write(1, b"got %r" % got)
"""
    # SO_PEERCRED of a listener is taken at listen(), so this is what a stranger's server looks like.
    impostor = subprocess.Popen([sys.executable, "-c", program, str(server.path)], stdout=subprocess.PIPE)
    assert impostor.stdout is not None
    assert impostor.stdout.readline() == b"ready\n"
    server.path.with_suffix(".lock").touch()
    try:
        outcome = runner.run(make_request("talk", secrets={"DB_PASSWORD": "hunter2hunter2"}))
        assert (outcome.error, outcome.resources["start"]) == (None, "cold")
        assert impostor.communicate(timeout=240)[0] == b"got b''"
    finally:
        impostor.kill()
        impostor.wait()
    assert "is served by another user, and not used" in caplog.text


def test_an_idle_server_exits(make_request: Make) -> None:
    server = warm_server(make_request("count"), preload=("airloop.payload",), idle_s=0.1)
    pid = wait_for_server(server)
    wait_until(lambda: not alive(pid))
    assert not server.path.exists()


def test_a_server_whose_folder_is_gone_exits(server: WarmServer, run_folder: Path) -> None:
    pid = wait_for_server(server)
    shutil.rmtree(run_folder / "airloop")
    wait_until(lambda: not alive(pid))


def test_a_server_that_crashes_at_its_start_is_not_started_again_at_once(
    runner: LocalRunner,
    make_request: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airloop_operators.runners.warm.CRASH_PAUSE_S", 3600)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "crashing.py").write_text("import os\nos._exit(3)\n")
    variables = {"PYTHONPATH": f"{make_request('count').environment['PYTHONPATH']}:{tmp_path / 'bad'}"}
    request = make_request("count", environment=variables)
    server = warm_server(request, preload=("crashing",))
    starting = server.start()
    assert starting is not None
    starting.wait(240)
    lock = server.path.with_suffix(".lock")
    wait_until(lambda: b"importing" in lock.read_bytes())
    # It is not asked to end: it would do that in order, if it had the time.
    wait_until(lambda: not alive(int(lock.read_text().split()[0])))
    assert server.start() is None
    outcome = LocalRunner(preload=("crashing",)).run(request)
    assert (outcome.error, outcome.resources["start"]) == (None, "cold")


def test_a_module_that_cannot_be_imported_is_left_out(make_request: Make) -> None:
    server = warm_server(make_request("count"), preload=("airloop.payload", "no_such_library"))
    wait_for_server(server)
    assert "no_such_library is not preloaded" in server.path.with_suffix(".log").read_text()


def test_a_library_that_starts_a_thread_ends_the_warm_mode(
    make_request: Make,
    tmp_path: Path,
) -> None:
    (tmp_path / "threading_library.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='tick').start()\n"
    )
    variables = {"PYTHONPATH": f"{make_request('count').environment['PYTHONPATH']}:{tmp_path}"}
    server = warm_server(make_request("count", environment=variables), preload=("threading_library",))
    starting = server.start()
    assert starting is not None
    starting.wait(240)
    # While it imports it may be too busy to answer, and whoever does not wait for its answer ends it all the same.
    wait_until(lambda: server.path.with_suffix(".lock").read_bytes().endswith(b"ready"))
    connection, why = server.connect()
    assert connection is None
    assert why == "a library started threads: tick"


def test_servers_are_ended_on_request(server: WarmServer, run_folder: Path) -> None:
    pid = wait_for_server(server)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(run_folder)}
    done = subprocess.run(
        [sys.executable, "-m", "airloop.warm", "--stop"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ended {pid}\n"
    # It gives its lock back a moment before it is gone.
    wait_until(lambda: not alive(pid))
    assert stop(run_folder / "airloop") == []


def _warm_processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if "airloop.warm" in command and folder.name.isdecimal() and alive(int(folder.name)):
            found.append((int(folder.name), command))
    return found


def _in_memory(pid: int, needle: bytes) -> bool:
    """Whether a process has these bytes anywhere in its memory."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            memory.seek(begin)
            try:
                if needle in memory.read(end - begin):
                    return True
            except OSError:
                continue
    return False
