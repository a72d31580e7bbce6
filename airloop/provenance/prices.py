"""
What things cost, from a file::

    currency: EUR
    default: {cpu_hour: 0.031, gib_hour: 0.0042}
    pools:
      gpu: {cpu_hour: 0.031, gib_hour: 0.0042, accelerator_hour: 2.95}
      local: {cpu_hour: 0}
    sizes:
      large: {pod_hour: 0.40}

A size's prices count before its pool's, and these before the default ones. What is not named costs nothing, with one
exception: an accelerator without a price makes its attempt one that has none, as nobody has them for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from airloop.errors import BadConfiguration
from airloop.usage import CPU, MEMORY, Spent

HOUR = Decimal(3600)
_PARTS = ("currency", "default", "pools", "sizes")
_EXAMPLE = "write it as docs/how-to/cost.md shows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Prices in one currency, each for an hour; None: not named."""

    cpu_hour: Decimal | None = None
    """Of a processor."""
    gib_hour: Decimal | None = None
    """Of a GiB of memory."""
    accelerator_hour: Decimal | None = None
    """Of one accelerator, whatever its resource is called."""
    pod_hour: Decimal | None = None
    """Of a whole pod, or process."""

    def of(self, spent: Spent) -> Decimal | None:
        """What an attempt costs; None: it is not known what it took, or its accelerators have no price."""
        if spent.seconds is None:
            return None
        accelerators = self.accelerator_hour if self.accelerator_hour is not None or self.pod_hour is None else _ZERO
        total = spent.seconds * (self.pod_hour or _ZERO)
        prices = {CPU: self.cpu_hour or _ZERO, MEMORY: self.gib_hour or _ZERO}
        if spent.amounts is None:
            return total / HOUR if not any(prices.values()) and self.pod_hour is not None else None
        for resource, amount in spent.amounts.items():
            price = prices.get(resource, accelerators)
            if price is None:
                return None
            total += amount * price
        return total / HOUR


_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The whole file."""

    currency: str
    default: Rate | None = None
    """Of pools and sizes that are not named."""
    pools: Mapping[str, Rate] = field(default_factory=dict)
    sizes: Mapping[str, Rate] = field(default_factory=dict)

    def of(self, spent: Spent) -> Decimal | None:
        """What an attempt costs; None: there is no price for it, or it is not known what it took."""
        rate = self.sizes.get(spent.size) or self.pools.get(spent.pool) or self.default
        return rate.of(spent) if rate is not None else None


def read_prices(path: Path) -> Prices:
    """
    Read the file.

    :raises BadConfiguration: it cannot be read, or something in it cannot be right.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except OSError as cause:
        raise BadConfiguration(f"prices in {path} cannot be read: {cause.strerror}", "see AIRLOOP_PRICES") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise BadConfiguration(f"prices in {path} are neither YAML nor JSON: {cause}", _EXAMPLE) from cause
    return parse_prices(document, origin=str(path))


def parse_prices(document: Any, *, origin: str) -> Prices:
    """:raises BadConfiguration: something in it cannot be right."""
    table = _table(document, origin)
    for name in table:
        if name not in _PARTS:
            raise BadConfiguration(f"{origin}: there is no {name!r}", f"possible: {', '.join(_PARTS)}")
    currency = table.get("currency")
    if not isinstance(currency, str) or not currency.strip():
        raise BadConfiguration(f"{origin}: currency is {currency!r}", "name it, as a text: currency: EUR")
    default = table.get("default")
    found = Prices(
        currency=currency.strip(),
        default=None if default is None else _rate(default, f"{origin}: default"),
        pools=_rates(table.get("pools"), f"{origin}: pools"),
        sizes=_rates(table.get("sizes"), f"{origin}: sizes"),
    )
    if found.default is None and not found.pools and not found.sizes:
        raise BadConfiguration(f"{origin}: there is no price in it", "give default, pools or sizes")
    return found


def _rates(value: Any, where: str) -> dict[str, Rate]:
    if value is None:
        return {}
    return {str(name): _rate(given, f"{where}.{name}") for name, given in _table(value, where).items()}


def _rate(value: Any, where: str) -> Rate:
    known = [f.name for f in fields(Rate)]
    table = _table(value, where)
    for name in table:
        if name not in known:
            raise BadConfiguration(f"{where}: there is no {name!r}", f"possible: {', '.join(known)}")
    if not table:
        raise BadConfiguration(f"{where}: there is no price in it", f"give one of {', '.join(known)}")
    return Rate(**{name: _price(given, f"{where}.{name}") for name, given in table.items()})


def _price(value: Any, where: str) -> Decimal:
    """A number as it is written: 0.1 is a tenth."""
    number = None
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            number = None
    if number is None or not number.is_finite() or number < 0:
        raise BadConfiguration(f"{where} is {value!r}", "give a number of at least 0, the price of an hour")
    return number


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        kind = "empty" if value is None else f"a {type(value).__name__}"
        raise BadConfiguration(f"{where} is {kind}", "write name: value pairs")
    return value
