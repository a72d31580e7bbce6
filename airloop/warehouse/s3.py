"""
Access to a bucket: who we are, and how Arrow and DuckDB are told.

Arrow writes and reads Iceberg's own files, DuckDB reads the Parquet files, each by requests of its own. Both get the
address, the region and the credentials that the environment names as all of Amazon's tools do; without any, the
identity of the pod or the machine, which boto3 finds.

DuckDB reads by its own extension, not through fsspec: all columns of a year of flights, 12 files and 5.6 MB in a store
on the same machine, take 0.06 s that way (0.04 s from a folder) and 0.7 to 1.2 s by s3fs; a column 0.03 s and 0.6 to
0.9 s. The extension costs 0.05 to 0.1 s for each connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from airloop.config import S3Address
from airloop.errors import BadConfiguration

if TYPE_CHECKING:
    import duckdb
    from pyarrow.fs import S3FileSystem

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables with the address of a store that is not Amazon's; the first that is set counts."""
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
CONNECT_S = 5
REQUEST_S = 60
"""Seconds without an answer after which a request is tried again."""
TRIES = 4


@dataclass(frozen=True, slots=True)
class Access:
    """How requests to a store are addressed and signed."""

    endpoint: str
    """``http[s]://host[:port]``; empty: Amazon's."""
    region: str
    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(repr=False)
    """Of credentials that end; else empty."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """:raises BadConfiguration: there are no credentials, or the address cannot be read."""
        endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "").rstrip("/")
        try:
            parts = urlsplit(endpoint)
            readable = parts.scheme in ("http", "https") and parts.hostname and not parts.path and parts.port != 0
        except ValueError:
            readable = False
        if endpoint and not (readable and "@" not in endpoint):
            raise BadConfiguration(
                f"{ENDPOINTS[0]} is no address of a store", "give http://host:port or https://host:port, no credentials"
            )
        region = next((environment[name] for name in REGIONS if environment.get(name)), "us-east-1")
        key, secret = environment.get("AWS_ACCESS_KEY_ID", ""), environment.get("AWS_SECRET_ACCESS_KEY", "")
        if key and secret:
            return cls(endpoint, region, key, secret, environment.get("AWS_SESSION_TOKEN", ""))
        found = _identity()
        if found is None:
            raise BadConfiguration(
                "there are no credentials for S3",
                "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as secrets of the task",
            )
        return cls(endpoint, region, found.access_key, found.secret_key, found.token or "")


def _identity() -> Any:
    """Credentials of the pod, the machine or the user's files as they are now; None if there are none."""
    try:
        session = _session()
    except ImportError:
        return None
    found = session.get_credentials()
    # What ends is renewed in time by asking again.
    return found.get_frozen_credentials() if found is not None else None


@lru_cache(maxsize=1)
def _session() -> Any:
    import botocore.session

    return botocore.session.get_session()


@lru_cache(maxsize=4)
def filesystem(access: Access, process: int) -> S3FileSystem:
    """
    Arrow's client, one for a process: each has connections of its own.

    :param process: our id. A forked child must not share its parent's connections.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    return S3FileSystem(
        access_key=access.key,
        secret_key=access.secret,
        session_token=access.token or None,
        region=access.region,
        endpoint_override=access.endpoint or None,
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=TRIES),
        # In the background, parts would wait in memory without limit for a slow store.
        background_writes=False,
        # A small file is one request, and none is begun that a killed process would not finish.
        allow_delayed_open=True,
    )


def attach(connection: duckdb.DuckDBPyConnection, address: S3Address) -> None:
    """
    Let a connection read the files below an address.

    :raises BadConfiguration: DuckDB's extension is not there, or there are no credentials.
    """
    import duckdb

    access = Access.from_environment()
    parts = urlsplit(access.endpoint)
    settings = {
        "TYPE": "s3",
        "PROVIDER": "config",
        "KEY_ID": access.key,
        "SECRET": access.secret,
        "SESSION_TOKEN": access.token,
        "REGION": access.region,
        "SCOPE": f"s3://{address.bucket}/",
    }
    if access.endpoint:
        # Others than Amazon do not find a bucket by the name of a host.
        settings |= {"ENDPOINT": parts.netloc, "URL_STYLE": "path", "USE_SSL": str(parts.scheme == "https")}
    given = ", ".join(f"{name} '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items() if value)
    try:
        connection.execute(f"LOAD '{_extension()}'")
    except duckdb.Error as cause:
        raise BadConfiguration(
            f"DuckDB {duckdb.__version__} cannot load its httpfs extension: {cause}", HOW_TO_INSTALL
        ) from cause
    try:
        connection.execute(f"CREATE OR REPLACE TEMPORARY SECRET warehouse ({given})")
    except duckdb.Error as cause:
        # Without the cause: its text may have the statement in it.
        raise BadConfiguration(f"DuckDB {duckdb.__version__} refuses the credentials: {type(cause).__name__}") from None
    # The extension has read the environment too, and shows what it found as settings to whoever asks.
    for name in ("s3_access_key_id", "s3_secret_access_key", "s3_session_token"):
        connection.execute(f"SET {name} = ''")
    for name, value in SETTINGS.items():
        connection.execute(f"SET {name} = {value}")


SETTINGS = {
    "http_timeout": REQUEST_S,
    "http_retries": TRIES - 1,
    # Iceberg's files never change.
    "enable_http_metadata_cache": "true",
    "validate_external_file_cache": "'no_validation'",
}
HOW_TO_INSTALL = "install airloop[s3], which brings the one that fits"


def _extension() -> str:
    """DuckDB's extension for S3: that of its package, else one that DuckDB was told to install; never a download."""
    found = find_spec("duckdb_extension_httpfs")
    for folder in found.submodule_search_locations or () if found else ():
        for file in Path(folder).rglob("httpfs.duckdb_extension*"):
            return str(file).replace("'", "''")
    return "httpfs"
