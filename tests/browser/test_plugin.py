"""The plugin in Airflow's own UI: a real API server, its login page, its frames, its buttons, seen by Chromium."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airloop.config import Config
from tests.api_server import ApiServer, ScriptedPod
from tests.browser.conftest import WITHIN_MS
from tests.loop_world import populate
from tests.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

USER, PASSWORD = "ann", "ann's password"
STARTED_WITHIN_S = 200
PHONE = {"width": 390, "height": 844}

TOO_WIDE = """
() => [...document.querySelectorAll('body *')]
  .map(e => [e.getBoundingClientRect(), e])
  .filter(([box]) => box.width && (box.right > document.documentElement.clientWidth + 1 || box.left < -1))
  .map(([box, e]) => `${e.tagName} ${e.textContent.trim().slice(0, 40)} ${box.left} ${box.right}`)
"""


@dataclass
class Server:
    """Airflow's API server on a home with two loops."""

    url: str
    home: Path


@pytest.fixture(scope="module")
def mlflow_ui() -> Iterator[str]:
    """Stands where MLflow's UI would be."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>MLflow</h1>")

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(airflow_database: Path, mlflow_ui: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("loops")
    populate(Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"}))
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: PASSWORD}))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "AIRLOOP_HOME": str(home),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "k" * 64,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__AIRLOOP__MLFLOW_UI": mlflow_ui,
    }
    log = home / "api-server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server"],
            env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(f"{url}/api/v2/version", process, log)
        yield Server(url, home)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=30).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"Airflow's API server does not answer: {log.read_text()[-3000:]}")


@pytest.fixture
def visit(chromium: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """Open an address of Airflow as somebody who is not signed in yet, and sign in on its page."""
    contexts = []

    def open_page(path: str, *, theme: str = "light", size: dict[str, int] | None = None) -> Page:
        context = chromium.new_context(viewport=size or {"width": 1360, "height": 900}, color_scheme="light")
        context.set_default_timeout(WITHIN_MS)
        contexts.append(context)
        context.add_init_script(f"localStorage.getItem('theme') || localStorage.setItem('theme', '{theme}')")
        page = context.new_page()
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.goto(f"{server.url}{path}")
        page.fill("input[name=username]", USER)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(f"**{path}**")
        return page

    yield open_page
    for context in contexts:
        context.close()


def _inside(page: Page) -> FrameLocator:
    return page.frame_locator("iframe").first


def test_loops_are_in_the_menu_and_lead_to_a_run_a_step_and_its_report(visit: Callable[..., Page]) -> None:
    page = visit("/dags")
    page.get_by_role("link", name="Loops").click()
    frame = _inside(page)
    frame.get_by_text("delay version 1 stays champion").wait_for()

    frame.get_by_role("link", name="delays").click()
    frame.get_by_role("heading", name="Promotions").wait_for()
    # The address follows, so that what is seen can be shared.
    page.wait_for_url("**/plugin/airloop/airloop/loops/delays")

    frame.get_by_role("row", name="February 2013").get_by_role("link", name="February 2013").click()
    frame.get_by_role("link", name="gate").click()
    frame.get_by_text("that may be chance").wait_for()
    frame.get_by_role("link", name="train").click()
    frame.get_by_role("heading", name="train").wait_for()

    frame.get_by_role("link", name="February 2013").click()
    frame.get_by_role("link", name="Report").first.click()
    frame.frame_locator("iframe").get_by_role("heading", name="March 2013").wait_for()
    page.wait_for_url("**/plugin/airloop/airloop/view/reports/delays/2013-02.html")
    frame.frame_locator("iframe").get_by_role("link", name="All").click()
    frame.frame_locator("iframe").get_by_role("heading", name="Delays").wait_for()


def test_a_shared_address_opens_what_was_seen(visit: Callable[..., Page]) -> None:
    page = visit("/plugin/airloop/airloop/loops/delays/run?run_id=backfill__2013-03")
    _inside(page).get_by_text("214 of 1,000 rows break <b>between</b>").first.wait_for()


def test_a_page_leads_back_into_airflow(visit: Callable[..., Page]) -> None:
    page = visit("/plugin/airloop/airloop/loops/delays")
    _inside(page).get_by_role("link", name="Open the DAG").click()
    page.wait_for_url("**/dags/delays")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_and_reports_follow_the_colours_of_airflow_not_of_the_system(
    visit: Callable[..., Page], server: Server, theme: str
) -> None:
    from playwright.sync_api import expect

    styled = b"<!doctype html><style>body{color:#000}@media (prefers-color-scheme: dark){body{color:#fff}}</style>text"
    (server.home / "artifacts/reports/delays/styled.html").write_bytes(styled)
    page = visit("/plugin/airloop/airloop/view/reports/delays/styled.html", theme=theme)
    frame = _inside(page)
    frame.frame_locator("iframe").get_by_text("text").wait_for()
    page.wait_for_function("document.documentElement.classList.length")
    assert page.evaluate("document.documentElement.className") == theme
    expect(frame.locator("html")).to_have_attribute("data-theme", theme, timeout=WITHIN_MS)
    ground = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--chakra-colors-bg')")
    assert frame.locator("html").evaluate("e => getComputedStyle(e).getPropertyValue('--page').trim()") == ground
    ink = "rgb(255, 255, 255)" if theme == "dark" else "rgb(0, 0, 0)"
    # The page adapts the file to the theme when all of it is there.
    expect(frame.frame_locator("iframe").locator("body")).to_have_css("color", ink, timeout=WITHIN_MS)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "loops/delays",
        "loops/delays/run?run_id=backfill__2013-02",
        "loops/delays/run?run_id=backfill__2013-03",
        "pods?dag_id=delays&run_id=backfill__2013-02&task_id=train",
    ],
)
@pytest.mark.parametrize("width", [320, 390, 1360])
def test_a_page_fits_the_screen(visit: Callable[..., Page], path: str, width: int) -> None:
    page = visit(f"/airloop/{path}", size={"width": width, "height": 844})
    page.locator("h1").wait_for()
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_link_to_a_file_goes_through_the_login_and_the_file_can_do_nothing(visit: Callable[..., Page]) -> None:
    page = visit("/airloop/artifacts/reports/delays/2013-02.html", size=PHONE)
    page.get_by_role("heading", name="March 2013").wait_for()
    page.get_by_role("link", name="All").click()
    page.get_by_role("heading", name="Delays").wait_for()


@pytest.fixture
def told(server: Server, test_dag: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A DAG that has run in this Airflow, with a page and without; its id and its run's."""
    from airflow.sdk import DAG

    from airloop_operators import StepOperator

    monkeypatch.setenv("AIRLOOP_HOME", str(server.home))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__WARM", "False")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", server.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with DAG("told", start_date=datetime(2013, 1, 1, tzinfo=UTC), schedule=None) as dag:
        StepOperator(task_id="tell", step="steps_with_pages:tell")
        StepOperator(task_id="plain", step="steps_with_pages:plain")
    ended = test_dag(dag, logical_date=datetime(2013, 2, 1, tzinfo=UTC))
    assert str(ended.state) == "success"
    return "told", ended.run_id


