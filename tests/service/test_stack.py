"""`make up` and `make down`: everything on the loopback interface, and nothing left."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import psutil

from stack import Stack


def test_up_answers_on_the_loopback_only_and_down_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stack = Stack.load(home)
    bystander = subprocess.Popen(
        ["sleep", "600"], env={"AIRLOOP_HOME": str(home), "AIRFLOW_HOME": str(home / "airflow")}
    )
    try:
        stack.up(everything=False)
        assert stack.running("api-server")
        listening = set()
        for process in stack.members():
            # Those that read files of DAGs come and go.
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.net_connections("tcp")
                listening |= {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        user, password = stack.login()
        assert user
        assert len(password) >= 12
        for secret in ("passwords.json", "airflow.cfg"):
            assert (home / "airflow" / secret).stat().st_mode & 0o077 == 0
        # Its children have lost their parent.
        scheduler = next(s for s in stack.services if s.name == "scheduler")
        psutil.Process(scheduler.pid).kill()
        assert Stack.load(home).down() > 0
        assert Stack.load(home).members() == stack.members() == []
        assert bystander.poll() is None, "a person's own process on this home is left alone"
    finally:
        Stack.load(home).down()
        bystander.kill()
        bystander.wait()
