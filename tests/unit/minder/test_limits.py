"""Memory, processors and families of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airloop.errors import BadConfiguration
from airloop.minder.folder import runtime_folder
from airloop.minder.limits import Cgroup, Memory, Processors, descendants, kernel_ooms


def test_memory_of_a_process_is_measured_without_mapped_files(tmp_path: Path) -> None:
    mapped = tmp_path / "file"
    mapped.write_bytes(b"x" * (64 << 20))
    program = f"""
import mmap
block = b"x" * (50 << 20)
with open({str(mapped)!r}, "rb") as file:
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(view[i] for i in range(0, len(view), 4096))
print("ready", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory = Memory(100 << 20)
        assert not memory.over([process.pid], time.monotonic())
        assert 50 << 20 < memory.peak < 80 << 20
        assert Memory(50 << 20).over([process.pid], time.monotonic())
        process.communicate(b"\n")
    assert not memory.over([process.pid], time.monotonic())


def test_descendants_are_found_at_any_depth_but_not_dead_ones() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = descendants(os.getpid())
        assert child.pid in found
        assert len(descendants(child.pid)) == 1
        assert set(descendants(child.pid)) < set(found)
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # A zombie until it is waited for.
        assert child.pid not in descendants(os.getpid())


def test_processors_are_shared_out(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert Processors(None, str(tmp_path)).numbers == set()
    assert Processors(len(allowed), str(tmp_path)).numbers == set()
    if len(allowed) < 2:
        pytest.skip("one processor")
    first = Processors(1, str(tmp_path))
    second = Processors(0.5, str(tmp_path))
    assert len(first.numbers) == len(second.numbers) == 1
    assert first.numbers != second.numbers
    # More attempts than processors share.
    third = Processors(1, str(tmp_path))
    crowd = [Processors(1, str(tmp_path)) for _ in allowed]
    assert all(len(p.numbers) == 1 for p in (third, *crowd))


def test_without_a_cgroup_there_is_none(tmp_path: Path) -> None:
    none = Cgroup("", memory_bytes=1, cpus=1)
    assert not none
    assert (none.ooms(), none.peak()) == (0, 0)
    none.join()
    none.remove()
    assert not Cgroup(str(tmp_path / "missing"), memory_bytes=1 << 20, cpus=None)


def test_the_kernels_count_can_be_read() -> None:
    assert kernel_ooms() >= 0


def test_the_runtime_folder_is_this_users_alone(tmp_path: Path) -> None:
    home = {"AIRLOOP_HOME": str(tmp_path / "home")}
    folder = runtime_folder(home)
    assert folder == tmp_path / "home" / "run"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert runtime_folder(home) == folder
    assert runtime_folder({**home, "XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "airloop"
    assert runtime_folder({**home, "XDG_RUNTIME_DIR": "/no/such"}) == folder
    folder.chmod(0o750)
    with pytest.raises(BadConfiguration, match="mode 750"):
        runtime_folder(home)
    folder.rmdir()
    folder.symlink_to(tmp_path / "airloop")
    with pytest.raises(BadConfiguration, match="not a folder of this user"):
        runtime_folder(home)
