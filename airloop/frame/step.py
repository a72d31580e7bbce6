"""
Steps are functions; the decorator :func:`step` gives them typed, checked and documented arguments.

::

    @step(libraries=("duckdb",))
    def count_rows(ctx: StepContext, *, table: TableRef, interval: Interval, at_least: int = 1) -> StepResult:
        \"\"\"Count the rows of an interval.

        :param table: the table to count in.
        :param at_least: fewer rows are an error.
        \"\"\"

Arguments are JSON values that pydantic turns into the annotated types. A parameter named ``interval`` is filled from
the run if it is not given. References are resolved before the function is called.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from airloop.config import Config
from airloop.contract import Call, Interval
from airloop.errors import BadArgument, BadInterval
from airloop.faults import point
from airloop.reference import Reference, Scope
from airloop.warehouse.artifacts import ArtifactStore

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Commit, Warehouse


class _Keyless:
    def __repr__(self) -> str:
        return "KEYLESS"


KEYLESS = _Keyless()
"""``Annotated[int, KEYLESS]``: an argument that changes how fast a step runs and never what it makes."""


@dataclass(slots=True)
class StepResult:
    """What a step made: references and counts, never data."""

    outputs: Mapping[str, Reference | str] = field(default_factory=dict)
    """References by kind or role: ``{"table": "raw.flights@64…", "model": "model:/delay/3"}``."""
    counts: dict[str, int] = field(default_factory=dict)
    """Whole numbers worth a look: ``{"rows": 27004, "rows_quarantined": 3}``."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Measured figures, finite."""
    details: dict[str, Any] = field(default_factory=dict)
    """Everything else that is evidence, as JSON; kept in the manifest, not handed to Airflow."""
    links: dict[str, str] = field(default_factory=dict)
    """Addresses for people: ``{"report": …, "mlflow": …}``."""
    changed: bool = True
    """False: the step found that nothing was to be done, and made nothing new."""
    event: dict[str, Any] | None = None
    """What an asset event carries beside key and interval; None if the step has no event to announce."""


@dataclass(slots=True)
class StepContext:
    """What a step's function is given beside its arguments."""

    config: Config
    call: Call
    key: str
    artifacts: ArtifactStore
    workdir: Path
    """An empty folder of this attempt; removed afterwards."""
    log: logging.Logger
    _warehouse: Warehouse | None = None

    @property
    def warehouse(self) -> Warehouse:
        """The Iceberg warehouse, opened at first use."""
        if self._warehouse is None:
            from airloop.warehouse.catalog import Warehouse

            self._warehouse = Warehouse.open(self.config)
        return self._warehouse

    @property
    def scope(self) -> Scope:
        return Scope(self.config, self.call.interval)

    def publish(self, name: str, content: Path | bytes) -> str:
        """
        Publish a file or folder beside the step's manifest.

        :returns: its address.
        """
        full = f"{self.folder}/{name}"
        if isinstance(content, bytes):
            self.artifacts.publish_bytes(full, content)
        else:
            self.artifacts.publish_path(full, content)
        return self.artifacts.uri(full)

    @property
    def folder(self) -> str:
        """Folder of this step's artifacts and manifest in the artifact store."""
        return manifest_folder(self.call.step, self.key)

    def is_news(self, commit: Commit) -> bool:
        """
        Whether nobody has heard of this key's commit: this attempt made it, or one that ended before it could say so.

        A forced repetition has nothing new to tell.
        """
        return commit.changed or (commit.adopted and not self.call.force)

    def point(self, name: str) -> bool:
        """A named point for fault injection; see :mod:`airloop.faults`."""
        return point(name)


def manifest_folder(step_name: str, key: str) -> str:
    """Where a step's artifacts and manifest live in the artifact store."""
    return f"steps/{re.sub(r'[^A-Za-z0-9_.-]', '_', step_name)}/{key[:2]}/{key}"


@dataclass(frozen=True)
class Parameter:
    """One argument of a step, as the catalogue shows it."""

    name: str
    type: Any
    required: bool
    default: Any
    in_key: bool
    description: str

    @property
    def type_name(self) -> str:
        inner = get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type
        name = inner.__name__ if isinstance(inner, type) and not get_args(inner) else str(inner)
        return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", name)


