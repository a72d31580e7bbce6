"""
References to models and to a gate's decisions.

======================  ============================================================================================
``delay@champion``      what the alias names: as of the interval's start if the run has an interval, else now; for a
                        gate, as of the interval's end, see :class:`IncumbentRef`
``delay@3``             a registered version, also ``model:/delay/3``
``model:/run/3f2a…``    the model of a training run, not registered yet
``model:/delay/none``   there is no such model yet: what an alias resolves to before the first promotion
======================  ============================================================================================

Neither MLflow nor any other heavy library is imported to resolve them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airloop.errors import ContractBroken, NotFound
from airloop.reference import Reference, Scope

if TYPE_CHECKING:
    from airloop.contract import Interval

CHAMPION = "champion"
CHALLENGER = "challenger"
NONE = 0
"""Version of a model that is not there yet; real versions start at 1."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RUN = re.compile(r"[A-Za-z0-9_-]+")
_EXPECTED = "expected name@alias, name@version, model:/name/version or model:/run/run-id"


def valid_model_name(name: str) -> bool:
    """Whether models can be registered under ``name``: letters, digits, ``_ . -``; ``run`` is taken."""
    return _NAME.fullmatch(name) is not None and name != "run"


@dataclass(frozen=True, slots=True)
class ModelRef(Reference):
    """A model: by alias, or, once resolved, by version or training run."""

    kind: ClassVar[str] = "model"

    name: str = ""
    """Registered name; empty for the model of a run."""
    version: int | None = None
    """:data:`NONE` if there is no such model yet."""
    alias: str = ""
    run_id: str = ""
    """MLflow run, for a model that is not registered yet."""

    def __post_init__(self) -> None:
        given = [self.version is not None, bool(self.alias), bool(self.run_id)]
        if sum(given) != 1 or bool(self.run_id) == bool(self.name):
            raise ValueError(f"{self!r} is not a reference to a model; {_EXPECTED}")
        if self.name and not valid_model_name(self.name):
            raise ValueError(f"{self.name!r} is not the name of a model: letters, digits, _ . -, and not 'run'")

    @classmethod
    def parse(cls, value: Any) -> Self:
        """:raises ValueError: ``value`` is not a reference to a model."""
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a reference to a model; {_EXPECTED}")
        text = value.strip().removeprefix("model:/")
        name, separator, what = text.partition("/" if "/" in text else "@")
        if text.startswith("run/") and _RUN.fullmatch(what):
            return cls(run_id=what)
        if separator and what == "none":
            return cls(name, version=NONE)
        if separator and what.isascii() and what.isdigit() and int(what) > 0:
            return cls(name, version=int(what))
        if separator == "@" and _ALIAS.fullmatch(what):
            return cls(name, alias=what)
        raise ValueError(f"{value!r} is not a reference to a model; {_EXPECTED}")

    def __str__(self) -> str:
        if self.run_id:
            return f"model:/run/{self.run_id}"
        if self.alias:
            return f"{self.name}@{self.alias}"
        return f"model:/{self.name}/{self.version or 'none'}"

    @property
    def absent(self) -> bool:
        """Whether this says that there is no such model yet."""
        return self.version == NONE

    def resolve(self, scope: Scope) -> Self:
        """
        An alias becomes the version that it named, by data time, when the interval began: by then only runs of
        earlier intervals had taken effect, so an old interval gets the same answer however late it is run again.

        :raises NotFound: the version or the run is not there. An alias that names nothing yet is no error.
        """
        if not self.alias:
            if not self.absent and not self.exists(scope):
                raise NotFound(f"{self} is not in the model registry", "see `airloop models`")
            return self
        from airloop.registry.ledger import Ledger
        from airloop.warehouse.catalog import Warehouse

        ledger = Ledger(Warehouse.open(scope.config))
        if scope.interval is None:
            entry = ledger.champion_at(self.name, self.alias)
        else:
            entry = ledger.champion_at(self.name, self.alias, at=self._as_of(scope.interval), clock="data")
        return type(self)(self.name, version=NONE if entry is None else entry.version)

    def _as_of(self, interval: Interval) -> datetime:
        """Data time as of which an alias is looked up."""
        return interval.start

    def canonical(self) -> str:
        return str(self)

    def exists(self, scope: Scope) -> bool:
        """Whether the version or the run, and its model's files, are there; "no model yet" always is."""
        from airloop.registry import lookup

        if self.absent:
            return True
        if self.alias:
            return not self.resolve(scope).absent
        if self.run_id:
            return lookup.run_exists(scope.config, self.run_id)
        return lookup.version_run(scope.config, self.name, int(self.version or NONE)) is not None


@dataclass(frozen=True, slots=True)
class IncumbentRef(ModelRef):
    """
    The model whose place a challenger of an interval would take.

    As any model, but an alias is what it named just before the interval's end: also a roll-back by hand within the
    interval counts. What the interval's own run promotes takes effect at its end, so a repetition finds the same.
    """

    def _as_of(self, interval: Interval) -> datetime:
        return interval.end - timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class DecisionRef(Reference):
    """A gate's decision: ``decision:steps/evaluate/…/decision.json#<SHA-256>`` in the artifact store."""

    kind: ClassVar[str] = "decision"

    name: str
    """Name in the artifact store."""
    digest: str
    """SHA-256 of the file's bytes, hex."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """:raises ValueError: ``value`` is not a reference to a decision."""
        if isinstance(value, str):
            name, _, digest = value.strip().removeprefix("decision:").partition("#")
            if value.strip().startswith("decision:") and name and re.fullmatch(r"[0-9a-f]{64}", digest):
                return cls(name, digest)
        raise ValueError(f"{value!r} is not a reference to a decision; pass the result of an evaluate step")

    def __str__(self) -> str:
        return f"decision:{self.name}#{self.digest}"

    def resolve(self, scope: Scope) -> Self:
        """:raises NotFound: the decision's file is gone."""
        self.read(scope)
        return self

    def canonical(self) -> dict[str, str]:
        return {"decision": self.digest}

    def exists(self, scope: Scope) -> bool:
        from airloop.warehouse.artifacts import ArtifactStore

        return ArtifactStore(scope.config.artifacts).exists(self.name)

    def read(self, scope: Scope) -> dict[str, Any]:
        """
        The decision with what it is about: ``challenger``, ``champion``, ``examples``, ``decision``.

        :raises NotFound: the file is gone.
        :raises ContractBroken: it is not the file that was referred to.
        """
        from airloop.warehouse.artifacts import ArtifactStore, sha256

        content = ArtifactStore(scope.config.artifacts).read_bytes(self.name)
        if sha256(content) != self.digest:
            raise ContractBroken(f"{self.name} was changed after the gate wrote it", "run the evaluate task again")
        document: dict[str, Any] = json.loads(content)
        return document
