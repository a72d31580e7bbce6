"""The state of the stack that a kill must not spoil."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from stack import Stack


class Killed(BaseException):
    """Stands for a kill: nothing that follows is done."""


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    found = Stack(tmp_path)
    found.airflow_home.mkdir()
    return found


def test_the_login_is_whole_or_not_there(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    passwords = stack.airflow_home / "passwords.json"
    for step in ("touch", "write_text", "replace"):
        with monkeypatch.context() as struck:
            struck.setattr(Path, step, kill)
            with pytest.raises(Killed):
                stack.make_login()
        assert not passwords.exists(), f"killed at {step}"
    stack.make_login()
    user, password = stack.login()
    assert (user, len(password) >= 12) == ("admin", True)
    assert passwords.stat().st_mode & 0o077 == 0
    stack.make_login()
    assert stack.login() == (user, password), "a login that is there stays"


def test_an_empty_password_file_is_made_anew(stack: Stack) -> None:
    (stack.airflow_home / "passwords.json").touch(mode=0o600)
    stack.make_login()
    assert stack.login()[0] == "admin"