def test_the_buttons_of_a_task_open_its_manifest_its_report_and_its_mlflow_run(
    visit: Callable[..., Page], told: tuple[str, str], mlflow_ui: str
) -> None:
    dag_id, run_id = told
    task = f"/dags/{dag_id}/runs/{run_id}/tasks"
    page = visit(f"{task}/tell/details".replace("+", "%2B"))

    def press(name: str) -> None:
        page.get_by_role("link", name=name, exact=True).click()

    press("Manifest")
    _inside(page).get_by_text("Three rows were told").wait_for()
    page.go_back()
    press("Report")
    _inside(page).frame_locator("iframe").get_by_role("heading", name="Told").wait_for()
    assert _inside(page).frame_locator("iframe").locator("title").count() == 0, "its script ran"
    page.goto(f"{page.url.split('/plugin')[0]}{task.replace('+', '%2B')}/tell/details")
    press("MLflow run")
    page.wait_for_url(f"{mlflow_ui}/#/experiments/5/runs/abc")


def test_a_task_without_a_page_has_no_button_for_it(visit: Callable[..., Page], told: tuple[str, str]) -> None:
    dag_id, run_id = told
    page = visit(f"/dags/{dag_id}/runs/{run_id}/tasks/plain/details".replace("+", "%2B"))
    page.get_by_role("link", name="Manifest", exact=True).wait_for()
    assert page.get_by_role("link", name="Report", exact=True).count() == 0
    assert page.get_by_role("link", name="MLflow run", exact=True).count() == 0
    assert page.get_by_role("link", name="Pod", exact=True).count() == 0, "it ran in none"


def test_the_button_of_a_task_that_ran_as_a_pod_opens_its_story(
    visit: Callable[..., Page], server: Server, test_dag: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not os.environ.get("CI"):
        pytest.importorskip("airflow.providers.cncf.kubernetes", reason="install airloop[kubernetes]")
    from airflow.sdk import DAG

    from airloop_operators import StepOperator

    def node(pod: ScriptedPod) -> None:
        pod.event("Pulled", "Container image is already present")
        pod.run()
        pod.succeed()

    sizes = {
        "images": {"cpu": "airloop:1"},
        "volumes": [{"claim": "state", "path": str(server.home)}],
        "sizes": {"small": {}},
    }
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    monkeypatch.setenv("AIRLOOP_HOME", str(server.home))
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SIZES", str(tmp_path / "sizes.json"))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", server.url)
    with ApiServer(node) as cluster:
        extra = {"kube_config_path": str(cluster.kubeconfig(tmp_path / "kubeconfig"))}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
        with DAG("as_pods", start_date=datetime(2013, 1, 1, tzinfo=UTC), schedule=None) as dag:
            StepOperator(task_id="train", step="steps_with_pages:plain", runner="pod")
        ended = test_dag(dag, logical_date=datetime(2013, 2, 1, tzinfo=UTC))
    assert str(ended.state) == "success"
    page = visit(f"/dags/as_pods/runs/{ended.run_id}/tasks/train/details".replace("+", "%2B"))
    page.get_by_role("link", name="Pod", exact=True).click()
    frame = _inside(page)
    frame.get_by_role("heading", name="Pods of train").wait_for()
    frame.get_by_text("node-1").first.wait_for()
    frame.get_by_text("airloop@sha256:0123").first.wait_for()
    frame.get_by_text("Pulled: Container image is already present").wait_for()


def test_a_dag_has_its_loop_as_a_tab(visit: Callable[..., Page], told: tuple[str, str]) -> None:
    page = visit(f"/dags/{told[0]}")
    page.get_by_role("link", name="Loop", exact=True).click()
    frame = _inside(page)
    frame.get_by_role("heading", name="told").wait_for()
    # It does not wait for one of several.
    frame.get_by_role("link", name=told[1]).wait_for()
