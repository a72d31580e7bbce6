"""
References: arguments that name state instead of carrying it.

``flights@main`` is a reference to a table; before a step runs it is resolved to what it names now,
``flights@6438…``. Only resolved references enter a step's key, its manifest and its function. A step's result can be
passed wherever a reference is expected: the output of that kind is taken from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from airloop.config import Config
    from airloop.contract import Interval


@dataclass(frozen=True, slots=True)
class Scope:
    """What references are resolved against."""

    config: Config
    interval: Interval | None = None


class Reference(ABC):
    """Base of all references. Subclasses are immutable and comparable."""

    kind: ClassVar[str]
    """Name of the output that is taken when a step's result is passed: ``table``, ``model``…"""

    @classmethod
    @abstractmethod
    def parse(cls, value: Any) -> Self:
        """
        Read the reference as people write it, usually a string.

        :raises ValueError: the value is not a reference of this kind; the text says what is expected.
        """

    @abstractmethod
    def resolve(self, scope: Scope) -> Self:
        """
        The same reference with every alias replaced by what it names now.

        :raises NotFound: it names nothing.
        """

    @abstractmethod
    def canonical(self) -> Any:
        """JSON value that stands for the resolved content in keys and manifests: no local path, no time."""

    def exists(self, scope: Scope) -> bool:
        """Whether what a resolved reference names is still there; a reuse depends on it."""
        return True

    @classmethod
    def coerce(cls, value: Any) -> Self:
        """Read a reference, a step's result that holds one, or the form that :meth:`parse` takes."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and "step" in value and "key" in value:
            if cls.kind not in value:
                outputs = sorted(set(value) - {"step", "key", "status", "manifest", "counts", "interval"})
                raise ValueError(f"the result of step {value['step']} has no {cls.kind}, only {outputs}")
            value = value[cls.kind]
        return cls.parse(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(cls.coerce)
