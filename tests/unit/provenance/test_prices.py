"""What an attempt costs, and files of prices that cannot be right."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airloop.contract import RunInfo
from airloop.errors import BadConfiguration
from airloop.provenance.prices import parse_prices, read_prices
from airloop.usage import Spent

PRICES: dict[str, Any] = {
    "currency": "EUR",
    "default": {"cpu_hour": 0.1, "gib_hour": "0.01"},
    "pools": {"gpu": {"cpu_hour": 0.1, "accelerator_hour": 3}, "spot": {"pod_hour": 1, "gib_hour": 0.5}},
    "sizes": {"large": {"pod_hour": 0.4}},
}
HOUR = Decimal(3600)


def one(**about: Any) -> Spent:
    """An hour of two processors and four GiB."""
    usual: dict[str, Any] = {
        "attempt": "aaaa0000", "step": "s", "run": RunInfo("d", "r", "t"), "status": "done", "started_at": "2013-01-01",
        "seconds": HOUR, "amounts": {"cpu": 2 * HOUR, "memory": 4 * HOUR}, "pool": "default",
    }  # fmt: skip
    return Spent(**{**usual, **about})


GPU = {"cpu": 2 * HOUR, "memory": 4 * HOUR, "nvidia.com/gpu": 2 * HOUR}


@pytest.mark.parametrize(
    ("about", "cost"),
    [
        ({}, "0.24"),
        ({"pool": "local"}, "0.24"),
        ({"pool": "gpu", "amounts": GPU}, "6.2"),
        ({"pool": "spot"}, "3"),
        ({"pool": "spot", "amounts": GPU}, "3"),
        ({"pool": "gpu", "size": "large", "amounts": GPU}, "0.4"),
        ({"pool": "gpu", "size": "large", "amounts": None}, "0.4"),
        ({"amounts": GPU}, None),
        ({"amounts": None}, None),
        ({"seconds": None, "amounts": None}, None),
        ({"seconds": Decimal(0), "amounts": {}}, "0"),
    ],
)
def test_an_attempt_costs_what_its_size_or_pool_does(about: dict[str, Any], cost: str | None) -> None:
    found = parse_prices(PRICES, origin="prices.yaml").of(one(**about))
    assert found == (None if cost is None else Decimal(cost))


def test_a_pool_without_a_price_has_none() -> None:
    without = parse_prices({k: v for k, v in PRICES.items() if k != "default"}, origin="prices.yaml")
    assert without.of(one()) is None


def test_no_digit_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("currency: EUR\ndefault: {cpu_hour: 0.1}\n")
    prices = read_prices(file)
    assert sum((prices.of(one(amounts={"cpu": HOUR})) or 0 for _ in range(3)), Decimal(0)) == Decimal("0.3")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "prices.yaml is empty; write name: value pairs"),
        ([1], "prices.yaml is a list"),
        ({"default": {"cpu_hour": 1}}, "currency is None; name it"),
        ({"currency": 3, "default": {"cpu_hour": 1}}, "currency is 3"),
        ({"currency": "EUR"}, "there is no price in it; give default, pools or sizes"),
        ({"currency": "EUR", "pool": {}}, "there is no 'pool'; possible: currency, default, pools, sizes"),
        ({"currency": "EUR", "default": 3}, "default is a int"),
        ({"currency": "EUR", "default": {}}, "default: there is no price in it; give one of cpu_hour"),
        ({"currency": "EUR", "pools": ["gpu"]}, "pools is a list"),
        ({"currency": "EUR", "pools": {"gpu": {"gpu_hour": 1}}}, "pools.gpu: there is no 'gpu_hour'; possible: cpu_h"),
        ({"currency": "EUR", "sizes": {"s": {"pod_hour": -1}}}, "sizes.s.pod_hour is -1; give a number of at least 0"),
        ({"currency": "EUR", "sizes": {"s": {"pod_hour": "dear"}}}, "sizes.s.pod_hour is 'dear'"),
        ({"currency": "EUR", "sizes": {"s": {"pod_hour": True}}}, "sizes.s.pod_hour is True"),
        ({"currency": "EUR", "sizes": {"s": {"pod_hour": float("nan")}}}, "sizes.s.pod_hour is nan"),
        ({"currency": "EUR", "sizes": {"s": {"pod_hour": None}}}, "sizes.s.pod_hour is None"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(document: Any, says: str) -> None:
    with pytest.raises(BadConfiguration) as raised:
        parse_prices(document, origin="prices.yaml")
    assert says in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"none.yaml cannot be read: No such file.*AIRLOOP_PRICES"):
        read_prices(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("currency: [")
    with pytest.raises(BadConfiguration, match="neither YAML nor JSON"):
        read_prices(tmp_path / "torn.yaml")
