"""References to what other steps of a run made, as their manifests say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from airloop.errors import NotFound
from airloop.reference import Reference, Scope
from airloop.warehouse.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True)
class ManifestRef(Reference):
    """A step's manifest, by its address."""

    address: str
    manifest: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """Set once resolved."""

    kind: ClassVar[str] = "manifest"

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, str) and value.endswith("/manifest.json"):
            return cls(value)
        raise ValueError(f"{value!r} is not a manifest's address; pass a task's result")

    def resolve(self, scope: Scope) -> Self:
        store = ArtifactStore(scope.config.artifacts)
        name = store.name_of(self.address)
        if not name:
            raise NotFound(f"manifest {self.address} is not in the artifact store {store}")
        return type(self)(self.address, json.loads(store.read_bytes(name)))

    @property
    def content(self) -> dict[str, Any]:
        """The manifest of a resolved reference."""
        if self.manifest is None:
            raise NotFound(f"manifest {self.address} was not read", "resolve the reference first")
        return self.manifest

    def canonical(self) -> Any:
        return {name: self.content[name] for name in ("step", "key", "attempt")}

    def __str__(self) -> str:
        return self.address
