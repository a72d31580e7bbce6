"""
Put a mark in the place of a subject's values in a text, so that whoever reads the text still can.

In JSON only texts change, and numbers that a column of the subject names, which become ``null``. What tells a reader
its way stays: names, references to tables, the parts of manifests and records that others rely on to the letter. So
does a number that happens to be the same: a count, a size, a microsecond. Where a value stands in such a place, that
is said, for nobody but a person knows whether it is meant.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from airloop.frame.manifest import STRUCTURE
from airloop.records import RECORD_FORMAT
from airloop.warehouse.refs import valid_name

REDACTED = "[erased]"
RELIED_ON = STRUCTURE | {"event", "links", "reused"}
"""Parts of manifests and records that others read by the letter."""
RUN = frozenset({"attempt", "dag_id", "digest", "manifest", "reference", "run_id", "step", "task_id"})
"""Names under which, wherever they stand, a text tells a run and what it made."""
FIGURES = frozenset(
    {"changed", "counts", "finished_at", "host", "keyless", "metrics", "python", "resources", "seconds", "spawned_at"}
    | {"started_at", "tables", "threads"}
)
"""Parts of manifests and records that Airloop itself counts or measures: a value there is never a person's."""
OFFENDERS = frozenset({"partial_unexpected_list", "unexpected_list"})
"""Under these names Great Expectations lists values of rows."""
_AT_SNAPSHOT = re.compile(r"@\d+\Z")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_PART_OF_PAGE = re.compile(
    r"(?P<open><(script|style)\b[^>]*>)(?P<script>.*?)(?=</\2)|(?P<tag><[^>]*>)|[^<]+|<", re.I | re.S
)


class Values:
    """
    Values of a subject, in every form in which texts hold them.

    :param columns: names under which a number is the subject's.
    """

    def __init__(self, texts: Iterable[str], columns: Iterable[str] = ()) -> None:
        texts = set(texts)
        numbers = {text for text in texts if _NUMBER.fullmatch(text)}
        self.columns = frozenset(columns) | OFFENDERS
        self.numbers = {Decimal(text) for text in numbers}
        words = {form for text in texts - numbers for form in _forms(text)}
        whole_numbers = {f"{text}.0" for text in numbers if "." not in text}
        self.any = _tokens(words, numbers | whole_numbers)
        self.words = _tokens(words, set())
        self.bytes = re.compile(_either(words | numbers).encode()) if texts else None
        """Finds at least all that the others find."""


def _either(forms: Iterable[str]) -> str:
    longest_first = sorted(forms, key=len, reverse=True)
    return rf"(?<![A-Za-z0-9_])(?:{'|'.join(map(re.escape, longest_first))})(?![A-Za-z0-9_])"


def _tokens(words: set[str], numbers: set[str]) -> re.Pattern[str]:
    """Whole words; a number is none that is part of another one."""
    found = [_either(words)] if words else []
    if numbers:
        found.append(rf"(?<!\d\.){_either(numbers)}(?!\.\d)")
    return re.compile("|".join(found) or r"(?!)")


def _forms(text: str) -> Iterator[str]:
    """The value as JSON, HTML and addresses write it."""
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield html.escape(text)
    yield html.escape(text, quote=False)
    yield quote(text)
    yield quote(text, safe="")


@dataclass
class Redaction:
    """One content without the values."""

    values: Values
    kept: bool = False
    """Whether a value stands where it was left."""

    def document(self, content: str, *, manifest: bool = False) -> str:
        """
        JSON, written as it was.

        :param manifest: whether it is a manifest, or the record of an attempt.
        :raises ValueError: it is no JSON, or says a format of which this airloop does not know what others rely on.
        """
        before = json.loads(content)
        if manifest and isinstance(before, dict):
            if before.get("format", RECORD_FORMAT) != RECORD_FORMAT:
                raise ValueError(f"it is of format {before['format']}")
            after: Any = {name: self._part(name, value) for name, value in before.items()}
        else:
            after = self._value(before)
        if after == before:
            return content
        indent = re.match(r"\s*[\[{]\r?\n( *)", content)
        end = content[len(content.rstrip()) :]
        separators = (",", ":") if indent is None and ": " not in content else None
        shown = json.dumps(
            after, indent=len(indent[1]) if indent else None, ensure_ascii=content.isascii(), separators=separators
        )
        json.loads(shown)
        return shown + end

    def lines(self, content: str) -> str:
        """A text, of which lines may be JSON."""
        return "".join(self._text(line) for line in content.splitlines(keepends=True))

    def page(self, content: str) -> str:
        """HTML or SVG: what is shown changes, and what a script holds as JSON; a number in a tag or script stays."""
        return _PART_OF_PAGE.sub(self._part_of_page, content)

    def _part_of_page(self, found: re.Match[str]) -> str:
        if found["open"] is not None:
            try:
                # As JSON, the end of a tag may not stand in a script.
                script = self.document(found["script"])
                return found["open"] + (script if script == found["script"] else script.replace("</", r"<\/"))
            except ValueError:
                return found["open"] + self._words(found["script"])
        return self._words(found[0]) if found["tag"] is not None else self.values.any.sub(REDACTED, found[0])

    def _words(self, text: str) -> str:
        text = self.values.words.sub(REDACTED, text)
        self.kept |= self.values.any.search(text) is not None
        return text

    def _text(self, text: str) -> str:
        if text.lstrip()[:1] in ("{", "["):
            try:
                return self.document(text)
            except ValueError:
                pass
        return self.values.any.sub(REDACTED, text)

    def _part(self, name: str, value: Any) -> Any:
        """A part of a manifest or record."""
        if name in RELIED_ON:
            return self._left(value)
        return value if name in FIGURES else self._value(value)

    def _left(self, value: Any) -> Any:
        self.kept |= self.values.any.search(json.dumps(value, ensure_ascii=False)) is not None
        return value

    def _value(self, value: Any, *, theirs: bool = False) -> Any:
        """:param theirs: whether a number here is a column's of the subject."""
        if isinstance(value, dict):
            self.kept |= any(self.values.any.search(name) for name in value)
            return {name: self._member(name, v) for name, v in value.items()}
        if isinstance(value, list):
            return [self._value(v, theirs=theirs) for v in value]
        if isinstance(value, str):
            if self._is_reference(value):
                self.kept = True
                return value
            return self._text(value)
        if isinstance(value, bool) or value is None or Decimal(repr(value)) not in self.values.numbers:
            return value
        self.kept |= not theirs
        return None if theirs else value

    def _member(self, name: str, value: Any) -> Any:
        theirs = name in self.values.columns
        return self._left(value) if name in RUN and not theirs else self._value(value, theirs=theirs)

    def _is_reference(self, text: str) -> bool:
        """Whether a value is but a part of a table's name, perhaps at a snapshot or branch."""
        found = self.values.any.search(text)
        return found is not None and found[0] != text and valid_name(_AT_SNAPSHOT.sub("", text))
