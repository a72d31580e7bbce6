"""
Write, audit, publish: rows on an audit branch are evaluated, and ``main`` moves to them only if they pass.

Every commit here carries a key that follows from the step's key and from what it builds on, so an attempt that was
killed anywhere is taken up where it stopped: what is committed is adopted, what is not is done.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from airloop.errors import BadArgument, CheckNotEvaluated, CommitConflict, NotDescendant, RejectedRows
from airloop.faults import point
from airloop.quality.conditions import literal, quoted
from airloop.quality.docs import plain, statistics, validation_result, write_docs
from airloop.quality.evaluate import Evaluation, Outcome, evaluate
from airloop.quality.suite import TOTAL, Suite
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef
from airloop.warehouse.work import WORK

BATCH, SOURCE, ROW = "_batch", "_source", "_row"
"""Columns of raw tables that say which step brought a row, and from where."""
META = (BATCH, SOURCE, ROW)

REBASES = 10
"""How often the rows are put on a ``main`` that moved, and validated again."""
SHOWN = 5
"""Offenders that an error and a manifest name; more are in the Data Docs, all in the quarantine."""

log = logging.getLogger("airloop.quality")


def quarantine_of(table: str) -> str:
    """Name of the table that holds the rejected rows of a table."""
    return f"quarantine.{table.replace('.', '_')}"


@dataclass
class Passed:
    """What became of a batch that may be published."""

    published: TableRef
    rows: int
    """Rows that were evaluated."""
    quarantined: int
    quarantine: TableRef | None
    rebases: int
    details: dict[str, Any] = field(default_factory=dict)
    moved: bool = True
    """Whether ``main`` is other than before: rows that were all kept back leave it where it was."""


@dataclass
class Gate:
    """One validation of one batch of one table."""

    warehouse: Warehouse
    audit: TableRef
    """The snapshot on the audit branch."""
    batch: str
    """Value of ``_batch`` of the rows that are new on it."""
    brought: int
    """Rows that the batch brought, those that the table had already included: what shares are taken of."""
    suite: Suite
    max_quarantined_share: float
    key: str
    """Key of the step; every commit's key begins with it."""
    workdir: Path
    publish_docs: Callable[[Path], str]
    """Publishes a folder and returns the address of its page."""
    record: Callable[[bytes], object]
    """Keeps the verdict before ``main`` moves."""
    run_name: str
    run_time: str
    docs: str = ""

    @property
    def name(self) -> str:
        return self.audit.name

    def run(self) -> Passed:
        """
        Evaluate, take out what may be taken out, publish; on a ``main`` that moved, rebase and begin again.

        :raises RejectedRows: the rows break a rule; ``main`` is untouched, the rows are in the quarantine.
        :raises CheckNotEvaluated: a rule could not be evaluated; nothing is written but the Data Docs.
        :raises CommitConflict: ``main`` moved again and again.
        """
        candidate = self._begun() or (self._rebase() if self._went_on else self._snapshot)
        for rebases in range(REBASES + 1):
            passed = self._audit(candidate)
            passed.rebases = rebases
            self.record(json.dumps(plain(passed.details), indent=1).encode())
            point("validate:verdict")
            snapshot = passed.published.snapshot
            assert snapshot is not None, "a published table is named by its snapshot"
            try:
                self.warehouse.publish(self.name, snapshot)
            except NotDescendant:
                log.warning("%s: main moved meanwhile; the rows go on top of it and are validated again", self.name)
                candidate = self._rebase()
                continue
            point("validate:published")
            self._release(passed)
            self._tidy()
            return passed
        raise CommitConflict(f"{self.name}: main moved {REBASES} times while rows were validated", "run the task again")

    @property
    def _snapshot(self) -> int:
        assert self.audit.snapshot is not None, "references are resolved before a step runs"
        return self.audit.snapshot

    @property
    def _went_on(self) -> bool:
        """Whether ``main`` builds on the snapshot already: it was published but for rows that were kept back."""
        return self.warehouse.descends(self.name, self.warehouse.head(self.name), self._snapshot)

    @property
    def _work(self) -> dict[str, str]:
        """Whose work the rows are, wherever they go."""
        made = self.warehouse.snapshot(self.name, self._snapshot)
        return {WORK: made.summary[WORK]} if made and WORK in made.summary else {}

    @property
    def _where(self) -> str:
        return f"{quoted(BATCH)} = {literal(self.batch)}"

    def _begun(self) -> int | None:
        """The snapshot that an earlier attempt had rebased to and published."""
        audited = self.warehouse.snapshot(self.name, self._snapshot)
        since = audited.sequence if audited else 0
        made = self.warehouse.snapshot(self.name, self.warehouse.head(self.name))
        # What came before the audit's own snapshot was not made of it.
        while made and made.sequence > since:
            kind, _, value = made.key.removeprefix(f"{self.key}:").partition(":")
            if made.key.startswith(f"{self.key}:"):
                return made.id if kind == "rebase" else int(value)
            made = self.warehouse.snapshot(self.name, made.parent) if made.parent else None
        return None

    # ---------------------------------------------------------------- audit of one snapshot

    def _audit(self, candidate: int) -> Passed:
        with self._evaluated(candidate) as found:
            if found is None:
                return Passed(TableRef(self.name, candidate), 0, 0, None, 0, {"suite": self.suite.name, "rows": 0})
            self.docs = self._document(found, candidate)
            point("validate:checked")
            if found.errors:
                raise self._not_evaluated(found)
            for outcome in found.outcomes:
                if not outcome.success and not outcome.rule.decides:
                    log.warning("%s (%s): %s", self.name, outcome.rule.severity, describe(outcome, found.rows))
            details = self._details(found)
            if found.success:
                return Passed(TableRef(self.name, candidate), found.rows, 0, None, 0, details)
            broken = found.broken()
            quarantine = self._quarantine(found, candidate) if broken else None
            point("validate:quarantined")
            details |= {"rows_quarantined": broken, "quarantined_share": broken / self._of(found)}
            allowed = all(o.rule.quarantine for o in found.failed)
            if not allowed or broken > self.max_quarantined_share * self._of(found):
                raise self._rejected(found, broken, quarantine, allowed)
            clean = self._take_out(found, candidate)
        point("validate:cleaned")
        with self._evaluated(clean) as rest:
            # What is published has passed as it is published: figures may look otherwise without the rows taken out.
            if rest is not None and rest.errors:
                raise self._not_evaluated(rest)
            if rest is not None and not rest.success:
                raise self._rejected(rest, broken, quarantine, allowed=False, without=broken)
        log.warning(
            "%s: %s of %s rows are in %s, the others go on", self.name, f"{broken:,}", f"{found.rows:,}", quarantine
        )
        main = self.warehouse.head(self.name)
        if self._is_same(clean, main):
            # Whoever reads the table has read these very rows: another snapshot of them would be new to nobody.
            return Passed(TableRef(self.name, main), found.rows, broken, quarantine, 0, details, moved=False)
        return Passed(TableRef(self.name, clean), found.rows, broken, quarantine, 0, details)

    def _of(self, found: Evaluation) -> int:
        """What a share of bad rows is taken of. A source that is read again brings little that is new."""
        return max(found.rows, self.brought)

    @contextmanager
    def _evaluated(self, snapshot: int) -> Iterator[Evaluation | None]:
        """The evaluation of the batch's rows in a snapshot; None if it holds none of them."""
        ref = TableRef(self.name, snapshot)
        with self.warehouse.duckdb({"audited": ref}, workdir=self.workdir) as connection:
            connection.execute(f"CREATE TEMP VIEW new_rows AS SELECT * FROM audited WHERE {self._where}")
            if connection.execute("SELECT 1 FROM new_rows LIMIT 1").fetchone() is None:
                yield None
                return
            found = evaluate(
                connection,
                "new_rows",
                self.suite,
                identity=(SOURCE, ROW, *self.warehouse.key(self.name)),
                rows_per_chunk=self.warehouse.config.rows_per_chunk,
                hidden=META,
            )
            log.info(
                "%s: %s new rows, %s rules, %s failed", ref, f"{found.rows:,}", len(found.outcomes), len(found.failed)
            )
            yield found

    def _document(self, found: Evaluation, candidate: int) -> str:
        folder = self.workdir / "docs"
        result = validation_result(
            found, asset=f"{self.name}@{candidate}", run_name=self.run_name, run_time=self.run_time
        )
        write_docs(result, folder)
        return self.publish_docs(folder)

    def _details(self, found: Evaluation) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "rows": found.rows,
            "statistics": statistics(found),
            "expectations": [_detail(o) for o in found.outcomes],
        }

    # ---------------------------------------------------------------- rows that break rules

    def _quarantine(self, found: Evaluation, candidate: int) -> TableRef:
        """
        Put the broken rows into the quarantine, once.

        They take the place of what an earlier validation of this batch put there, and of the same rows brought by an
        earlier batch: a source that is read again brings again what was kept back.
        """
        name = quarantine_of(self.name)
        own = self.warehouse.schema(TableRef(self.name, candidate))
        schema = pa.schema(
            [
                *(pa.field(f.name, f.type) for f in own),
                pa.field("_rules", pa.list_(pa.string())),
                pa.field("_key", pa.string()),
            ]
        )
        self.warehouse.ensure(
            name, schema, description=f"Rows of {self.name} that broke rules of a suite", optional=schema.names
        )

        def rows() -> Iterator[pa.Table]:
            for batch in found.broken_rows(rows_per_chunk=self.warehouse.config.rows_per_chunk):
                keys = pa.array([self.key] * batch.num_rows, pa.string())
                yield pa.Table.from_batches([batch]).append_column("_key", keys).select(schema.names).cast(schema)

        on = self.warehouse.key(self.name)
        same = self._one_of(found.broken_ids().select(on), "=") if on else "FALSE"
        commit = self.warehouse.commit(
            name,
            rows(),
            key=f"{self.key}:quarantine:{candidate}",
            mode="replace",
            replace_where=f"{self._where} OR {same}",
        )
        return commit.ref

    def _release(self, passed: Passed) -> None:
        """Rows that are published now, in whatever form they were kept back before, leave the quarantine."""
        name = quarantine_of(self.name)
        if not self.warehouse.exists(name):
            return
        where = [] if passed.quarantined else [self._where]
        if on := self.warehouse.key(self.name):
            kept = TableRef(name, self.warehouse.head(name))
            listed = ", ".join(map(quoted, on))
            with self.warehouse.duckdb(
                {"kept": kept, "published": passed.published}, workdir=self.workdir
            ) as connection:
                keys = connection.execute(
                    f"SELECT {listed} FROM kept WHERE NOT {self._where} AND ({listed}) IN "
                    f"(SELECT ({listed}) FROM published WHERE {self._where})"
                ).to_arrow_table()
            if keys.num_rows:
                where.append(f"(NOT {self._where} AND {self._one_of(keys, '=')})")
        if where:
            self.warehouse.delete(name, " OR ".join(where), key=f"{self.key}:release:{passed.published.snapshot}")

    def _one_of(self, values: pa.Table, equals: str) -> str:
        """A predicate: the row's values are among these. They go through a file, for there may be many."""
        file = self.workdir / f"values-{uuid4().hex}.parquet"
        pq.write_table(values.rename_columns([f"v{i}" for i in range(values.num_columns)]), file)
        same = " AND ".join(f"b.v{i} {equals} {quoted(c)}" for i, c in enumerate(values.column_names))
        return f"EXISTS (SELECT 1 FROM read_parquet({literal(str(file))}) b WHERE {same})"

    def _take_out(self, found: Evaluation, candidate: int) -> int:
        """A snapshot on top of the candidate without the broken rows."""
        where = f"{self._where} AND {self._one_of(found.broken_ids(), 'IS NOT DISTINCT FROM')}"
        branch = self._branch(f"clean-{candidate}")
        self.warehouse.branch(self.name, branch, at=candidate)
        return self.warehouse.delete(self.name, where, key=f"{self.key}:clean:{candidate}", branch=branch).snapshot

    def _is_same(self, clean: int, main: int) -> bool:
        """Whether a snapshot that builds on ``main`` has no other rows: what was put on top was all taken out again."""
        ours, theirs = TableRef(self.name, clean), TableRef(self.name, main)
        if not main or clean == main or not self.warehouse.descends(self.name, clean, main):
            return False
        if self.warehouse.count(ours) != self.warehouse.count(theirs):
            return False
        with self.warehouse.duckdb({"clean": ours, "published": theirs}, workdir=self.workdir) as connection:
            more = f"SELECT * FROM clean WHERE {self._where} EXCEPT ALL SELECT * FROM published WHERE {self._where}"
            return connection.execute(f"SELECT 1 FROM ({more}) LIMIT 1").fetchone() is None

    def _rebase(self) -> int:
        """The batch's rows on top of what ``main`` is now; only those that it has not, if it has the others."""
        main = self.warehouse.head(self.name)
        on = self.warehouse.key(self.name)
        branch = self._branch(f"rebase-{main}")
        self.warehouse.branch(self.name, branch, at=main)
        with self._kept_back(main) if self._went_on else nullcontext() as kept_back:
            commit = self.warehouse.commit(
                self.name,
                kept_back or self.warehouse.scan(self.audit, where=self._where),
                key=f"{self.key}:rebase:{main}",
                mode="upsert" if on else "append",
                on=on,
                branch=branch,
                properties=self._work,
            )
        point("validate:rebased")
        return commit.snapshot

    @contextmanager
    def _kept_back(self, main: int) -> Iterator[pa.RecordBatchReader]:
        """Rows of the batch that ``main`` has in no version: a later correction of a row is not undone."""
        columns = self.warehouse.key(self.name) or self.warehouse.schema(self.audit).names
        same = " AND ".join(f"p.{quoted(c)} IS NOT DISTINCT FROM a.{quoted(c)}" for c in columns)
        tables = {"audited": self.audit, "published": TableRef(self.name, main)}
        with self.warehouse.duckdb(tables, workdir=self.workdir) as connection:
            found = connection.sql(
                f"SELECT * FROM audited a WHERE {self._where} AND NOT EXISTS (SELECT 1 FROM published p WHERE {same})"
            )
            yield found.to_arrow_reader(self.warehouse.config.rows_per_chunk)

    def _branch(self, what: str) -> str:
        return f"audit-{self.key[:12]}-{what}"

    def _tidy(self) -> None:
        """Drop the branches that led to what is published."""
        refs = self.warehouse.table(self.name).metadata.refs
        for branch, ref in refs.items():
            if branch.startswith(self._branch("")) or (
                branch.startswith("audit-") and ref.snapshot_id == self._snapshot
            ):
                self.warehouse.drop_branch(self.name, branch)

    # ---------------------------------------------------------------- what is said

    def _not_evaluated(self, found: Evaluation) -> CheckNotEvaluated:
        faults = "; ".join(f"{o.rule.name}: {o.error}" for o in found.errors)
        return CheckNotEvaluated(
            f"{self.name}: {len(found.errors)} of {len(found.outcomes)} rules of suite {self.suite.name} could not be "
            f"evaluated, so the rows are neither accepted nor rejected: {faults}",
            f"mend the suite or the source; main is untouched; Data Docs: {self.docs}",
        )

    def _rejected(
        self, found: Evaluation, broken: int, quarantine: TableRef | None, allowed: bool, without: int = 0
    ) -> RejectedRows:
        faults = "; ".join(describe(o, found.rows) for o in found.failed)
        place = f"They are in {quarantine} (_batch {self.batch[:12]}…)" if quarantine else "No single row is to blame"
        limit = f" This is after {without:,} rows were taken out." if without else ""
        if allowed:
            share = f"{broken / self._of(found):.2%} of the {self._of(found):,} rows that came, more than the "
            share += f"{self.max_quarantined_share:.2%} that may be kept back"
            limit = f" All could be quarantined, but they are {share}."
        return RejectedRows(
            f"{self.name}: {faults}.{limit} {place}, main is untouched, Data Docs: {self.docs}",
            f"fix the source, or widen the rule in suite {self.suite.name}",
        )


