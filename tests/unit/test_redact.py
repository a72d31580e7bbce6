"""Secrets are masked however they are written."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

import pytest

from airloop.redact import Redactor

PASSWORD = "p@ss/w ord:ü%1"


@pytest.mark.parametrize(
    "secret",
    [
        PASSWORD,
        quote(PASSWORD, safe=""),
        f"postgresql://me:{quote(PASSWORD, safe='')}@db.example.org:5432/airloop",
        f"redis://:{quote(PASSWORD, safe='')}@host",
        f"http://host/x?user=me&password={quote_plus(PASSWORD)}&b=1",
        f"fs:///?__extra__={quote(json.dumps({'auth_token': quote(PASSWORD, safe='')}), safe='')}",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        PASSWORD,
        quote(PASSWORD, safe=""),
        quote(PASSWORD, safe="").replace("%2F", "%2f").replace("%3A", "%3a").replace("%C3%BC", "%c3%bc"),
        quote_plus(PASSWORD),
        quote(PASSWORD, safe=" +"),
        f"postgresql://me:{PASSWORD}@host",
        repr({"password": PASSWORD}),
        json.dumps([PASSWORD]),
    ],
)
def test_forms_of_a_secret_are_masked_whatever_form_was_given(secret: str, text: str) -> None:
    shown = Redactor([secret])(f"it is {text}!")
    assert "***" in shown
    assert "ord" not in shown.replace("password", "")


@pytest.mark.parametrize(
    ("address", "password"),
    [
        ("redis://:sesame-1@redis:6379/0", "sesame-1"),
        ("postgresql+psycopg://airloop:sesame%2F1@db/airloop", "sesame/1"),
        ("postgresql://me:ses@me-1@db/airloop", "ses@me-1"),
        ("postgresql://me:ses/me-1@db/airloop", "ses/me-1"),
        ("http://one:8080,http://me:sesame-1@two", "sesame-1"),
        ("https://host/models?api_key=sesame-1&x=2", "sesame-1"),
    ],
)
def test_passwords_in_any_variables_address_are_masked(address: str, password: str) -> None:
    redact = Redactor.from_environment({"ANY_NAME": address})
    assert redact(f"cannot connect with {password}") == "cannot connect with ***"
    assert redact("host one, port 8080, db airloop") == "host one, port 8080, db airloop"


def test_secrets_are_those_that_the_environment_names() -> None:
    redact = Redactor.from_environment({"AIRLOOP_SECRETS": "A,B,GONE", "A": "open sesame", "C": "not one: a@b:c"})
    assert redact("open sesame, not one: a@b:c") == "***, not one: a@b:c"


def test_arguments_that_look_like_names_of_secrets_are_none() -> None:
    call = json.dumps({"primary_key": "flight_id", "source": "file:///data/x.csv", "champion": "delay@champion"})
    text = "flight_id of file:///data/x.csv for delay@champion"
    assert Redactor.from_environment({"AIRLOOP_CALL": call})(text) == text


def test_lines_of_a_key_are_masked_one_by_one() -> None:
    key = "-----BEGIN-----\nMIIEowIBAAKCAQEA\nabc\n-----END-----\n"
    redact = Redactor([key])
    assert redact("MIIEowIBAAKCAQEA") == "***"
    assert redact("abc") == "abc"
    assert "MIIE" not in redact(repr(key))


def test_bytes_that_are_no_text_do_no_harm() -> None:
    odd = b"\xff\xfe\xfd\xfc".decode(errors="surrogateescape")
    assert Redactor([odd], {"X": f"redis://:{odd}@h"})(f"it is {odd}") == "it is ***"


def test_short_secrets_do_not_blank_everything() -> None:
    assert Redactor(["a", ""])("a banana") == "a banana"
