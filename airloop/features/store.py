"""
A Feast offline store over the warehouse: point in time by event time **and** arrival time, at named snapshots.

Named in ``feature_store.yaml`` as ``offline_store: {type: airloop.features.store.IcebergOfflineStore}``. Importing it
imports Feast. What Feast's ``filter_by_created_timestamp`` asks for is always done here; there is no way to turn it
off. On-demand views are applied by Feast to what this store returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field

from airloop.config import Config
from airloop.errors import BadArgument, BadInput
from airloop.features.asof import ViewSpec, point_in_time_join, quote, quote_path, time_literal
from airloop.features.source import IcebergSource
from airloop.warehouse.refs import TableRef

if TYPE_CHECKING:
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.saved_dataset import SavedDatasetStorage

    from airloop.warehouse.catalog import Warehouse

ROW = "__airloop_row"
"""Number of the entity row, so that they come back in their order."""

_snapshots: ContextVar[Mapping[str, int]] = ContextVar("airloop_feature_snapshots")


@contextmanager
def snapshots(chosen: Mapping[str, int]) -> Iterator[None]:
    """
    Read these tables at these snapshots within the block, whoever asks through Feast; others at the head of ``main``.

    :param chosen: snapshot id by ``namespace.table``; 0 is the empty table.
    """
    token = _snapshots.set({**_snapshots.get({}), **chosen})
    try:
        yield
    finally:
        _snapshots.reset(token)


class IcebergOfflineStoreConfig(FeastConfigBaseModel):
    """The ``offline_store`` section of ``feature_store.yaml``."""

    type: Literal["airloop.features.store.IcebergOfflineStore"] = "airloop.features.store.IcebergOfflineStore"

    environment: dict[str, str] = Field(default_factory=dict, repr=False)
    """``AIRLOOP_…`` variables that override those of the process, for instance ``AIRLOOP_HOME``."""


def warehouse_of(config: RepoConfig) -> Warehouse:
    """The warehouse that a Feast repository works on."""
    from airloop.warehouse.catalog import Warehouse

    section = config.offline_store
    overrides = section.environment if isinstance(section, IcebergOfflineStoreConfig) else {}
    return Warehouse.open(Config.from_environment({**os.environ, **overrides}))


def table_ref(warehouse: Warehouse, table: str) -> TableRef:
    """The snapshot of a table that is to be read here and now."""
    chosen = _snapshots.get({})
    return TableRef(table, chosen[table] if table in chosen else warehouse.head(table))


class IcebergRetrievalJob(RetrievalJob):
    """A query on named snapshots, which runs when its rows are asked for."""

    def __init__(
        self,
        query: Any,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        """
        :param query: called without arguments, gives the rows as an Arrow table.
        """
        self._query = query
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table: pa.Table = self._query()
        return table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        raise NotImplementedError("training sets are saved by the step build_training_set, with their evidence")


class IcebergOfflineStore(OfflineStore):
    """See the module's documentation."""

    # True is what Feast must see to let the argument through; both settings of it mean the same here.
    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = True,
        **unsupported: Any,
    ) -> RetrievalJob:
        """
        One row per row of ``entity_df``, in its order, with its columns first.

        :param entity_df: a data frame or an Arrow table with ``event_timestamp`` or exactly one time column; times
            without a zone are UTC.
        :raises BadArgument: no entity rows are given, or the columns do not fit.
        """
        if unsupported or entity_df is None or isinstance(entity_df, str):
            raise BadArgument(
                f"entity rows are needed as a data frame, not {type(entity_df).__name__}"
                + (f" with {', '.join(sorted(unsupported))}" if unsupported else ""),
                "read them first, e.g. `airloop sql` or Warehouse.scan",
            )
        rows, time_column = _entity_rows(entity_df)
        specs = [_spec(view, _features_of(view, feature_refs)) for view in feature_views]
        # Which snapshots are read is decided now; the rows are made when they are asked for.
        warehouse = warehouse_of(config)
        refs = {table: table_ref(warehouse, table) for table in sorted({s.relation for s in specs})}

        def query() -> pa.Table:
            with warehouse.duckdb(refs) as connection:
                connection.register("entity_rows", rows)
                joined = point_in_time_join(
                    connection, "entity_rows", specs,
                    time_column=time_column, full_names=full_feature_names, evidence=False,
                )  # fmt: skip
                return _in_order(joined, warehouse.config.cpu_threads())

        demanded = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        keys = [c for c in rows.column_names if c not in (ROW, time_column)]
        times = pc.min_max(rows[time_column])
        return IcebergRetrievalJob(
            query,
            full_feature_names=full_feature_names,
            on_demand_feature_views=demanded,
            metadata=RetrievalMetadata(list(feature_refs), keys, times["min"].as_py(), times["max"].as_py()),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """
        For each key the newest row of ``start_date <= event time <= end_date`` that was known at ``end_date``.

        Newest by event time, then arrival time, then feature values: the order of :mod:`airloop.features.asof`.
        """
        columns = [*join_key_columns, *feature_name_columns, timestamp_field, *_some(created_timestamp_column)]
        order = [f"{quote(c)} DESC" for c in (timestamp_field, *_some(created_timestamp_column))]
        order += [f"{quote(c)} DESC NULLS LAST" for c in feature_name_columns]
        known = _between(timestamp_field, start_date, end_date)
        known += [f"{quote(c)} <= {time_literal(end_date)}" for c in _some(created_timestamp_column)]
        partition = f"PARTITION BY {', '.join(map(quote, join_key_columns))} " if join_key_columns else ""
        newest = f" QUALIFY row_number() OVER ({partition}ORDER BY {', '.join(order)}) = 1"
        return _pull(config, data_source, columns, known, newest)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row of ``start_date <= event time <= end_date``, whenever it arrived."""
        columns = [*join_key_columns, *feature_name_columns, timestamp_field, *_some(created_timestamp_column)]
        return _pull(config, data_source, columns, _between(timestamp_field, start_date, end_date), "")


def _some(column: str | None) -> tuple[str, ...]:
    return (column,) if column else ()


def _between(column: str, start: datetime | None, end: datetime | None) -> list[str]:
    bounds = [f"{quote(column)} >= {time_literal(start)}"] if start else []
    return bounds + ([f"{quote(column)} <= {time_literal(end)}"] if end else [])


def _pull(config: RepoConfig, source: DataSource, columns: list[str], conditions: list[str], tail: str) -> RetrievalJob:
    if not isinstance(source, IcebergSource):
        raise BadArgument(
            f"source {source.name} is a {type(source).__name__}", "use airloop.features.source.IcebergSource"
        )
    warehouse = warehouse_of(config)
    ref = table_ref(warehouse, source.table)
    selected = ", ".join(map(quote, dict.fromkeys(columns)))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def query() -> pa.Table:
        with warehouse.duckdb({source.table: ref}) as connection:
            return connection.sql(f"SELECT {selected} FROM {quote_path(source.table)}{where}{tail}").to_arrow_table()

    return IcebergRetrievalJob(query)


def _spec(view: FeatureView, features: tuple[str, ...]) -> ViewSpec:
    """The join's description of a view. :raises BadArgument: its source is of another kind."""
    source = view.batch_source
    if not isinstance(source, IcebergSource):
        raise BadArgument(
            f"feature view {view.name} has a {type(source).__name__}", "use airloop.features.source.IcebergSource"
        )
    keys = tuple(c.name for c in view.entity_columns if c.name != DUMMY_ENTITY_ID)
    return ViewSpec(
        # The version of a view is part of how it is asked for, not of its columns' names.
        name=view.projection.name_alias or view.name,
        relation=source.table,
        keys=keys,
        features=features,
        ttl=view.ttl or None,
        event_time=source.timestamp_field,
        arrival_time=source.created_timestamp_column,
        spine_keys=tuple(view.projection.join_key_map.get(k, k) for k in keys),
    )


def _features_of(view: FeatureView, feature_refs: Sequence[str]) -> tuple[str, ...]:
    """The features that are asked of a view, in the order of ``feature_refs``, each once."""
    asked = view.projection.name_to_use()  # type: ignore[no-untyped-call]
    split = (ref.split(":", 1) for ref in feature_refs)
    return tuple(dict.fromkeys(feature for name, feature in split if name == asked))


def _entity_rows(entity_df: pd.DataFrame | pa.Table) -> tuple[pa.Table, str]:
    """
    The entity rows as Arrow, numbered, with the time column in UTC microseconds; and that column's name.

    :raises BadInput: a column mixes types, or the times cannot be read as times.
    """
    try:
        given = isinstance(entity_df, pa.Table)
        rows: Any = entity_df if given else pa.Table.from_pandas(entity_df, preserve_index=False)
        name = _time_column(rows.schema)
        column = rows[name]
        if not pa.types.is_timestamp(column.type):
            column = pa.array(pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601"))
        if column.type.tz is None:
            column = column.cast(pa.timestamp(column.type.unit, "UTC"), safe=True)
        # A time between two microseconds becomes the earlier one: nothing later can be seen.
        column = column.cast(pa.timestamp("us", "UTC"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, TypeError) as cause:
        if isinstance(cause, BadInput | BadArgument):
            raise
        raise BadInput(
            f"the entity rows cannot be read: {cause}", "give one type per column and ISO 8601 times"
        ) from cause
    rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows.append_column(ROW, pa.array(np.arange(rows.num_rows))), name


def _in_order(relation: Any, threads: int) -> pa.Table:
    """The rows as they were numbered, each number once. Putting them there is faster than sorting them."""
    joined = relation.to_arrow_table()
    numbers = joined[ROW].to_numpy()
    places = np.empty_like(numbers)
    places[numbers] = np.arange(len(numbers))
    order = pa.array(places)
    names = [name for name in joined.column_names if name != ROW]
    left = {name: joined[name] for name in names}
    # Both orders of all columns at once would double the memory.
    del joined

    def moved(name: str) -> pa.Array:
        # In one piece: rows are taken from many pieces three times as slowly.
        return left.pop(name).combine_chunks().take(order)

    with ThreadPoolExecutor(threads) as pool:
        return pa.table(dict(zip(names, pool.map(moved, names), strict=True)))


def _time_column(schema: pa.Schema) -> str:
    """Feast's rule (``event_timestamp``, else the only time column), and before the latter our own ``event_time``."""
    for name in ("event_timestamp", "event_time"):
        if name in schema.names:
            return name
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    if len(times) != 1:
        raise BadArgument(
            f"the entity rows have {len(times)} time columns ({', '.join(times) or 'none'})",
            "name the time of prediction event_timestamp",
        )
    return str(times[0])
