"""
What a source promises: columns, types, key, which interval a row belongs to, and what happens if it does otherwise.

A source is a YAML file next to the DAG. Operators pass its content, so a payload needs no path of the scheduler's.
:class:`SourceSpec` documents every field.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator, model_validator

from airloop.contract import Interval
from airloop.domain.durations import parse_duration
from airloop.sources.types import LOCAL, arrow_type, type_name

if TYPE_CHECKING:
    import pyarrow as pa

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Strict):
    """A column of the file."""

    type: str
    """One of :mod:`airloop.sources.types`."""
    nullable: bool = True
    """False: a row without a value is an error that names it."""
    optional: bool = False
    """True: the column may be missing from the file; its values are then null."""
    allow_nan: bool = False
    """True: NaN and infinity are values; False: they are errors."""
    source: str = ""
    """Name in the file, if it is another."""
    zone: str = ""
    """
    For a ``timestamptz`` that the file gives as local time without offset: the IANA name of its zone. Times that
    clocks skipped become null, those shown twice the first of the two; see :mod:`airloop.sources.localtime`.
    """
    description: str = ""
    """Meaning and unit; becomes the column's comment in the table."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        return type_name(value)

    @model_validator(mode="after")
    def _zone_fits(self) -> Column:
        if self.zone and self.type != "timestamptz":
            raise ValueError(f"zone is for timestamptz, not for {self.type}")
        if self.zone:
            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError) as cause:
                raise ValueError(f"there is no time zone {self.zone!r}; write America/New_York, UTC…") from cause
        return self

    @property
    def kind(self) -> str:
        """Canonical type of the values in the file."""
        return LOCAL if self.zone else self.type


class Derived(_Strict):
    """A column that is computed from the others of its row."""

    type: str
    """One of :mod:`airloop.sources.types`; the expression is cast to it."""
    sql: str = Field(min_length=1)
    """DuckDB expression over the file's columns and earlier derived ones; see :mod:`airloop.sources.localtime`."""
    nullable: bool = True
    """False: a row for which the expression gives no value is an error."""
    allow_nan: bool = False
    """True: NaN and infinity are values; False: they are errors."""
    description: str = ""
    """Meaning and unit; becomes the column's comment in the table."""

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        return type_name(value)


class Csv(_Strict):
    """How a CSV file is written."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    quote: str = Field(default='"', max_length=1)
    """Empty: nothing is quoted."""
    escape: str = Field(default="", max_length=1)
    """Character before a special one inside a value; empty: a quote is doubled instead."""
    encoding: str = "utf-8"
    null: tuple[str, ...] = ("",)
    """Texts that mean: no value."""
    header: bool = True
    """False: the columns stand in the order in which they are declared."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError as cause:
            raise ValueError(f"there is no encoding {value!r}; write utf-8, latin-1, cp1252…") from cause

    @field_validator("delimiter")
    @classmethod
    def _single_byte(cls, value: str) -> str:
        if not value.isascii() or value in "\r\n":
            raise ValueError(f"the delimiter is one ASCII character, not {value!r}")
        return value


