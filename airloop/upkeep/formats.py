"""
Formats and what becomes of them: homes, tables, manifests, keys, backups.

===================  ==========================================  ===================================================
what                 where its format stands                     read by another version
===================  ==========================================  ===================================================
home                 ``format.json``; where the catalog is on a  an older one is migrated by ``airloop upgrade`` or
                     server only in the home that made it        used as it is; a newer one is refused
table                its property ``airloop.format``             as the home
manifest, record     ``format``                                  one that is not known is refused by whatever reads it:
                                                                 a step is not redone silently, gc takes nothing away
key                  :data:`airloop.frame.key.KEY_FORMAT`, and   a part of the key; ``airloop upgrade`` says what is new
                     ``key_format`` of its manifest
backup               ``format`` of its point                     one that is not known is refused
===================  ==========================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airloop import postgres
from airloop.config import Config, is_rest, own_catalog
from airloop.errors import AirloopError
from airloop.faults import point
from airloop.frame.key import KEY_FORMAT, code_of
from airloop.frame.step import Step
from airloop.records import REDO, parse
from airloop.upkeep.gc import alone
from airloop.warehouse.artifacts import ArtifactStore
from airloop.warehouse.home import HOME_FORMAT, check_home, home_format, write_format


def _table_properties(config: Config) -> Iterator[str]:
    """From 0 to 1: tables carry a format, merge their manifests, and other engines may not expire their snapshots."""
    from airloop.warehouse.catalog import Warehouse

    warehouse = Warehouse.open(config)
    for name in warehouse.tables():
        added = warehouse.bring_up(name)
        if added:
            yield f"{name}: set {', '.join(added)}"


MIGRATIONS: dict[int, Callable[[Config], Iterator[str]]] = {0: _table_properties}
"""By the format that they start from: each brings a home to the next; run again after a kill, it does the rest."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A step whose results of before will be made again, and why."""

    step: str
    manifests: int
    """How many results it has."""
    modules: list[str]
    """Modules whose source is another than when its newest result was made."""
    libraries: list[str]
    """``name old -> new``."""
    problem: str = ""
    """Why all of its keys are new, or why it cannot be looked at."""

    def __str__(self) -> str:
        because = self.problem or ", ".join([*self.libraries, *self.modules])
        return f"{self.step}: {self.manifests:,} results would be made again, because of {because}"


def upgrade(config: Config, *, dry_run: bool = False) -> list[str]:
    """
    Bring a home to the present format.

    :param dry_run: only say what would be done.
    :returns: what was done, one line each; empty if nothing had to be.
    :raises BadConfiguration: the home is newer than this airloop, or the catalog may have tables of others.
    :raises StoreBusy: a gc or a backup runs.
    """
    if is_rest(config.catalog) and dry_run:
        return ["none of the tables, which may be others': each is brought up when a step next declares it"]
    own_catalog(config, "airloop upgrade")
    if postgres.is_address(config.catalog):
        return _upgrade_shared(config, dry_run)
    found = home_format(config.home)
    if found > HOME_FORMAT:
        check_home(config.home)
    if not config.home.exists() or found == HOME_FORMAT:
        return []
    if dry_run:
        return [f"from format {n} to {n + 1}: {_summary(MIGRATIONS[n])}" for n in range(found, HOME_FORMAT)]
    done = []
    with alone(config):
        for number in range(found, HOME_FORMAT):
            done += list(MIGRATIONS[number](config))
            point(f"upgrade:{number}")
        write_format(config.home)
    return [*done, f"{config.home} is of format {HOME_FORMAT} now, it was of {found}"]


def _upgrade_shared(config: Config, dry_run: bool) -> list[str]:
    """Homes of pods come and go: of what they share, each table says its own format, and each migration asks it."""
    if dry_run:
        return [f"every table of an older format: {_summary(migration)}" for migration in MIGRATIONS.values()]
    with alone(config):
        return [line for number in sorted(MIGRATIONS) for line in MIGRATIONS[number](config)]


def key_changes(config: Config, load: Callable[[str], Step]) -> list[KeyChange]:
    """
    Steps whose newest result was made by other code or libraries than are installed here, or whose keys were made in
    another way.

    Their next runs make everything again: that is right after a change that matters, and should not come as a surprise.

    :param load: gives the step of a name.
    :raises ContractBroken: a manifest is of a format that this airloop does not know.
    """
    changes = []
    store = ArtifactStore(config.artifacts)
    for step in store.folders("steps"):
        manifests = list(store.objects.listed(f"steps/{step}", "*/*/manifest.json"))
        if manifests:
            name = max(manifests, key=lambda m: m.changed_at).name
            newest = parse(store.read_bytes(name), store.uri(name), REDO)
            change = _change(newest, len(manifests), load)
            if change is not None:
                changes.append(change)
    return changes


def _change(manifest: dict[str, Any], count: int, load: Callable[[str], Step]) -> KeyChange | None:
    name, was = manifest["step"], manifest["code"]
    # Manifests of before there was another format do not say theirs.
    made_by = manifest.get("key_format", 1)
    if made_by != KEY_FORMAT:
        return KeyChange(name, count, [], [], f"keys of format {KEY_FORMAT}: theirs are of {made_by}")
    try:
        code = code_of(load(name))
    except AirloopError as error:
        return KeyChange(name, count, [], [], f"{error.found}")
    if code.fingerprint == was["fingerprint"]:
        return None
    modules = sorted(m for m in {*code.modules, *was["modules"]} if code.modules.get(m) != was["modules"].get(m))
    libraries = [
        f"{n} {was['libraries'].get(n, 'none')} -> {code.libraries.get(n, 'none')}"
        for n in sorted({*code.libraries, *was["libraries"]})
        if code.libraries.get(n) != was["libraries"].get(n)
    ]
    return KeyChange(name, count, modules, libraries, "" if modules or libraries else "the step's version")


def _summary(migration: Callable[..., Any]) -> str:
    return (migration.__doc__ or "").strip().partition(": ")[2]
