"""Secrets of all steps: how they are configured, and how connections become variables."""

from __future__ import annotations

import pytest

from airloop.errors import BadArgument, BadConfiguration
from airloop_operators.secrets import fetch_secrets, read_secrets
from airloop_operators.settings import Settings


def test_they_are_separated_by_commas_and_lines() -> None:
    text = """
        AWS_ACCESS_KEY_ID=lake.login, AWS_SECRET_ACCESS_KEY=lake.password
        AIRLOOP_CATALOG=our-db.uri,TOKEN=service.extra.api.token
    """
    assert read_secrets(text) == {
        "AWS_ACCESS_KEY_ID": "lake.login",
        "AWS_SECRET_ACCESS_KEY": "lake.password",
        "AIRLOOP_CATALOG": "our-db.uri",
        "TOKEN": "service.extra.api.token",
    }
    assert read_secrets("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("PASSWORD", "'PASSWORD' is not VARIABLE=connection_id.field"),
        ("PASSWORD=service", "'PASSWORD=service' is not"),
        ("PASSWORD=service.secret", "'PASSWORD=service.secret' is not"),
        ("PASSWORD = service.password", "'PASSWORD' is not"),
        ("PASS-WORD=service.password", "'PASS-WORD=service.password' is not"),
        ("A=one.login, A=other.login", "'A=other.login' names a variable that was named before"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read_secrets(text)
    assert said in caught.value.found
    assert "extra.NAME" in caught.value.advice


def test_they_are_read_with_the_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIRLOOP__SECRETS", "PGPASSWORD=db.password")
    settings = Settings.read()
    assert settings.secrets == {"PGPASSWORD": "db.password"}
    assert "PGPASSWORD" not in settings.environment


def test_values_come_from_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DB", "postgres://air:s3%40cret@db.example:5433/lake?sslmode=require")
    monkeypatch.setenv("AIRFLOW_CONN_SERVICE", '{"conn_type": "generic", "extra": {"token": "t0ken-of-it"}}')
    wanted = {"AIRLOOP_CATALOG": "db.uri", "PGUSER": "db.login", "TOKEN": "service.extra.token"}
    secrets, plain = fetch_secrets(wanted)
    assert secrets == {
        "AIRLOOP_CATALOG": "postgres://air:s3%40cret@db.example:5433/lake?sslmode=require",
        "TOKEN": "t0ken-of-it",
    }
    assert plain == {"PGUSER": "air"}, "masked, it would be blanked in every text that has an air in it"
    assert fetch_secrets({}) == ({}, {})
    with pytest.raises(BadArgument, match="connection service has no password"):
        fetch_secrets({"PASSWORD": "service.password"})
    with pytest.raises(BadArgument, match=r"is not connection_id\.field"):
        fetch_secrets({"PASSWORD": "service.secret"})
