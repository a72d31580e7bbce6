"""
What keeps secrets out of logs, manifests and records. Standard library only: runners and payloads mask alike.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Self
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from airloop.contract import ENV_SECRETS

MASK = "***"
SHORTEST = 4
"""Characters of what is masked: a shorter "secret" would blank every text. Airflow's own masker has a like limit."""
SHORTEST_LINE = 8
"""The same of a line: those of a key are secret; its ``-----END-----`` or a closing brace is not worth the blanks."""

_IN_ADDRESSES = (
    # Looked at from every "://" on. Some take an @ or a / in a password as it is: up to the first @, and to the last.
    re.compile(r"""://[^/\s:@"]*:(?=([^\s@"]+)@)"""),
    re.compile(r"""://[^/\s:@"]*:(?=([^/\s"]+)@)"""),
    re.compile(r"""(?i)[?&](?:\w*passw(?:or)?d|pwd|\w*secret|\w*token|\w*_key)=([^&#\s"']+)"""),
)
_NAMED = re.compile(
    r"""(?i)(?:passw(?:or)?d|pwd|secret|token|credentials?|api_?key|_key)["']?\s*[=:]\s*["']?([^\s"'&;,}]+)"""
)


class Redactor:
    """
    Replaces secrets by ``***``, also where they are decoded, URL-quoted, escaped or broken into lines.

    Passwords inside of secrets are secrets too: those of addresses (``scheme://user:password@host``) and what follows
    a name such as ``password=`` or ``"token":``.

    :param secrets: the values.
    :param environment: variables whose addresses may hold passwords.
    """

    def __init__(self, secrets: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> None:
        given = set(secrets)
        values = given.union(*(_inside(value, *_IN_ADDRESSES, _NAMED) for value in given))
        for value in (environment or {}).values():
            if "://" in value:
                values.update(_inside(value, *_IN_ADDRESSES))
        forms = {form for value in values for form in _forms(value)}
        self._forms = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """For the secrets that a payload's environment holds and names."""
        named = environment.get(ENV_SECRETS, "").split(",")
        return cls([environment[name] for name in named if environment.get(name)], environment)

    def __call__(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        return text


def _inside(value: str, *patterns: re.Pattern[str]) -> set[str]:
    """Passwords inside of a secret or an address."""
    return {found for text in {value, unquote_plus(value)} for pattern in patterns for found in pattern.findall(text)}


def _forms(value: str) -> Iterator[str]:
    """How a secret may be written."""
    for text in {value, unquote(value), unquote_plus(value)}:
        for part in (text, *text.splitlines()):
            if part != text and len(part) < SHORTEST_LINE:
                continue
            yield from (part, part.strip(), repr(part)[1:-1])
            yield from (json.dumps(part, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
            # Bytes that are no text come from the environment as surrogates.
            quoted = [quote(part, safe=safe, errors="surrogateescape") for safe in ("", "/", " +")]
            quoted.append(quote_plus(part, errors="surrogateescape"))
            yield from quoted
            yield from (re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), form) for form in quoted)
