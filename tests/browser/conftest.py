"""A real Chromium for the tests of pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
WITHIN_MS = 120_000
"""For whatever a test waits for: the machine may be busy."""
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""No sandbox: it does not work as root, and only our own pages are opened. The rest keeps it from calling home."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """
    Debian's Chromium, headless, with a profile of its own. Without it tests skip; with ``CI`` set they fail.

    It goes with its module: as long as it is there this thread has a running event loop, and nobody else can have one.
    """
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not there: apt-get install -y --no-install-recommends chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET), timeout=WITHIN_MS)
        yield browser
        browser.close()
