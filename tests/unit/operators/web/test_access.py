"""Nobody reads anything without Airflow's login, and nobody reads more than his DAGs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.loop_world import World

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

Client = Callable[..., "TestClient"]

ADDRESSES = [
    "/",
    "/loops/delays",
    "/loops/delays/run?run_id=backfill__2013-01",
    "/manifest?path=steps/x/manifest.json",
    "/pods?dag_id=delays&run_id=backfill__2013-02&task_id=train",
    "/mlflow/1/2",
    "/view/reports/delays/index.html",
    "/artifacts/reports/delays/index.html",
    "/api/loops",
    "/api/loops/delays",
    "/static/loops.css",
]


def test_the_addresses_here_are_all_there_are(client: Client) -> None:
    app = next(r.app for r in client().app.routes if getattr(r, "path", "") == "/airloop")
    assert len(app.routes) == len(ADDRESSES)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_person_is_sent_to_the_login_and_back(client: Client, address: str) -> None:
    answer = client().get(f"/airloop{address}", headers={"Accept": "text/html,*/*"})
    if address.startswith("/api/"):
        assert answer.status_code == 401
        return
    assert answer.status_code == 302
    target = urlsplit(answer.headers["location"])
    assert target.path == "/api/v2/auth/login"
    assert parse_qs(target.query)["next"] == [f"/airloop{address}"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_program_is_told_that_it_is_not_authenticated(client: Client, address: str) -> None:
    answer = client().get(f"/airloop{address}")
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Not authenticated"}


@pytest.mark.parametrize("token", ["", "nonsense", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4iLCJyb2xlIjoiYWRtaW4ifQ."])
@pytest.mark.parametrize("how", ["cookie", "bearer"])
def test_a_forged_token_is_none(client: Client, token: str, how: str) -> None:
    nobody = client()
    headers = {"Authorization": f"Bearer {token}"} if how == "bearer" else {}
    if how == "cookie":
        nobody.cookies.set("_token", token)
    assert nobody.get("/airloop/api/loops", headers=headers).status_code == 401


def test_a_bearer_token_counts_as_the_cookie_does(client: Client) -> None:
    somebody = client("ann")
    token = somebody.cookies["_token"]
    somebody.cookies.clear()
    assert somebody.get("/airloop/api/loops", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_each_user_sees_the_loops_that_he_may_read(client: Client) -> None:
    seen = {u: [x["dag_id"] for x in client(u).get("/airloop/api/loops").json()["loops"]] for u in ("ann", "bob")}
    assert seen == {"ann": ["delays", "secret"], "bob": ["delays"]}
    assert "secret" not in client("bob").get("/airloop/").text.replace("secret__", "")


@pytest.mark.parametrize("address", ["loops/secret", "api/loops/secret", "loops/secret/run?run_id=manual__1"])
def test_a_loop_that_a_user_may_not_read_is_refused(client: Client, address: str) -> None:
    assert client("ann").get(f"/airloop/{address}").status_code == 200
    assert client("bob").get(f"/airloop/{address}").status_code == 403


@pytest.mark.parametrize("task", ["planes", "hidden"])
def test_what_a_step_made_is_read_by_those_whose_loop_reused_it(client: Client, world: World, task: str) -> None:
    run = client("ann").get("/airloop/api/loops/secret").json()["runs"][0]
    name = next(t["manifest"] for t in run["tasks"] if t["name"] == task)
    record = f"runs/secret/manual__1/{task}.json"
    assert world.store.exists(record)
    allowed = 200 if task == "planes" else 403  # "delays" reused the planes, not the other
    for address in (f"artifacts/{name}", f"manifest?path={name}"):
        assert client("ann").get(f"/airloop/{address}").status_code == 200
        assert client("bob").get(f"/airloop/{address}").status_code == allowed
    assert client("bob").get(f"/airloop/artifacts/{record}").status_code == 403
    assert client("bob").get(f"/airloop/manifest?path={record}").status_code == 403


def test_what_belongs_to_no_dag_is_for_those_who_may_read_all(client: Client, world: World) -> None:
    world.store.publish_bytes("notes/plan.txt", b"x")
    assert client("ann").get("/airloop/artifacts/notes/plan.txt").status_code == 200
    assert client("bob").get("/airloop/artifacts/notes/plan.txt").status_code == 403