class SourceSpec(_Strict):
    """A source of rows, declared."""

    name: str
    """Short name for people."""
    table: str
    """Where the rows go: ``namespace.table``."""
    description: str = ""
    """What one row is and who makes the files; becomes the table's comment."""
    format: Literal["csv", "parquet", "jsonl"]
    compression: Literal["auto", "none", "gzip", "zip"] = "auto"
    """``auto``: by the file's extension, ``.gz`` and ``.zip``."""
    inner: str = ""
    """Pattern of the members to read in a zip file; without it there must be exactly one."""
    max_unpacked_bytes: int = Field(default=64 << 30, ge=1)
    """A compressed file that unpacks to more is refused; bytes."""
    csv: Csv = Csv()
    columns: dict[str, Column] = Field(min_length=1)
    """Columns of the file by the name that they get in the table."""
    derive: dict[str, Derived] = {}
    """Columns computed from them, in this order."""
    key: tuple[str, ...] = Field(min_length=1)
    """Columns that name a row: the same key in a later file is the same row, maybe corrected."""
    interval_column: str = ""
    """
    The ``timestamptz`` column that decides which run a row belongs to. Rows without a value in it belong to every
    run, so that none is lost. Empty: a snapshot source, read as a whole, the same in every run.
    """
    lateness: str = "all"
    """
    How long before the interval's start rows of the files are compared with the table, so that late and corrected
    ones are picked up: ``35d``, ``12h``; ``all``: every earlier row of the files; ``none``: no earlier row.
    """
    not_after: datetime | None = None
    """A row dated at or after this instant cannot be right: an error that names it. For sources that ended."""
    max_future: str = "1d"
    """
    A row dated this long after now, or longer, cannot be right: an error that names it. ``all``: any date is. Rows
    of later intervals that are not that far off are left to the runs of those intervals.
    """
    partition_by: str = ""
    """Partitioning of the table: ``month(column)``, ``day(column)``, ``identity(column)``."""
    evolve: bool = True
    """True: a column that is not declared is kept, nullable, and reported; False: it is an error."""
    ignore: tuple[str, ...] = ()
    """Columns of the file, by their name in it, that are left out on purpose."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return parse_yaml(value) if isinstance(value, str) else value

    @field_validator("table")
    @classmethod
    def _table_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", value):
            raise ValueError(f"{value!r} is not namespace.table in lower case")
        return value

    @field_validator("lateness", "max_future")
    @classmethod
    def _duration(cls, value: str) -> str:
        duration(value)
        return value

    @field_validator("not_after")
    @classmethod
    def _has_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; give an offset, e.g. +00:00")
        return value.astimezone(UTC) if value else None

    @model_validator(mode="after")
    def _consistent(self) -> SourceSpec:
        names = [*self.columns, *self.derive]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"column {name!r}: a name is a letter, then letters, digits and _; "
                    "the name in the file goes into `source`"
                )
        doubled = _doubled([n.lower() for n in names])
        if doubled:
            raise ValueError(f"columns named twice, upper and lower case being the same: {', '.join(doubled)}")
        doubled = _doubled([*self.in_file.values(), *self.ignore])
        if doubled:
            raise ValueError(f"columns of the file named twice: {', '.join(doubled)}")
        missing = [n for n in self.key if n not in names]
        if missing or len(set(self.key)) != len(self.key):
            raise ValueError(f"key {list(self.key)} must be different columns out of {names}")
        optional = [n for n in self.key if n in self.columns and self.columns[n].optional]
        if optional:
            raise ValueError(f"key columns cannot be optional: {', '.join(optional)}")
        if self.interval_column:
            if self.interval_column not in names:
                raise ValueError(f"interval_column {self.interval_column!r} is not one of {names}")
            if self.type_of(self.interval_column) != "timestamptz":
                raise ValueError(f"interval_column {self.interval_column} must be a timestamptz")
        elif self.not_after:
            raise ValueError("not_after needs an interval_column")
        if self.format == "parquet" and self.compression not in ("auto", "none"):
            raise ValueError("Parquet files are compressed inside; compression must be none")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def order(self) -> tuple[str, ...]:
        """The order of the columns, which a dictionary in a step's key would lose."""
        return (*self.columns, *self.derive)

    @property
    def in_file(self) -> dict[str, str]:
        """Name in the file by name in the table."""
        return {name: column.source or name for name, column in self.columns.items()}

    def type_of(self, name: str) -> str:
        return (self.columns.get(name) or self.derive[name]).type

    def required(self, name: str) -> bool:
        """Whether a column must have a value in every row; those of the key always must."""
        return name in self.key or not (self.columns.get(name) or self.derive[name]).nullable

    def late_from(self, interval: Interval) -> datetime | None:
        """The instant from which on earlier rows are looked at; None: all of them."""
        back = duration(self.lateness)
        try:
            return None if back is None else interval.start - back
        except OverflowError:
            return None

    def table_schema(self, added: Mapping[str, str]) -> pa.Schema:
        """
        Arrow schema of the table: declared, derived, added and metadata columns; descriptions as ``doc``.

        :param added: canonical type by name of columns that are in the files without being declared.
        """
        import pyarrow as pa

        fields = [
            _field(name, self.type_of(name), not self.required(name), self._description(name)) for name in self.order
        ]
        fields += [_field(name, kind, True, UNDECLARED) for name, kind in added.items()]
        fields += [
            _field("_batch", "string", False, "Key of the step that brought the row as it is."),
            _field("_source", "string", False, "File that the row was in."),
            _field("_row", "long", False, "Its place among the data rows of that file, from 1."),
        ]
        return pa.schema(fields)

    def _description(self, name: str) -> str:
        return (self.columns.get(name) or self.derive[name]).description


UNDECLARED = "Not declared by the source; kept as it came."
"""Comment of columns that a file brought without the source declaring them."""


def parse_yaml(text: str) -> Any:
    """
    Read the content of a source's YAML file.

    :raises ValueError: not YAML, a key named twice, or a path instead of a content.
    """
    import yaml

    if "\n" not in text.strip() and re.search(r"\.ya?ml$", text.strip()):
        raise ValueError(
            f"{text.strip()!r} is a path; pass the file's content (operators read a *.yaml name themselves)"
        )

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                raise ValueError(f"line {key_node.start_mark.line + 1}: {key!r} is not text; quote it")
            if key in found:
                raise ValueError(f"line {key_node.start_mark.line + 1}: {key!r} is there twice")
            found[key] = loader.construct_object(value_node, deep=True)
        return found

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        document = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader that refuses keys given twice
    except yaml.YAMLError as cause:
        raise ValueError(f"not YAML: {' '.join(str(cause).split())}") from cause
    if not isinstance(document, dict):
        raise ValueError("a source is a YAML mapping: name, table, format, columns, key…")
    return document


def duration(text: str) -> timedelta | None:
    """
    Read ``35d``, ``12h``, ``none`` (zero) or ``all`` (None: without limit).

    :raises ValueError: anything else.
    """
    return None if text == "all" else parse_duration(text, name="duration")


def _field(name: str, kind: str, nullable: bool, description: str) -> pa.Field:
    import pyarrow as pa

    return pa.field(name, arrow_type(kind), nullable=nullable, metadata={"doc": description} if description else None)


def _doubled(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