@dataclass(frozen=True)
class Step:
    """A step: its name, function, arguments and how its key is made."""

    name: str
    function: Callable[..., StepResult]
    libraries: tuple[str, ...]
    """Distributions whose versions are part of the key."""
    still_there: Callable[[StepContext, Mapping[str, Any]], bool] | None
    """Given the manifest of an earlier run: is the effect outside the warehouse still there?"""
    version: int
    """Raised by the author to redo everything that earlier versions made."""
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Given the bound arguments, those that count: drops what this call does not depend on, such as an interval."""
    effect: str = ""
    """What it does that is no result of its own, in words; empty: nothing."""

    @property
    def acts(self) -> str:
        """Why nobody may run it for a comparison; empty: its results are all that it does."""
        return self.effect or ("it has an effect outside the warehouse" if self.still_there is not None else "")

    @property
    def module(self) -> str:
        return self.function.__module__

    @cached_property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].replace("\n", " ")

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        hints = get_type_hints(self.function, include_extras=True)
        described = dict(re.findall(r":param (\w+):\s*(.*?)(?=\n\s*:|\Z)", inspect.getdoc(self.function) or "", re.S))
        found = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            annotation = hints[name]
            found[name] = Parameter(
                name=name,
                type=annotation,
                required=parameter.default is inspect.Parameter.empty,
                default=None if parameter.default is inspect.Parameter.empty else parameter.default,
                in_key=KEYLESS not in getattr(annotation, "__metadata__", ()),
                description=" ".join(described.get(name, "").split()),
            )
        return found

    def bind(self, arguments: Mapping[str, Any], interval: Interval | None) -> dict[str, Any]:
        """
        Check the arguments and turn them into the annotated types; references stay unresolved.

        :raises BadArgument: one is unknown, missing or of the wrong type.
        :raises BadInterval: the step needs an interval and the run has none.
        """
        from pydantic import TypeAdapter, ValidationError

        unknown = sorted(set(arguments) - set(self.parameters))
        if unknown:
            raise BadArgument(f"step {self.name} has no argument {', '.join(unknown)}", f"it takes {self._usage()}")
        bound: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name == "interval":
                given = arguments.get("interval")
                bound[name] = Interval.parse(given) if given is not None else interval
                if bound[name] is None and parameter.required:
                    raise BadInterval(
                        f"step {self.name} works on an interval and this run has none",
                        "schedule the DAG with a data interval or a partition key, or pass interval='start/end'",
                    )
                continue
            if name not in arguments:
                if parameter.required:
                    raise BadArgument(f"step {self.name} needs {name}", f"it takes {self._usage()}")
                # Of its own: a step may change what it is given.
                bound[name] = copy.deepcopy(parameter.default)
                continue
            try:
                adapter: TypeAdapter[Any] = TypeAdapter(parameter.type)
                bound[name] = adapter.validate_python(arguments[name])
            except ValidationError as cause:
                faults = "; ".join(
                    ".".join(str(part) for part in (name, *fault["loc"])) + f": {fault['msg']}"
                    for fault in cause.errors(include_url=False)
                )
                raise BadArgument(f"step {self.name}: {faults}", f"expected {parameter.type_name}") from cause
        return self.prepare(bound) if self.prepare is not None else bound

    def _usage(self) -> str:
        return ", ".join(
            p.name if p.required else f"{p.name}={p.default!r}"
            for p in self.parameters.values()
            if p.name != "interval"
        )


def step(
    name: str | None = None,
    *,
    libraries: tuple[str, ...] = (),
    still_there: Callable[[StepContext, Mapping[str, Any]], bool] | None = None,
    version: int = 1,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    effect: str = "",
) -> Callable[[Callable[..., StepResult]], Step]:
    """
    Make a function a step.

    :param name: name in the catalogue; default the function's.
    :param libraries: distributions whose versions decide the result and so are part of the key.
    :param still_there: given the context and the manifest of an earlier run, whether an effect outside the warehouse
        (online store, registry) is still there; without it only the tables named by the outputs are checked.
    :param version: raise it to redo everything that earlier versions made.
    :param prepare: given the bound arguments, returns those that the key and the function see. A step that ignores
        its interval in this call returns ``interval`` as None, so that a run of another interval reuses the result.
    :param effect: what it does beside its results, as a sentence: "it sends mail". A replay never runs such a step,
        nor one with ``still_there``: it could only do it again. Tables, artifacts and MLflow, written through the
        context and its configuration, are results.
    """

    def wrap(function: Callable[..., StepResult]) -> Step:
        return Step(name or function.__name__, function, libraries, still_there, version, prepare, effect)

    return wrap


def resolve(value: Any, scope: Scope) -> Any:
    """The same value with every reference in it, however deep, resolved."""
    if isinstance(value, Reference):
        return value.resolve(scope)
    if isinstance(value, Mapping):
        return {k: resolve(v, scope) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolve(v, scope) for v in value)
    return value
