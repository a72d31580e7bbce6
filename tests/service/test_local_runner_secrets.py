"""No secret of a payload's environment is readable in its log, wherever it comes from and however it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from airloop_operators.runners.base import RunOutcome

PASSWORD = "open/sesame 1"


@pytest.mark.parametrize(
    "said", [PASSWORD, quote(PASSWORD, safe=""), f"redis://:{quote(PASSWORD, safe='')}@redis:6379"]
)
@pytest.mark.parametrize("source", ["inherited", "environment", "secret"])
def test_a_password_inside_of_an_address_is_masked(
    run: Callable[..., RunOutcome],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    said: str,
) -> None:
    address = f"redis://:{quote(PASSWORD, safe='')}@redis:6379/0"
    more: dict[str, Any] = {"environment": {"SAID": said}}
    if source == "inherited":
        monkeypatch.setenv("SOME_STORE", address)
    elif source == "environment":
        more["environment"]["SOME_STORE"] = address
    else:
        more["secrets"] = {"SOME_STORE": address}
    caplog.set_level("INFO")
    assert run("talk", secret="SAID", **more).error is None
    assert "the secret is" in caplog.text
    assert "***" in caplog.text
    assert "sesame" not in caplog.text
