"""
Files of the artifact store over HTTP, to their owners' readers, and so that they can do nothing.

Reports and Data Docs are pages made from data, served from Airflow's own origin. None needs a script, so a policy
takes scripts, forms, pop-ups and requests from every file: markup that slips into a page stays markup.
"""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from fastapi.responses import FileResponse, Response, StreamingResponse

from airloop.errors import AirloopError, BadArgument, NotFound
from airloop.objects import Folder, checked
from airloop.records import INTERVALS
from airloop_operators.web.access import NotPermitted, readable, reads_all
from airloop_operators.web.data import Reader, too_long

POLICY = (
    # Without allow-scripts. The origin is kept so that a page's links to its neighbours carry the session's cookie.
    "sandbox allow-same-origin allow-downloads; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)

SHOWN = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".sql": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
"""Content type of files that a browser may show; any other is downloaded."""


def locate(reader: Reader, name: str) -> PurePath:
    """
    The file of a name; of a folder its ``index.html``.

    :returns: the regular file, a :class:`pathlib.Path`; its name, if the store is in a bucket.
    :raises BadArgument: the name leaves the store, by its text or over a symbolic link.
    :raises NotFound: there is no such file.
    """
    inside = checked(name)
    if any(part.startswith(".") for part in inside.parts):
        raise NotFound(f"nothing is published as {name}")  # being written
    if isinstance(reader.store.objects, Folder):
        return _regular(reader, name)
    for found in (inside, inside / "index.html"):
        if reader.store.exists(str(found)):
            return found
    raise NotFound(f"nothing is published as {name}")


def _regular(reader: Reader, name: str) -> Path:
    path = reader.store.path(name)
    try:
        root, real = reader.store.root.resolve(strict=True), path.resolve(strict=True)
        if not real.is_relative_to(root):
            raise BadArgument(f"{name} leads out of the artifact store")
        if real.is_dir():
            return _regular(reader, f"{name.rstrip('/')}/index.html")
        if not real.is_file():
            raise NotFound(f"{name} is not a file")
    except (FileNotFoundError, NotADirectoryError, RuntimeError) as cause:
        raise NotFound(f"nothing is published as {name}") from cause
    return real


def permit(reader: Reader, user: Any, name: str) -> str:
    """
    Check that the user may read an artifact; returns the DAG that it belongs to, empty if to none.

    It belongs to the DAG whose run made it; who may read another DAG that reused it may read it as well.

    :raises NotPermitted: he may not.
    """
    if too_long(name):
        raise NotFound(f"nothing is published under a name of {len(name)} characters")
    owner = owner_of(reader, name)
    if owner and readable(user, [owner]):
        return owner
    if reads_all(user):
        return owner
    if reader.uses(readable(user, reader.dag_ids()), name):
        return owner
    raise NotPermitted(f"You may not read the runs of {owner or 'the DAG'} that this belongs to.")


def owner_of(reader: Reader, name: str) -> str:
    """Id of the DAG that made an artifact; empty if none did, or it cannot be told."""
    parts = PurePosixPath(name).parts
    record = ""
    if len(parts) > 1 and parts[0] in ("runs", INTERVALS, "reports", "usage"):
        return unquote(parts[1])
    if len(parts) > 3 and parts[0] == "steps":
        record = "/".join((*parts[:4], "manifest.json"))
    elif len(parts) > 2 and parts[0] == "attempts":
        record = name
    try:
        return str(reader.json(record)["run"]["dag_id"]) if record else ""
    except (AirloopError, OSError, ValueError, KeyError, TypeError):
        return ""


def answer(reader: Reader, path: PurePath) -> Response:
    """The file that was located, with the headers that keep it from doing anything."""
    kind = SHOWN.get(path.suffix.lower())
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "private, no-cache",
    }
    if kind is None:
        kind = "application/octet-stream"
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(path.name)}"
    if isinstance(path, Path):
        return FileResponse(path, headers=headers, media_type=kind)
    found = reader.store.stream(str(path))
    headers["Content-Length"] = str(found.length)
    return StreamingResponse(found.pieces, headers=headers, media_type=kind)
