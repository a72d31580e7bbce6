"""
Pages of Airloop inside Airflow's UI: loops, their runs, promotions and reports. Read-only.

Every process of Airflow loads its plugins; only the API server answers requests. So what is mounted is a function, and
the application behind it is imported with the first request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any

Message = MutableMapping[str, Any]


async def serve(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """The ASGI application that the plugin mounts."""
    await _application()(scope, receive, send)


@cache
def _application() -> Any:
    from airloop_operators.web.app import create_app

    return create_app()
