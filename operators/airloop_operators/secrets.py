"""Secrets of a step: taken from Airflow connections when the task runs, masked from then on."""

from __future__ import annotations

from collections.abc import Mapping

from airloop.errors import BadArgument


def fetch_secrets(wanted: Mapping[str, str]) -> dict[str, str]:
    """
    Values by environment variable.

    :param wanted: environment variable → ``connection_id.field``.
    :raises BadArgument: a field is unknown or empty. (Airflow's own error names a connection that does not exist.)
    """
    if not wanted:
        return {}
    from airflow.sdk import BaseHook
    from airflow.sdk.log import mask_secret

    found = {}
    for variable, where in wanted.items():
        connection_id, _, field = where.partition(".")
        connection = BaseHook.get_connection(connection_id)
        if field.startswith("extra."):
            value = connection.extra_dejson.get(field.removeprefix("extra."))
        elif field == "uri":
            value = connection.get_uri()
        elif field in {"password", "login", "host", "schema"}:
            value = getattr(connection, field)
        else:
            raise BadArgument(
                f"secret {variable}: {where!r} is not connection_id.field",
                "fields: password, login, host, schema, uri, extra.NAME",
            )
        if not value:
            raise BadArgument(f"secret {variable}: connection {connection_id} has no {field}", "set it in Airflow")
        mask_secret(str(value))
        found[variable] = str(value)
    return found
