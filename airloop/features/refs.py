"""References to feature services: ``delay_v1`` names the definitions as they are now."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airloop.errors import BadConfiguration, NotFound
from airloop.reference import Reference, Scope

if TYPE_CHECKING:
    from airloop.config import Config


@dataclass(frozen=True, slots=True)
class FeatureServiceRef(Reference):
    """A feature service and the definitions that it is made of. Resolving it hashes files and never imports Feast."""

    kind: ClassVar[str] = "feature_service"

    name: str
    digest: str = ""
    """SHA-256 of the repository's definition files; empty until resolved."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        match = re.fullmatch(r"([A-Za-z_]\w*)(?:@([0-9a-f]{64}))?", value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is not the name of a feature service; write delay_v1")
        return cls(match[1], match[2] or "")

    def resolve(self, scope: Scope) -> Self:
        """
        :raises BadConfiguration: no feature repository is configured.
        :raises NotFound: it is not there, or has changed since the reference was resolved.
        """
        now = digest_of(repository(scope.config))
        if self.digest and self.digest != now:
            raise NotFound(
                f"feature service {self.name} was asked for as of definitions {self.digest[:12]}, they are {now[:12]}",
                "check out the commit that the run used, or name the service without a digest",
            )
        return replace(self, digest=now)

    def canonical(self) -> Any:
        return str(self)

    def exists(self, scope: Scope) -> bool:
        return digest_of(repository(scope.config)) == self.digest

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else self.name


def repository(config: Config) -> Path:
    """
    The folder of the feature repository.

    :raises BadConfiguration: none is configured, or it has no ``feature_store.yaml``.
    """
    folder = config.feature_repo
    if folder is None:
        raise BadConfiguration("no feature repository is configured", "set AIRLOOP_FEATURE_REPO to its folder")
    if not (folder / "feature_store.yaml").is_file():
        raise BadConfiguration(f"{folder} has no feature_store.yaml", "set AIRLOOP_FEATURE_REPO to the right folder")
    return folder


def definition_files(folder: Path) -> list[Path]:
    """
    The Python files of a feature repository, sorted; those of hidden folders and caches are not counted.

    Files in sub-folders count towards the digest, and can be imported by the others as ``folder.module``.
    """
    found = folder.rglob("*.py")
    return sorted(p for p in found if not any(x.startswith((".", "__py")) for x in p.relative_to(folder).parts[:-1]))


def digest_of(folder: Path) -> str:
    """SHA-256 of the definition files' names and contents, hex; no path above the folder enters it."""
    digest = hashlib.sha256()
    for path in definition_files(folder):
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()
