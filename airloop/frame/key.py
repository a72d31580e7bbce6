"""
The content key of a step: what it would make, known before it runs.

``key = SHA-256(format, step, version, code, libraries, resolved arguments)``. Code is the source of the step's module
and of every first-party module that it reaches by import, except the frame itself, which decides how a step runs and
never what it makes. Run ids, secrets, local paths and time stay outside.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from airloop.contract import Interval
from airloop.errors import BadArgument, BadConfiguration
from airloop.frame.step import Step
from airloop.reference import Reference

KEY_FORMAT = 1
"""Version of the way keys are made; raising it makes every key new."""

FRAME = (
    "airloop.frame", "airloop.contract", "airloop.errors", "airloop.faults", "airloop.config", "airloop.cli",
    "airloop.records", "airloop.redact", "airloop.atomic",
)  # fmt: skip
"""Modules that decide how steps run; a change there redoes nothing."""
_IN_FRAME = tuple(f"{name}." for name in FRAME)


@dataclasses.dataclass(frozen=True)
class Code:
    """What code a step is made of."""

    fingerprint: str
    modules: dict[str, str]
    """SHA-256 of the source, by module."""
    libraries: dict[str, str]
    """Version, by distribution."""


def code_of(step: Step) -> Code:
    """The code that a step reaches. :raises BadConfiguration: a library that it declares is not installed."""
    modules = dict(sorted(reach(step.module).items()))
    libraries = {}
    for name in sorted(step.libraries):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError as cause:
            raise BadConfiguration(f"step {step.name} needs {name}", f"install it: pip install {name}") from cause
    text = json.dumps([modules, libraries, step.version], sort_keys=True)
    return Code(hashlib.sha256(text.encode()).hexdigest(), modules, libraries)


def changes(old: Code, new: Code) -> list[str]:
    """Modules and libraries that are not the same, or not in both, sorted."""
    before, after = old.modules | old.libraries, new.modules | new.libraries
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def loaded(code: Code) -> frozenset[str]:
    """Modules that this process has in memory: what becomes of their files does not change what it does."""
    return frozenset(code.modules.keys() & sys.modules.keys())


def replaced_since(code: Code, moment: float) -> list[str]:
    """Modules in memory whose file was replaced after a moment: its digest may be that of code which nobody runs."""
    found = []
    for name in sorted(loaded(code)):
        path = source_path(name)
        # A deployment may bring the times of its files along, but never that of the change itself.
        if path is not None and path.stat().st_ctime > moment:
            found.append(name)
    return found


def key_of(step: Step, arguments: Mapping[str, Any], code: Code) -> str:
    """Key of a step with bound and resolved arguments, hex."""
    counted = {n: canonical(v) for n, v in arguments.items() if step.parameters[n].in_key}
    text = json.dumps([KEY_FORMAT, step.name, code.fingerprint, counted], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> Any:
    """The JSON value that stands for an argument in keys and manifests."""
    if isinstance(value, Reference):
        return value.canonical()
    if isinstance(value, Interval):
        return value.as_json()
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(canonical(v) for v in value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Enum):
        return canonical(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return canonical(value.model_dump(mode="python"))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise BadArgument(f"an argument of type {type(value).__name__} has no place in a key", "use JSON values")


def reach(module: str) -> dict[str, str]:
    """
    Source digest of a module and of every first-party module that it imports, at any depth, lazily or not.

    First-party are the module's own package, airloop, and whatever is found outside the installed packages.
    """
    top = module.partition(".")[0]
    found: dict[str, str] = {}
    paths: dict[str, Path | None] = {}

    def path_of(name: str) -> Path | None:
        """Looked for once, and not below a module that is no package: what is imported from that is no module."""
        if name not in paths:
            parent = path_of(name.rpartition(".")[0]) if "." in name else None
            below_module = parent is not None and parent.name != "__init__.py"
            paths[name] = None if below_module else source_path(name)
        return paths[name]

    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(_IN_FRAME) or name in FRAME:
            continue
        path = path_of(name)
        if path is None:
            continue
        stat = path.stat()
        digest, imports = _read_module(name, path, stat.st_size, stat.st_mtime_ns)
        found[name] = digest
        waiting += [i for i in imports if (head := i.partition(".")[0]) in {top, "airloop"} or not is_installed(head)]
        # Importing a module runs its parents too.
        waiting.append(name.rpartition(".")[0] or name)
    return found


@lru_cache(maxsize=1024)
def is_installed(package: str) -> bool:
    """Whether a top-level package is part of the environment, as opposed to a team's own code beside it."""
    if package in sys.stdlib_module_names:
        return True
    folders = _package_folders(package)
    homes = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    return not folders or any(folder.resolve().is_relative_to(home) for folder in folders for home in homes)


@lru_cache(maxsize=1024)
def _read_module(name: str, path: Path, size: int, mtime_ns: int) -> tuple[str, tuple[str, ...]]:
    source = path.read_bytes()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: set[str] = set()
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            # `from package import name` may import a module or an object of the package.
            imports.add(base)
            imports.update(f"{base}.{alias.name}" for alias in node.names)
    return hashlib.sha256(source).hexdigest(), tuple(sorted(imports))


@lru_cache(maxsize=64)
def _package_folders(top: str) -> tuple[Path, ...]:
    spec = importlib.util.find_spec(top)
    if spec is None:
        return ()
    if spec.submodule_search_locations is None:
        return (Path(spec.origin),) if spec.origin else ()
    return tuple(Path(p) for p in spec.submodule_search_locations)


def source_path(name: str) -> Path | None:
    """Source file of a dotted name, found by path: asking the import system would import the parents."""
    top, *rest = name.split(".")
    for folder in _package_folders(top):
        if folder.is_file():
            return folder if not rest else None
        place = folder.joinpath(*rest)
        for candidate in (place / "__init__.py", place.with_suffix(".py")) if rest else (folder / "__init__.py",):
            if candidate.is_file():
                return candidate
    return None
