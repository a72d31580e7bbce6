"""The plugin's application below a root of Airflow's own: its auth manager, its login, its middleware."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airloop.config import Config
from tests.loop_world import World, populate

PASSWORDS = {"ann": "ann's", "bob": "bob's"}


@pytest.fixture(scope="session")
def loops_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two loops; tests only read them."""
    home = tmp_path_factory.mktemp("loops")
    config = Config.from_environment({"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512"})
    populate(config)
    return config


@pytest.fixture
def world(loops_config: Config) -> World:
    return World(loops_config)


@pytest.fixture
def airflow(
    airflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Config], FastAPI]]:
    """
    Mount the plugin for a configuration at ``/airloop``.

    Users are ``ann``, who may read everything, and ``bob``, who may not read the DAG ``secret``.
    """
    from airflow.api_fastapi.app import init_auth_manager, purge_cached_app
    from airflow.api_fastapi.auth.middlewares.refresh_token import JWTRefreshMiddleware

    from airloop_operators.web.app import create_app

    passwords = tmp_path / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    # The one that Airflow makes up is shorter than its own JWT library likes.
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "k" * 64)
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.unit.operators.web.managers.Discreet")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ann:viewer,bob:viewer")
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
    purge_cached_app()

    def mount(config: Config) -> FastAPI:
        root = FastAPI()
        init_auth_manager(root)
        root.mount("/airloop", create_app(config))
        root.add_middleware(JWTRefreshMiddleware)
        return root

    yield mount
    purge_cached_app()


@pytest.fixture
def client(airflow: Callable[[Config], FastAPI], loops_config: Config) -> Callable[[str], TestClient]:
    """A client signed in as a user, by the session cookie that Airflow's UI sets; ``""``: as nobody."""

    def sign_in(user: str = "", config: Config = loops_config) -> TestClient:
        client = TestClient(airflow(config), follow_redirects=False, raise_server_exceptions=True)
        if user:
            answer = client.post("/auth/token", json={"username": user, "password": PASSWORDS[user]})
            assert answer.status_code == 201, answer.text
            client.cookies.set("_token", answer.json()["access_token"])
        return client

    return sign_in
