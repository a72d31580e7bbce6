"""Files are served to whoever may read them, from below the store's root only, and can do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from airloop.config import Config
from airloop.errors import BadArgument, NotFound
from airloop_operators.web import artifacts
from airloop_operators.web.data import Reader
from tests.loop_world import World

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]


def test_a_report_comes_without_any_right_to_act(client: Client) -> None:
    answer = client("ann").get("/airloop/artifacts/reports/delays/2013-02.html")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"].split("; ")
    sandbox = next(p for p in policy if p.startswith("sandbox")).split()
    assert "allow-scripts" not in sandbox
    assert "allow-forms" not in sandbox
    assert "allow-top-navigation" not in sandbox
    assert "default-src 'none'" in policy
    assert "form-action 'none'" in policy


@pytest.mark.parametrize(
    ("name", "kind", "saved"),
    [
        ("a.json", "application/json", False),
        ("a.txt", "text/plain; charset=utf-8", False),
        ("a.svg", "image/svg+xml", False),
        ("a.js", "application/octet-stream", True),
        ("a.xhtml", "application/octet-stream", True),
        ("modèl;e.ubj", "application/octet-stream", True),
    ],
)
def test_what_a_browser_might_run_is_saved_instead(
    client: Client, world: World, name: str, kind: str, saved: bool
) -> None:
    world.store.publish_bytes(f"reports/delays/files/{name}", b"alert(1)")
    answer = client("ann").get(f"/airloop/artifacts/reports/delays/files/{name}")
    world.store.path(f"reports/delays/files/{name}").unlink()
    assert answer.headers["content-type"] == kind
    assert answer.headers.get("content-disposition", "").startswith("attachment") == saved


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/catalog.db",
        "reports/%2e%2e/%2e%2e/catalog.db",
        "%2Fetc/passwd",
        "//etc/passwd",
        "reports/%5c..%5ccatalog.db",
        "reports/%00",
        "file:%2F%2F%2Fetc%2Fpasswd",
        "reports/.part-x",
        "runs",
        "nothing",
        "reports/delays/2013-02.html/x",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize("where", ["artifacts", "view"])
def test_no_address_leads_out_of_the_store(client: Client, world: World, path: str, where: str) -> None:
    assert (world.config.home / "catalog.db").exists()
    assert client("ann").get(f"/airloop/{where}/{path}").status_code in (400, 404)


def test_a_symbolic_link_is_followed_inside_the_store_only(config: Config) -> None:
    world, reader = World(config), Reader(config)
    world.store.publish_bytes("reports/a/page.html", b"inside")
    (config.home / "outside.txt").write_text("outside")
    (config.home / "folder").mkdir()
    (config.home / "folder" / "index.html").write_text("outside")
    folder = world.store.path("reports/a")
    (folder / "in.html").symlink_to("page.html")
    (folder / "out.txt").symlink_to(config.home / "outside.txt")
    (folder / "out").symlink_to(config.home / "folder")
    (folder / "loop").symlink_to("loop")
    assert artifacts.locate(reader, "reports/a/in.html").read_bytes() == b"inside"
    for name in ("reports/a/out.txt", "reports/a/out", "reports/a/out/index.html"):
        with pytest.raises(BadArgument, match="leads out of the artifact store"):
            artifacts.locate(reader, name)
    with pytest.raises(NotFound):
        artifacts.locate(reader, "reports/a/loop")


def test_a_store_that_is_itself_a_link_is_served(config: Config) -> None:
    real = config.home / "elsewhere"
    (real / "reports").mkdir(parents=True)
    (real / "reports" / "a.html").write_text("here")
    config.artifacts.symlink_to(real)
    assert artifacts.locate(Reader(config), "reports/a.html").read_text() == "here"


def test_a_folder_leads_to_its_page_so_that_the_links_on_it_work(client: Client) -> None:
    for where in ("artifacts", "view"):
        answer = client("ann").get(f"/airloop/{where}/reports/delays")
        assert answer.status_code == 302
        assert answer.headers["location"] == f"/airloop/{where}/reports/delays/index.html"


def test_a_report_is_shown_with_the_way_back(client: Client) -> None:
    page = client("ann").get("/airloop/view/reports/delays/2013-02.html").text
    assert 'href="/airloop/loops/delays"' in page
    assert '<iframe src="/airloop/artifacts/reports/delays/2013-02.html"' in page
    assert "allow-scripts" not in page
    docs = client("ann").get("/airloop/view/steps/validate/xx/2/docs/index.html").text
    assert "Data Docs" in docs
