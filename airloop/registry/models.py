"""
Registered models: versions in MLflow, aliases that follow the ledger.

All writing goes through :class:`Registry`, under one lock per model, and re-reads everything inside it. The order is:
finish what a killed process left, find or make the version, write the intent, move MLflow's alias, close the entry. A
kill at any point leaves either nothing or an intent that the next writer completes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airloop.config import Config
from airloop.errors import BadArgument, NotFound, StaleRun
from airloop.faults import point
from airloop.locks import Held, locks_of
from airloop.registry.ledger import TABLE, Entry, Ledger
from airloop.registry.lookup import all_versions
from airloop.registry.refs import CHAMPION, ModelRef, valid_model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from airloop.warehouse.catalog import Warehouse

log = logging.getLogger("airloop.registry")

KEY_TAG = "airloop.key"
LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Registered:
    """A version and whether this call made it."""

    version: int
    run_id: str
    """MLflow run that trained it."""
    experiment_id: str
    created: bool


class Registry:
    """The models of one MLflow with the ledger of one warehouse."""

    def __init__(self, config: Config, warehouse: Warehouse) -> None:
        self.config = config
        self.ledger = Ledger(warehouse)
        self._held: Held

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """
        Be the only writer of a model; first complete what a killed one left.

        :raises StoreBusy: another writer held it too long.
        :raises Unreachable: MLflow does not answer.
        """
        if not valid_model_name(name):
            raise BadArgument(f"{name!r} is not the name of a model", "letters, digits, _ . -, and not 'run'")
        # Connecting may take long; nobody has to wait for that.
        self._client()
        with locks_of(self.config).hold(f"models/{name}", timeout_s=LOCK_TIMEOUT_S, what=f"model {name}") as self._held:
            self._recover(name)
            yield

    def register(
        self, name: str, model: ModelRef, *, tags: Mapping[str, str] | None = None, description: str = ""
    ) -> Registered:
        """
        The version of a model, made if there is none: of the same run, or of a run with the same key.

        Call it inside :meth:`locked`.

        :param model: a training run, or a version of ``name``.
        :raises NotFound: the run or version is not there.
        """
        from airloop.training import tracking

        client = self._client()
        if model.version is not None:
            if model.name != name:
                raise BadArgument(f"{model} is not a version of {name}", "register the training run's model")
            with tracking.guarded(self.config):
                made_by = client.get_model_version(name, str(model.version)).run_id
                if not made_by:
                    raise NotFound(f"{model} names no training run", "register the model of a training run")
                run = client.get_run(made_by)
            return Registered(model.version, run.info.run_id, run.info.experiment_id, False)
        with tracking.guarded(self.config):
            run = client.get_run(model.run_id)
        key = run.data.tags.get(KEY_TAG, "")
        found = self._version_of(client, name, model.run_id, key)
        if found is not None:
            return Registered(int(found.version), str(found.run_id), run.info.experiment_id, False)
        source, model_id = self._source(model.run_id)
        with tracking.guarded(self.config):
            self._ensure_model(client, name)
            point("register:before")
            self._held.check()
            with tracking.sent_once():
                made = client.create_model_version(
                    name,
                    source,
                    run_id=model.run_id,
                    model_id=model_id,
                    tags={KEY_TAG: key, **(tags or {})},
                    description=description,
                )
            point("register:after")
        return Registered(int(made.version), model.run_id, run.info.experiment_id, True)

    def decide(self, entry: Entry, *, move: bool) -> Entry:
        """
        Write a decision into the ledger and, if ``move``, let the alias follow. The same entry again changes nothing.

        Call it inside :meth:`locked`. ``entry.seq``, ``previous``, ``state`` and ``moved`` are set here. An entry that
        takes effect before what is live now is kept as superseded and moves nothing.
        """
        known = self.known(entry.model, entry.key, entry.alias)
        if known is not None:
            return known
        live = self.ledger.champion_at(entry.model, entry.alias)
        abandoned = sum(e.key == entry.key and e.state == "abandoned" for e in self.ledger.entries(entry.model))
        entry = replace(
            entry,
            entry=f"{entry.entry}-{abandoned}" if abandoned else entry.entry,
            previous=live.version if live else None,
        )
        if not move:
            return self.ledger.append(replace(entry, state="done", moved=False))
        if live is not None and entry.effective_at < live.effective_at:
            reason = (
                f"{entry.reason}; not moved: {entry.alias} is version {live.version} since data time "
                f"{live.effective_at.isoformat()}, later than this run's {entry.effective_at.isoformat()}"
            )
            return self.ledger.append(replace(entry, state="superseded", moved=False, reason=reason))
        intent = self.ledger.append(replace(entry, state="intent", moved=True))
        point("promote:intent")
        self._point_alias(intent)
        point("promote:alias")
        return self.ledger.close(intent, "done")

    def known(self, model: str, key: str, alias: str) -> Entry | None:
        """The closed entry that a step's key already made for an alias."""
        done = [
            e for e in self.ledger.entries(model, key=key) if e.alias == alias and e.state in ("done", "superseded")
        ]
        return done[-1] if done else None

    def _recover(self, name: str) -> None:
        """Complete open intents; let every alias follow the ledger again if somebody moved it by hand."""
        from airloop.training import tracking

        for intent in self.ledger.open_intents(name):
            try:
                self._point_alias(intent)
            except NotFound:
                self.ledger.close(intent, "abandoned", reason=f"version {intent.version} is gone; {intent.reason}")
            else:
                self.ledger.close(intent, "done")
        client = self._client()
        try:
            with tracking.guarded(self.config):
                aliases = {a: int(v) for a, v in client.get_registered_model(name).aliases.items()}
        except NotFound:
            return
        for alias in sorted({e.alias for e in self.ledger.entries(name)}):
            live = self.ledger.champion_at(name, alias)
            if live is None or aliases.get(alias) == live.version:
                continue
            try:
                self._point_alias(live)
            except NotFound:
                log.warning(
                    "%s@%s is version %d, which is gone from MLflow; promote another", name, alias, live.version
                )

    def _point_alias(self, entry: Entry) -> None:
        from airloop.training import tracking

        self._held.check()
        with tracking.guarded(self.config):
            client = self._client()
            # Older MLflow stores accept an alias on a version that is not there.
            client.get_model_version(entry.model, str(entry.version))
            client.set_registered_model_alias(entry.model, entry.alias, str(entry.version))

    def _version_of(self, client: MlflowClient, name: str, run_id: str, key: str) -> Any:
        """The oldest version made by the run, or by another one, not deleted, with the same key."""
        from airloop.training import tracking

        with tracking.guarded(self.config):
            versions = all_versions(client, name)
        for version in sorted(versions, key=lambda v: int(v.version)):
            if version.run_id == run_id:
                return version
            if key and version.tags.get(KEY_TAG) == key and ModelRef(run_id=version.run_id).exists(self._scope()):
                return version
        return None

    def _ensure_model(self, client: MlflowClient, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(
                name, description=f"Retrained and gated by Airloop. Its aliases follow the table {TABLE}."
            )
        except MlflowException as cause:
            if cause.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _source(self, run_id: str) -> tuple[str, str]:
        """Address of a run's model and its id. MLflow's ``models:/`` would be looked up in its global store."""
        from airloop.training import tracking

        model_id = tracking.logged_model_id(self.config, run_id)
        with tracking.guarded(self.config):
            return str(self._client().get_logged_model(model_id).artifact_location), model_id

    def _client(self) -> MlflowClient:
        from airloop.training import tracking

        return tracking.client(self.config)

    def _scope(self) -> Any:
        from airloop.reference import Scope

        return Scope(self.config)


def promote(
    config: Config,
    model: str,
    version: int,
    *,
    reason: str,
    by: str,
    alias: str = CHAMPION,
    effective_at: datetime | None = None,
) -> Entry:
    """
    Promote a version by hand, or roll back to an older one.

    Runs of intervals that end later may replace it, runs of intervals that ended before ``effective_at`` may not.

    :param reason: for the ledger; must not be empty.
    :param by: who decides.
    :param effective_at: data time from which it holds, with a time zone; None: now. A loop that replays the past
        needs one in that past.
    :raises NotFound: there is no such version.
    :raises StaleRun: what is live takes effect later than that.
    """
    from airloop.warehouse.catalog import Warehouse

    if not reason.strip() or not by.strip():
        raise BadArgument("a promotion by hand needs a reason and a name", "say why, and who decides")
    registry = Registry(config, Warehouse.open(config))
    with registry.locked(model):
        found = registry.register(model, ModelRef(model, version=version))
        now = datetime.now(UTC)
        identity = f"manual-{now.isoformat()}"
        entry = registry.decide(
            Entry(
                entry=identity, seq=0, model=model, alias=alias, version=found.version, previous=None, state="intent",
                moved=True, outcome="manual", reason=reason.strip(), by=by.strip(), key=identity,
                recorded_at=now, effective_at=effective_at or now, evidence={"mlflow_run": found.run_id},
            ),
            move=True,
        )  # fmt: skip
    if entry.state != "done":
        raise StaleRun(f"{model}@{alias} was not moved: {entry.reason}")
    return entry


def versions(config: Config, model: str | None = None) -> list[dict[str, Any]]:
    """
    Registered versions, newest first, with the aliases that the ledger gives them.

    :param model: None: of all models.
    :raises NotFound: there is no such model.
    """
    from airloop.training import tracking
    from airloop.warehouse.catalog import Warehouse

    client = tracking.client(config)
    with tracking.guarded(config):
        names = [model] if model else sorted(m.name for m in client.search_registered_models(max_results=1000))
        if model:
            client.get_registered_model(model)
        found = [v for name in names for v in all_versions(client, name)]
    aliases: dict[tuple[str, int], list[str]] = {}
    for entry in Ledger(Warehouse.open(config)).live():
        aliases.setdefault((entry.model, entry.version), []).append(entry.alias)
    rows = [
        {
            "model": v.name,
            "version": int(v.version),
            "aliases": aliases.get((v.name, int(v.version)), []),
            "run_id": v.run_id,
            "created_at": datetime.fromtimestamp(v.creation_timestamp / 1000, UTC).isoformat(),
            "description": v.description or "",
            "tags": dict(v.tags),
        }
        for v in found
    ]
    return sorted(rows, key=lambda r: (r["model"], -r["version"]))
