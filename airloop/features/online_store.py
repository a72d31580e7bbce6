"""Which online store a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airloop.config import Config
    from airloop.features.online import OnlineStore


def online_store_of(config: Config) -> OnlineStore:
    """The store that the configuration names. Nothing is opened yet."""
    if isinstance(config.online_store, Path):
        from airloop.features.online_sqlite import OnlineFile

        return OnlineFile(config.online_store)
    from airloop.features.online_redis import OnlineRedis

    return OnlineRedis.at(config.online_store)
