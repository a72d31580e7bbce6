"""Secrets of steps: named once for all of them, or by a task; taken from Airflow connections when a task runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from airloop.errors import BadArgument, BadConfiguration

if TYPE_CHECKING:
    from airflow.sdk import Connection

PLAIN = ("login", "host", "schema")
"""Fields that are shown to whoever may see connections. Masked, a user called ``lake`` would blank every address."""
FIELDS = ("password", *PLAIN, "uri")
_SECRET = re.compile(rf"([A-Za-z_]\w*)=([^\s.,=]+\.(?:{'|'.join(FIELDS)}|extra\.[^\s,=]+))", re.ASCII)


def read_secrets(text: str) -> dict[str, str]:
    """
    Read ``[airloop] secrets``: ``VARIABLE=connection_id.field``, separated by commas or line ends.

    :returns: ``connection_id.field`` by variable.
    :raises BadConfiguration: a part cannot be read, or a variable comes twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, re.split(r"[,\s]+", text)):
        parts = _SECRET.fullmatch(part)
        if parts is None or parts[1] in found:
            what = "names a variable that was named before" if parts else "is not VARIABLE=connection_id.field"
            raise BadConfiguration(
                f"[airloop] secrets: {part!r} {what}",
                f"write VARIABLE=connection_id.field, separated by commas; fields: {', '.join(FIELDS)}, extra.NAME",
            )
        found[parts[1]] = parts[2]
    return found


def fetch_secrets(wanted: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """
    Values by environment variable: first those that are secret, masked in logs from then on; then those of
    :data:`PLAIN` fields. Each connection is asked for once.

    :param wanted: environment variable → ``connection_id.field``.
    :raises BadArgument: a field is unknown or empty. (Airflow's own error names a connection that does not exist.)
    """
    if not wanted:
        return {}, {}
    from airflow.sdk import BaseHook
    from airflow.sdk.log import mask_secret

    connections: dict[str, Connection] = {}
    secrets: dict[str, str] = {}
    plain: dict[str, str] = {}
    for variable, where in wanted.items():
        connection_id, _, field = where.partition(".")
        if connection_id not in connections:
            connections[connection_id] = BaseHook.get_connection(connection_id)
        value = _field(connections[connection_id], field, variable, where)
        if not value:
            raise BadArgument(f"secret {variable}: connection {connection_id} has no {field}", "set it in Airflow")
        if field in PLAIN:
            plain[variable] = value
        else:
            mask_secret(value)
            secrets[variable] = value
    return secrets, plain


def _field(connection: Connection, field: str, variable: str, where: str) -> str:
    if field.startswith("extra."):
        return str(connection.extra_dejson.get(field.removeprefix("extra.")) or "")
    if field == "uri":
        return connection.get_uri()
    if field in FIELDS:
        return str(getattr(connection, field) or "")
    raise BadArgument(
        f"secret {variable}: {where!r} is not connection_id.field", f"fields: {', '.join(FIELDS)}, extra.NAME"
    )
