"""Addresses of a PostgreSQL, and its errors in our words."""

from __future__ import annotations

import traceback

import pytest

from airloop import postgres
from airloop.config import Config, without_password
from airloop.errors import (
    AirloopError,
    BadConfiguration,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    Unreachable,
    classify,
)

GOOD = "postgresql+psycopg://u:s3cret@db.example:5433/airloop"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD, GOOD),
        ("postgresql://u:s3cret@h/airloop?sslmode=require", "postgresql+psycopg://u:s3cret@h/airloop?sslmode=require"),
        ("postgres://u:s3cret@h:5432/airloop", "postgresql+psycopg://u:s3cret@h:5432/airloop"),
        ("postgresql+psycopg:///airloop?host=/run/postgresql", "postgresql+psycopg:///airloop?host=/run/postgresql"),
        ("postgresql+psycopg://u:s3%40cret%2F@[::1]:5432/a", "postgresql+psycopg://u:s3%40cret%2F@[::1]:5432/a"),
    ],
)
def test_an_address(text: str, wanted: str) -> None:
    assert postgres.checked(text, "AIRLOOP_CATALOG") == wanted


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg2://u:s3cret@h/db",
        "postgresql+psycopg://u:s3cret@h",
        "postgresql+psycopg://u:s3cret@h:port/db",
        "postgresql+psycopg://u:s3/cret@h/db",
        "postgresql+psycopg://u:s3#cret@h/db",
        "postgresql+psycopg://u:s3?cret@h/db",
        "postgresql+psycopg://u:s3cret@[::1/db",
        "postgresql+psycopg://u:%zzs3cret@h/db",
    ],
)
def test_an_address_that_cannot_be_used_is_not_told(text: str) -> None:
    with pytest.raises(BadConfiguration, match="AIRLOOP_CATALOG") as caught:
        postgres.connect(text, "AIRLOOP_CATALOG", connect_timeout="2")
    assert "cret" not in "".join(traceback.format_exception(caught.value))


def test_options_that_an_address_has_stay() -> None:
    found = postgres.for_sqlalchemy(f"{GOOD}?connect_timeout=77", "AIRLOOP_CATALOG")
    assert "connect_timeout=77" in found
    assert "connect_timeout=10" not in found
    assert "keepalives_idle=20" in found


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (GOOD, "postgresql+psycopg://u:***@db.example:5433/airloop"),
        ("postgresql+psycopg://u:a/b@c#d@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgresql+psycopg://h/db?user=u&password=s3cret&x=1", "postgresql+psycopg://h/db?user=u&password=***&x=1"),
        ("postgresql://h/db?sslpassword=s3cret&sslkey=k", "postgresql://h/db?sslpassword=***&sslkey=k"),
        ("redis://:s3cret@h:6379/0", "redis://:***@h:6379/0"),
        ("https://mlflow.example/x", "https://mlflow.example/x"),
        ("sqlite:////srv/a:b@c/catalog.db", "sqlite:////srv/a:b@c/catalog.db"),
        ("/srv/airloop", "/srv/airloop"),
    ],
)
def test_an_address_without_its_password(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_the_configuration(tmp_path: object) -> None:
    environment = {"AIRLOOP_HOME": str(tmp_path), "AIRLOOP_CATALOG": GOOD, "AIRLOOP_FEAST_REGISTRY": GOOD}
    config = Config.from_environment(environment)
    assert (config.catalog, config.feast_registry) == (GOOD, GOOD)
    assert "s3cret" not in repr(config)
    assert config.describe()["feast_registry"] == "postgresql+psycopg://u:***@db.example:5433/airloop"
    with pytest.raises(BadConfiguration, match="AIRLOOP_FEAST_REGISTRY is an address of kind mysql"):
        Config.from_environment({**environment, "AIRLOOP_FEAST_REGISTRY": "mysql://u:s3cret@h/db"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("28P01", BadConfiguration),
        ("57P01", Unreachable),
        ("08006", Unreachable),
        ("53300", Unreachable),
        ("40P01", StoreBusy),
        ("55P03", StoreBusy),
        ("57014", StoreBusy),
        ("53100", StoreFull),
        ("25006", StoreReadOnly),
        ("42501", StoreReadOnly),
        ("42601", None),
        ("23505", None),
    ],
)
def test_errors_by_their_codes(code: str, kind: type[AirloopError] | None) -> None:
    from psycopg.errors import lookup
    from sqlalchemy.exc import DBAPIError

    error = lookup(code)("told by the server")
    for told in (error, DBAPIError("SELECT 1", {}, error)):
        found = classify(told)
        assert (type(found) if found else None) == kind