def nothing_new(warehouse: Warehouse, audit: TableRef) -> bool:
    """
    Whether ``main`` was this very snapshot and builds on it: the step before had nothing to bring.

    A snapshot of which rows were kept back was never ``main``, though ``main`` builds on it.
    """
    assert audit.snapshot is not None, "references are resolved before a step runs"
    if not audit.snapshot:
        return True
    was_main = any(e.snapshot_id == audit.snapshot for e in warehouse.table(audit.name).metadata.snapshot_log)
    return was_main and warehouse.descends(audit.name, warehouse.head(audit.name), audit.snapshot)


def batch_of(warehouse: Warehouse, audit: TableRef) -> str:
    """
    Key of the step that made an audit snapshot, which its rows bear as ``_batch``.

    :raises BadArgument: no step of ours made it, or the table's rows do not say which step brought them.
    """
    made = warehouse.snapshot(audit.name, audit.snapshot or 0)
    key = made.key if made else ""
    missing = [c for c in META if c not in warehouse.schema(audit).names]
    if not key or missing:
        what = f"has no column {', '.join(missing)}" if missing else "was not made by a step"
        raise BadArgument(f"{audit} {what}", "validate what an extract step has written")
    return key


def describe(outcome: Outcome, rows: int) -> str:
    """One line about a broken rule: how many rows of how many, and the first of them."""
    rule = outcome.rule
    if rule.kind == TOTAL:
        found = {k: v for k, v in outcome.result.items() if v not in (None, [], {})}
        asked = {k: v for k, v in rule.kwargs.items() if k not in ("column", "row_condition")}
        return f"{rule.name} is {_short(found)}, expected {_short(asked)}"
    first = ", ".join(_offender(rule.columns, o) for o in outcome.offenders[:SHOWN])
    share = outcome.unexpected / rows if rows else 0.0
    return f"{outcome.unexpected:,} of {rows:,} rows ({share:.2%}) break {rule.name} (first: {first})"


def _offender(columns: tuple[str, ...], offender: dict[str, Any]) -> str:
    values = ", ".join(f"{c} = {_short(offender[c])}" for c in columns)
    return f"{offender[SOURCE]} row {offender[ROW]:,}: {values}"


def _short(value: Any, length: int = 120) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= length else text[: length - 1] + "…"


def _detail(outcome: Outcome) -> dict[str, Any]:
    rule = outcome.rule
    figures = {
        k: v for k, v in outcome.result.items() if not k.startswith("partial_") and k != "unexpected_index_column_names"
    }
    return {
        "rule": rule.name,
        "arguments": plain(dict(rule.kwargs)),
        "severity": rule.severity,
        "quarantine": rule.quarantine,
        "success": outcome.success,
        "result": plain(figures),
        "offenders": plain(outcome.offenders[:SHOWN]),
    }
