"""
An Iceberg REST catalog: ``rest+https://host[:port][/path][?warehouse=NAME]``.

What else it wants of a client comes by PyIceberg's own variables: ``PYICEBERG_CATALOG__AIRLOOP__TOKEN``,
``…__CREDENTIAL``, ``…__REST.SIGV4_ENABLED`` and so on. It says where a table's files are; they have to be in the bucket
of ``AIRLOOP_WAREHOUSE``, with whose credentials we read and write them: what the catalog lends is not used.

Its commits are compare-and-swap, as those of a database are; locks between processes are not its business, so
``AIRLOOP_LOCKS`` says where they are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.utils.config import Config as PyIcebergConfig

from airloop.config import Config, S3Address, is_rest
from airloop.errors import BadConfiguration

if TYPE_CHECKING:
    from requests import Session

SETTING = "AIRLOOP_CATALOG"
CONNECT_S = 5
REQUEST_S = 60
"""Seconds without an answer after which a request is given up."""


class Catalog(RestCatalog):
    """A REST catalog that is not waited for without end."""

    def _create_session(self) -> Session:
        session = super()._create_session()
        # A session has no time limit of its own, and PyIceberg gives none to its requests.
        session.request = partial(session.request, timeout=(CONNECT_S, REQUEST_S))  # type: ignore[method-assign]  # this session's alone
        return session


def properties(config: Config) -> dict[str, str]:
    """
    What PyIceberg needs to open the catalog of a configuration.

    :raises BadConfiguration: its address cannot be read, or the tables' files are in a folder.
    """
    parts = urlsplit(config.catalog.removeprefix("rest+"))
    query = dict(parse_qsl(parts.query))
    if not is_rest(config.catalog) or not parts.hostname or "@" in parts.netloc or query.keys() - {"warehouse"}:
        raise BadConfiguration(
            f"{SETTING} is no address of an Iceberg REST catalog",
            "write rest+https://host[:port][/path][?warehouse=NAME]; credentials come by PYICEBERG_CATALOG__AIRLOOP__…",
        )
    if not isinstance(config.warehouse, S3Address):
        raise BadConfiguration(
            f"the catalog is at {parts.netloc}, and the tables' files in {config.warehouse}",
            "name the bucket in which the catalog keeps tables: AIRLOOP_WAREHOUSE=s3://bucket",
        )
    given = PyIcebergConfig().get_catalog_config("airloop") or {}
    return {
        **{name: str(value) for name, value in given.items()},
        "uri": urlunsplit(parts._replace(query="")),
        **({"warehouse": query["warehouse"]} if "warehouse" in query else {}),
        "py-io-impl": "airloop.warehouse.s3io.BucketFileIO",
    }
