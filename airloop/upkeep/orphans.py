"""
Files of tables that no table's metadata names: which there are, and which of them may go.

What a table names is read twice. Before the listing, so that of a bucket with millions of names only those are held
that nothing seems to need; and after it, for a file may have been committed since it was seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from airloop.config import S3Address
from airloop.objects.bulk import AT_A_TIME
from airloop.upkeep.dropped import dropped
from airloop.upkeep.known import known_tables
from airloop.upkeep.retention import Reasons
from airloop.warehouse import tree
from airloop.warehouse.expire import NOTE, noted
from airloop.warehouse.localio import local_path
from airloop.warehouse.recall import files as files_of
from airloop.warehouse.recall import recall
from airloop.warehouse.references import References
from airloop.warehouse.tree import File

if TYPE_CHECKING:
    from airloop.warehouse.catalog import Warehouse


class Orphans:
    """The files of a warehouse's tables, also of dropped ones, as one gc sees them."""

    def __init__(self, warehouse: Warehouse, cutoff: float) -> None:
        """:param cutoff: seconds since 1970, by this machine's clock; nothing younger goes."""
        self._warehouse = warehouse
        self._cutoff = cutoff
        self._references: dict[str, References] = {}
        self._seen: dict[str, File] = {}
        self._places: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._ahead_s: dict[str, float] = {}
        self.waiting = 0
        """How many stay because they are too young."""

    def known(self, name: str) -> References:
        """What a table names, read now."""
        references = References(self._warehouse.table(name), known=self._references.get(name))
        references.all()
        self._references[name] = references
        return references

    def places(self) -> set[str]:
        """Folders of tables, of those that were dropped, and of replays in a bucket."""
        return {*self._places.values(), *self._gone.values(), *self._replays()}

    def look(self) -> None:
        """See what lies in the folders of tables."""
        root = tree.real(str(self._warehouse.config.warehouse))
        named: set[str] = set()
        for name in self._warehouse.tables():
            named |= self.known(name).all()
            place = local_path(self._warehouse.table(name).location())
            # What a table of this catalog keeps elsewhere may be others' too.
            if tree.is_within(tree.real(place), root) and tree.real(place) != root:
                self._places[name] = place
        for place in sorted(set(self._places.values())):
            self._seen |= {file.path: file for file in self._files(place) if file.path not in named}
        self._gone = dropped(self._warehouse)

    def decide(self, reasons: Reasons, *, dry_run: bool) -> Iterator[tuple[str, list[File]]]:
        """
        Kind of files and those that may go now, as many as are removed at a time.

        :param reasons: snapshots that must stay, also if another tool took them out of the metadata.
        """
        # Read after the files were seen: what was committed since is named here.
        named: set[str] = set()
        for name in self._warehouse.tables():
            table = self._warehouse.table(name)
            named |= References(table, known=self._references.get(name)).all()
            # What another tool expired in spite of us can be read as long as its files are there.
            named |= {path for s in recall(table, reasons.get(name, {})).values() for path in files_of(s, table.io)}
        for path in named.intersection(self._seen):
            del self._seen[path]
        young_notes = (path for path, file in self._seen.items() if NOTE.search(path) and self._is_young(file))
        resting = set().union(*map(noted, young_notes))
        going = []
        for file in self._seen.values():
            if self._is_young(file) or file.path in resting:
                self.waiting += 1
            else:
                going.append(file)
        yield from _pieces(going)
        yield from self._of_dropped(dry_run=dry_run)
        for place in self._replays():
            for replay in self._old_replays(place):
                # Listed again: one that goes on has written since.
                files = list(tree.below(replay))
                if not any(map(self._is_young, files)):
                    yield from (("working folders", piece) for _, piece in _pieces(files))

    def _replays(self) -> list[str]:
        """Where tables of replays are that were killed or kept; in a folder they are in that of the replay."""
        root = self._warehouse.config.warehouse
        return [f"{root}/{tree.REPLAYS}"] if isinstance(root, S3Address) else []

    def _old_replays(self, place: str) -> list[str]:
        """Folders of replays with nothing young in them: what one wrote first, it reads to its end."""
        is_old: dict[str, bool] = {}
        for file in tree.below(place):
            replay = f"{place}/{file.path.removeprefix(place).split('/')[1]}"
            is_old[replay] = is_old.get(replay, True) and not self._is_young(file)
        return sorted(replay for replay, old in is_old.items() if old)

    def _of_dropped(self, *, dry_run: bool) -> Iterator[tuple[str, list[File]]]:
        """Files of tables that were dropped before the cutoff, as far as we know."""
        known = known_tables(self._warehouse.config)
        now = time.time()
        if not dry_run:
            known.note(self._places, set(self._gone))
        for name, place in self._gone.items():
            gone_for_s = known.gone_for_s(name, now)
            long_ago = gone_for_s > 0 and now - gone_for_s < self._cutoff
            old = []
            for file in self._files(place):
                if long_ago and not self._is_young(file):
                    old.append(file)
                else:
                    self.waiting += 1
            # It may have been registered again since it was missed.
            if not self._warehouse.exists(name):
                yield from _pieces(old)

    def _files(self, place: str) -> Iterator[File]:
        return tree.of_tables(self._warehouse.config, place)

    def _is_young(self, file: File) -> bool:
        store = tree.split(file.path)[0] if file.path.startswith(tree.SCHEME) else ""
        if store not in self._ahead_s:
            self._ahead_s[store] = tree.ahead_s(file.path)
        return file.changed_at >= self._cutoff + self._ahead_s[store]


def _pieces(files: list[File]) -> Iterator[tuple[str, list[File]]]:
    for kind in ("data", "metadata"):
        of_kind = iter([f for f in files if (f.path.split("/")[-2] == "metadata") == (kind == "metadata")])
        while first := next(of_kind, None):
            more = AT_A_TIME - 1 if first.path.startswith(tree.SCHEME) else 0
            yield kind, [first, *islice(of_kind, more)]
