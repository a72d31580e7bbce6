"""Which file system a path is on; SQLite's locks cannot be trusted across a network."""

from __future__ import annotations

from pathlib import Path

from airloop.errors import BadConfiguration

NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs",
        "fuse.goofys", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs",
    }
)  # fmt: skip
"""Types of file systems that several machines may mount at once."""

MOUNTS = Path("/proc/self/mountinfo")


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """
    Type of the file system that ``path``, or its nearest existing parent, is on; ``""`` where that is unknown.

    :param path: any path; links are followed.
    :param mounts: the kernel's list of mounts, see proc(5).
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""  # not Linux
    target = path.resolve()
    best, found = -1, ""
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")[0]
        if len(fields) < 5 or not kind:
            continue
        point = Path(_unescape(fields[4]))
        # Of two mounts on one point the later hides the earlier.
        if (target == point or point in target.parents) and len(point.parts) >= best:
            best, found = len(point.parts), kind
    return found


def is_network(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether ``path`` is on a file system that other machines may mount too."""
    return file_system(path, mounts) in NETWORK


def refuse_network(path: Path, what: str) -> None:
    """
    Refuse to keep an SQLite database where its locks do not hold.

    :param what: what is kept there, for the error.
    :raises BadConfiguration: ``path`` is on a network file system.
    """
    if is_network(path):
        raise BadConfiguration(
            f"{what} {path} is on {file_system(path)}, where SQLite's locks do not hold",
            "put AIRLOOP_HOME on a local disk, or use a database server",
        )


def _unescape(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
