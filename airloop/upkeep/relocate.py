"""
Move a home: everything in it that says where it lies is written anew.

Tables say it in their metadata, manifest lists and manifests, MLflow in its database, records of runs and manifests of
steps in addresses. What only names content (keys, snapshots, versions, decisions) stays what it is. A place may be in a
bucket, before or after; the files are in a local folder while they are rewritten.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from copy import copy
from pathlib import Path
from urllib.parse import quote

from pyiceberg.manifest import ManifestFile, read_manifest_list, write_manifest, write_manifest_list
from pyiceberg.serializers import FromInputFile
from pyiceberg.table.metadata import TableMetadata

from airloop.records import parse
from airloop.warehouse.artifacts import sha256
from airloop.warehouse.localio import LocalFileIO, local_path

Moved = Callable[[str], str]


def mover(moves: Mapping[str, str]) -> Moved:
    """
    A function that puts new folders in the place of old ones, in any text.

    A folder is one where a path begins: what only contains its name (``/srv/data`` for ``/data``, ``https://host/data``,
    ``package:name/data``) stays.

    :param moves: new folder or address, by old one; the longest that fits counts.
    """
    forms: dict[str, str] = {}
    for old, new in moves.items():
        forms[old] = new
        if "://" in new and "://" not in old:
            # A path that is written as an address becomes another address as a whole.
            forms |= {f"file://{old}": new, f"file://{quote(old)}": new}
        # In addresses and in JSON a path may look otherwise.
        forms.setdefault(quote(old), quote(new))
        forms.setdefault(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    longest_first = sorted(forms, key=len, reverse=True)
    begins = r"""(?:\A|(?<=["'\s=,(])|(?<=file://)|(?<=sqlite:///))"""
    ends = r"""(?=\Z|[/"'\s,;?#)]|\\")"""
    pattern = re.compile(f"{begins}({'|'.join(map(re.escape, longest_first))}){ends}")
    return lambda text: pattern.sub(lambda found: forms[found[1]], text)


def relocate(home: Path, moves: Mapping[str, str], finals: Mapping[str, Path]) -> None:
    """
    Rewrite a home that lies at ``home`` and is to lie elsewhere, in place.

    :param moves: what was where, and where it will be.
    :param finals: where files lie now, by the folder or address where they will lie.
    """
    moved = mover(moves)
    longest_first = sorted(finals, key=len, reverse=True)

    def here(location: str) -> str:
        """Where a file lies now that will lie at a location."""
        path = local_path(location)
        root = next((final for final in longest_first if path.startswith(f"{final}/")), None)
        return str(finals[root] / path.removeprefix(f"{root}/")) if root is not None else path

    digests = _move_manifests(home / "artifacts", moved)
    _move_records(home / "artifacts", moved, digests)
    for name in ("feast-registry.applied.json", "feast-registry.definitions.json"):
        if (home / name).is_file():
            _replace(home / name, moved((home / name).read_text()).encode())
    if (home / "mlflow.db").is_file():
        _move_database(home / "mlflow.db", moved)
    for file in sorted((home / "mlflow").rglob("MLmodel")) + sorted((home / "mlflow").rglob("meta.yaml")):
        _replace(file, moved(file.read_text()).encode())
    _move_database(home / "catalog.db", moved)
    with closing(sqlite3.connect(home / "catalog.db")) as connection:
        current = [row[0] for row in connection.execute("SELECT metadata_location FROM iceberg_tables")]
    done: set[str] = set()
    for location in current:
        if moved(text := Path(here(location)).read_text()) == text:
            # It stays where it was, to the byte: copies of it are known by its names.
            continue
        folder = Path(here(location)).parent
        for file in sorted(folder.glob("*.metadata.json")):
            _replace(file, moved(file.read_text()).encode())
        _move_table(here(location), moved, here, done)


def _move_manifests(artifacts: Path, moved: Moved) -> dict[str, str]:
    """Rewrite manifests; returns the new SHA-256 by the old."""
    digests = {}
    for path in (artifacts / "steps").glob("*/*/*/manifest.json"):
        old = path.read_bytes()
        new = moved(old.decode()).encode()
        if new != old:
            digests[sha256(old)] = sha256(new)
            _replace(path, new)
    return digests


def _move_records(artifacts: Path, moved: Moved, digests: Mapping[str, str]) -> None:
    for pattern in ("runs/*/*/*.json", "attempts/*/*.json"):
        for path in artifacts.glob(pattern):
            text = path.read_text()
            record = parse(moved(text).encode(), str(path))
            record["digest"] = digests.get(record["digest"], record["digest"])
            _replace(path, json.dumps(record, indent=1).encode() + b"\n")


def _move_database(file: Path, moved: Moved) -> None:
    """Rewrite every text in a SQLite file."""
    with closing(sqlite3.connect(file)) as connection:
        connection.create_function("moved", 1, lambda value: moved(value) if isinstance(value, str) else value)
        tables = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        with connection:
            for table in tables:
                for column in [r[1] for r in connection.execute(f'PRAGMA table_info("{table}")')]:
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = moved("{column}") '
                        f'WHERE typeof("{column}") = \'text\' AND "{column}" <> moved("{column}")'
                    )


def _move_table(metadata_file: str, moved: Moved, here: Callable[[str], str], done: set[str]) -> None:
    """Rewrite the manifest lists and manifests of all snapshots of a table, whose metadata are rewritten already."""
    io = LocalFileIO()
    metadata = FromInputFile.table_metadata(io.new_input(metadata_file))
    lengths: dict[str, int] = {}
    for snapshot in metadata.snapshots:
        place = here(snapshot.manifest_list)
        if place in done:
            continue
        done.add(place)
        manifests = []
        for manifest in read_manifest_list(io.new_input(place)):
            location = moved(manifest.manifest_path)
            if location not in lengths:
                lengths[location] = _move_manifest(metadata, manifest, here(location), moved)
            changed = copy(manifest)
            changed._data = [location, lengths[location], *manifest._data[2:]]
            manifests.append(changed)
        fresh = f"{place}.part"
        with write_manifest_list(
            format_version=metadata.format_version,
            output_file=io.new_output(fresh),
            snapshot_id=snapshot.snapshot_id,
            parent_snapshot_id=snapshot.parent_snapshot_id,
            sequence_number=snapshot.sequence_number,
            avro_compression="deflate",
        ) as writer:
            writer.add_manifests(manifests)
        Path(fresh).replace(place)


def _move_manifest(metadata: TableMetadata, manifest: ManifestFile, place: str, moved: Moved) -> int:
    """Rewrite one manifest; returns its new length, bytes."""
    io = LocalFileIO()
    at_hand = copy(manifest)
    at_hand._data = [place, *manifest._data[1:]]
    fresh = f"{place}.part"
    with write_manifest(
        format_version=metadata.format_version,
        spec=metadata.specs()[manifest.partition_spec_id],
        schema=metadata.schema(),
        output_file=io.new_output(fresh),
        snapshot_id=manifest.added_snapshot_id or 0,
        avro_compression="deflate",
    ) as writer:
        for entry in at_hand.fetch_manifest_entry(io, discard_deleted=False):
            entry.data_file._data[1] = moved(entry.data_file.file_path)
            writer.add_entry(entry)
    Path(fresh).replace(place)
    return Path(place).stat().st_size


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_bytes(content)
    fresh.replace(path)
