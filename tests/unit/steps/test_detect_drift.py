"""Monitoring as a step: a real model, a month like its training data, a month unlike it, late labels, old tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from airloop.config import Config
from airloop.contract import Call, Interval
from airloop.errors import BadArgument, BadInterval, SchemaMismatch
from airloop.frame.execute import execute
from airloop.frame.logs import Redactor
from airloop.steps import load
from airloop.training.models import Model, load_model
from airloop.warehouse.catalog import Warehouse
from airloop.warehouse.refs import TableRef

Runner = Callable[..., dict[str, Any]]

EDGES = [datetime(2013, month, 1, 5, tzinfo=UTC) for month in range(1, 5)]
JANUARY, FEBRUARY, MARCH = (Interval(a, b) for a, b in pairwise(EDGES))
TIME = pa.timestamp("us", tz="UTC")
NONE = "model:/delay/none"


def flights(month: Interval, *, rows: int = 3000, seed: int = 0, shift: float = 0.0, noise: float = 1.0) -> pa.Table:
    """Labelled flights of a month: lateness follows the wind; ``shift`` moves the wind, ``noise`` drowns it."""
    generator = np.random.default_rng([seed, month.start.month])
    minutes = np.sort(generator.integers(0, 28 * 24 * 60, rows))
    wind = shift + generator.standard_normal(rows)
    late = (1.5 * wind / noise + generator.logistic(size=rows) > 1.2).astype(np.int64)
    times = [month.start + timedelta(minutes=int(m)) for m in minutes]
    return pa.table(
        {
            "flight_id": [f"{month.start:%m}-{i}" for i in range(rows)],
            "event_time": pa.array(times, TIME),
            "arrival_time": pa.array([t + timedelta(hours=3) for t in times], TIME),
            "split": np.where(minutes < 20 * 24 * 60, "train", "validation"),
            "label": late,
            "wind": pa.array(wind, mask=generator.random(rows) < 0.02),
            "carrier": np.array(["UA", "AA", "B6"])[generator.integers(0, 3, rows)],
            "night": generator.random(rows) < 0.1,
        }
    )


def put(warehouse: Warehouse, name: str, rows: pa.Table, key: tuple[str, ...] = ("flight_id",)) -> str:
    warehouse.ensure(name, rows.schema, key=key)
    return str(warehouse.commit(name, rows, key=name).ref)


def scored(rows: pa.Table, version: str, *, by: Model) -> pa.Table:
    """Predictions of a model, as batch_score leaves them."""
    kept = rows.select(["flight_id", "event_time"])
    kept = kept.append_column("score", pa.array(by.predict(rows)))
    return kept.append_column("model_version", pa.array([version] * len(rows), pa.string()))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One home for the module: training takes longer than the rest."""
    home = tmp_path_factory.mktemp("drift")
    return Config.from_environment(
        {"AIRLOOP_HOME": str(home), "AIRLOOP_MEMORY_MB": "512", "AIRLOOP_ROWS_PER_CHUNK": "999"}
    )


@pytest.fixture(scope="module")
def warehouse(config: Config) -> Warehouse:
    return Warehouse.open(config)


@pytest.fixture(scope="module")
def model(config: Config, warehouse: Warehouse) -> str:
    """Trained on January."""
    arguments = {
        "examples": put(warehouse, "training.january", flights(JANUARY)),
        "features": ["wind", "carrier", "night"],
        "hyperparameters": {"n_estimators": 20, "max_depth": 3},
    }
    receipt, error = execute(load("train"), Call("train", arguments), config, Redactor([]))
    assert error is None, error
    manifest = json.loads(Path(receipt.manifest.removeprefix("file://")).read_bytes())
    return str(manifest["outputs"]["model"]["reference"])


@pytest.fixture(scope="module")
def loaded(config: Config, model: str) -> Model:
    return load_model(config, model)


def rows_of(warehouse: Warehouse, name: str, interval: Interval) -> list[dict[str, Any]]:
    rows = warehouse.scan(TableRef(name)).read_all().to_pylist()
    return [r for r in rows if r["interval_start"] == interval.start]


def test_a_month_like_the_training_data(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    rows = flights(FEBRUARY)
    table = put(warehouse, "training.february", rows)
    predictions = put(warehouse, "predictions.february", scored(rows, model, by=loaded))
    found = run_step(
        "detect_drift", model=model, current=table, predictions=predictions, labels=table, interval=FEBRUARY,
        max_age="30d",
    )  # fmt: skip
    columns = {c["column"]: c for c in found["details"]["drift"]["columns"]}
    assert set(columns) == {"wind", "carrier", "night", "(prediction)"}
    assert {c["outcome"] for c in columns.values()} == {"ok"}
    assert columns["wind"]["rows"] == 3000
    assert columns["wind"]["missing"] == pytest.approx(0.02, abs=0.01)
    assert columns["carrier"]["kind"] == "category"
    (quality,) = found["details"]["quality"]["models"]
    assert quality["version"] == model
    # Labels of the month's last three hours come in the next one.
    assert quality["rows"] == found["counts"]["labelled"] == 3000 - found["counts"]["unlabelled"] < 3000
    assert quality["judged"]["low"] < quality["judged"]["value"] < quality["judged"]["high"]
    assert quality["judged"]["reference"] > 0.7
    assert not quality["crossed"]
    assert [f["stale"] for f in found["details"]["freshness"]] == [False, False]
    assert found["counts"]["crossed"] == len(found["details"]["crossed"]) == 0
    assert found["event"] is None

    drift = rows_of(warehouse, "monitoring.drift", FEBRUARY)
    assert {(r["column"], r["statistic"]) for r in drift} >= {
        ("wind", "psi"), ("wind", "ks"), ("wind", "js"), ("wind", "missing"), ("carrier", "psi"),
        ("(prediction)", "psi"), ("training.february", "age_hours"),
    }  # fmt: skip
    assert ("carrier", "ks") not in {(r["column"], r["statistic"]) for r in drift}
    assert not any(r["crossed"] for r in drift)
    assert {r["limit"] for r in drift if r["statistic"] == "psi"} == {0.2}
    live = {r["metric"]: r for r in rows_of(warehouse, "monitoring.quality", FEBRUARY)}
    assert set(live) >= {"roc_auc", "log_loss", "brier", "calibration_error"}
    assert live["roc_auc"]["value"] == pytest.approx(quality["metrics"]["roc_auc"])
    assert live["brier"]["low"] is None


def test_a_month_unlike_it_is_announced(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    storm = flights(MARCH, shift=1.2, noise=9.0)
    storm = storm.set_column(storm.column_names.index("carrier"), "carrier", pa.repeat("ZZ", storm.num_rows))
    table = put(warehouse, "training.march", storm)
    predictions = put(warehouse, "predictions.march", scored(storm, model, by=loaded))
    arguments: dict[str, Any] = {
        "model": model, "current": table, "predictions": predictions, "labels": table, "interval": MARCH,
        "max_age": "2d",
    }  # fmt: skip
    found = run_step("detect_drift", **arguments)
    columns = {c["column"]: c for c in found["details"]["drift"]["columns"]}
    assert (
        columns["wind"]["outcome"] == columns["carrier"]["outcome"] == columns["(prediction)"]["outcome"] == "drifted"
    )
    assert columns["night"]["outcome"] == "ok"
    assert {b["bin"]: b["current"] for b in columns["carrier"]["bins"]}["(other)"] == 1
    assert found["counts"]["columns_drifted"] == 3
    (quality,) = found["details"]["quality"]["models"]
    assert quality["crossed"]
    assert quality["judged"]["high"] < quality["judged"]["limit"]
    # The month has 31 days and the last flight was on the 28th.
    assert found["counts"]["tables_stale"] == 2
    assert found["event"]["model"] == model
    assert found["event"]["crossed"] == found["details"]["crossed"]
    assert any(line.startswith("wind: index ") for line in found["event"]["crossed"])
    assert any("it was 0." in line for line in found["event"]["crossed"])
    assert any("the newest row of training.march is 2 days" in line for line in found["event"]["crossed"])
    assert sum(r["crossed"] for r in rows_of(warehouse, "monitoring.drift", MARCH)) == 5

    ignored = run_step("detect_drift", ignore=["wind", "carrier"], **arguments)
    assert {c["column"] for c in ignored["details"]["drift"]["columns"]} == {"night", "(prediction)"}
    replaced = rows_of(warehouse, "monitoring.drift", MARCH)
    assert {r["column"] for r in replaced} == {"night", "(prediction)", "training.march", "predictions.march"}
    same = run_step("detect_drift", ignore=["wind", "carrier"], force=True, **arguments)
    assert same["outputs"] == ignored["outputs"]
    with pytest.raises(BadArgument, match="has no feature fog"):
        run_step("detect_drift", **arguments | {"ignore": ["fog"]})


def test_labels_count_once_when_they_become_known(
    run_step: Runner, warehouse: Warehouse, model: str, loaded: Model
) -> None:
    """Half of January's labels come in February, some never."""
    rows = flights(JANUARY, rows=2000, seed=9)
    predictions = put(warehouse, "predictions.late", scored(rows, "model:/delay/7", by=loaded))
    arrival = rows.column("arrival_time").to_pylist()
    arrival = [t + timedelta(days=31) if i % 2 else t for i, t in enumerate(arrival)]
    late = rows.set_column(rows.column_names.index("arrival_time"), "arrival_time", pa.array(arrival, TIME)).slice(
        0, 1800
    )
    labels = put(warehouse, "labels.late", late)

    def monitor(interval: Interval) -> dict[str, Any]:
        return run_step(
            "detect_drift", model=NONE, current=labels, predictions=predictions, labels=labels, interval=interval
        )

    january, february = monitor(JANUARY), monitor(FEBRUARY)
    assert january["counts"]["labelled"] + february["counts"]["labelled"] == 1800
    assert january["counts"]["labelled"] == 900
    assert january["counts"]["unlabelled"] == 2000 - 900
    assert february["counts"]["unlabelled"] == 0
    (quality,) = february["details"]["quality"]["models"]
    assert quality["version"] == "model:/delay/7"
    assert quality["judged"]["reference"] is None
    assert not quality["crossed"]


def test_both_sides_are_counted_by_day(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    """The days of the training data are those rows of its own table that the reference was made of."""
    rows = flights(FEBRUARY)
    table = put(warehouse, "training.days", rows)
    predictions = put(warehouse, "predictions.days", scored(rows, model, by=loaded))
    for cluster, clusters in (("day", (28, 20, 8)), ("", (None, None, None))):
        found = run_step(
            "detect_drift", model=model, current=table, predictions=predictions, interval=FEBRUARY, cluster=cluster
        )
        columns = {c["column"]: c for c in found["details"]["drift"]["columns"]}
        assert columns["wind"]["reference_rows"] == columns["night"]["reference_rows"] == loaded.bundle["rows_train"]
        assert columns["(prediction)"]["reference_rows"] == loaded.bundle["rows_validation"]
        counted = (columns["wind"]["clusters"], columns["wind"]["reference_clusters"])
        assert (*counted, columns["(prediction)"]["reference_clusters"]) == clusters
        kept = loaded.reference["features"]["carrier"]["counts"]
        shares = {b["bin"]: b["reference"] for b in columns["carrier"]["bins"]}
        assert shares == pytest.approx({name: n / sum(kept.values()) for name, n in kept.items()})
        assert {c["outcome"] for c in columns.values()} == {"ok"}


def test_days_that_cannot_be_counted_are_said(
    run_step: Runner, warehouse: Warehouse, config: Config, loaded: Model
) -> None:
    arguments = {
        "examples": put(warehouse, "training.gone", flights(JANUARY, seed=5)),
        "features": ["wind", "carrier"],
        "hyperparameters": {"n_estimators": 5, "max_depth": 2},
    }
    receipt, error = execute(load("train"), Call("train", arguments), config, Redactor([]))
    assert error is None, error
    manifest = json.loads(Path(receipt.manifest.removeprefix("file://")).read_bytes())
    orphan = str(manifest["outputs"]["model"]["reference"])
    warehouse._catalog.drop_table("training.gone")
    table = put(warehouse, "training.after", flights(FEBRUARY, shift=3))
    found = run_step("detect_drift", model=orphan, current=table, interval=FEBRUARY)
    columns = found["details"]["drift"]["columns"]
    assert {c["outcome"] for c in columns} == {"too few"}
    assert columns[0]["why"].startswith("the days of the training data cannot be counted: there is no table training.g")
    found = run_step("detect_drift", model=orphan, current=table, interval=FEBRUARY, cluster="")
    assert {c["column"]: c["outcome"] for c in found["details"]["drift"]["columns"]}["wind"] == "drifted"


def test_the_quality_of_one_day(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    """One day says nothing of how days differ; by the hour, and by the row, a loss is seen."""
    rows = flights(FEBRUARY, rows=28_000, seed=3, noise=9.0)
    day = Interval(datetime(2013, 2, 5, 5, tzinfo=UTC), datetime(2013, 2, 6, 5, tzinfo=UTC))
    rows = rows.set_column(rows.column_names.index("arrival_time"), "arrival_time", rows.column("event_time"))
    labels = put(warehouse, "labels.daily", rows)
    predictions = put(warehouse, "predictions.daily", scored(rows, model, by=loaded))

    def quality(cluster: str) -> dict[str, Any]:
        found = run_step(
            "detect_drift", model=model, current=labels, predictions=predictions, labels=labels, interval=day,
            cluster=cluster,
        )  # fmt: skip
        return dict(found["details"]["quality"]["models"][0])

    daily = quality("day")
    assert daily["judged"] is None
    assert daily["why"] == f"{model}: {daily['rows']:,} labels of 1 day, at least 2 days are needed"
    for cluster in ("hour", ""):
        found = quality(cluster)
        assert found["crossed"]
        assert found["judged"]["high"] < found["judged"]["limit"]


def test_labels_of_one_class(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    rows = flights(FEBRUARY, seed=4)
    rows = rows.set_column(rows.column_names.index("label"), "label", pa.array(np.zeros(len(rows), np.int64)))
    labels = put(warehouse, "labels.none_late", rows)
    predictions = put(warehouse, "predictions.none_late", scored(rows, model, by=loaded))
    found = run_step(
        "detect_drift", model=model, current=labels, predictions=predictions, labels=labels, interval=FEBRUARY
    )
    assert found["details"]["quality"]["models"][0]["why"].endswith("labels are 0, roc_auc needs both classes")


def test_the_answer_has_another_name(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    """Before the first model nobody knows which column it is; after it, a table without it is the wrong one."""
    rows = flights(JANUARY, seed=6)
    renamed = rows.rename_columns(["is_late" if n == "label" else n for n in rows.column_names])
    labels = put(warehouse, "labels.renamed", renamed)
    predictions = put(warehouse, "predictions.renamed", scored(rows, model, by=loaded))
    arguments: dict[str, Any] = {
        "current": labels, "predictions": predictions, "labels": labels, "interval": JANUARY,
        "table": "monitoring.renamed", "quality_table": "monitoring.renamed_quality",
    }  # fmt: skip
    found = run_step("detect_drift", model="delay@champion", **arguments)
    reason = "there is no delay model yet to say which column of labels.renamed is the answer, and none is called label"
    assert found["details"]["quality"] == {"models": [], "unlabelled": 0, "reason": reason}
    with pytest.raises(
        SchemaMismatch, match=r"labels\.renamed@\d+ has no column 'label', which model:/run/\w+ predicts"
    ):
        run_step("detect_drift", model=model, **arguments)


def test_an_empty_table_is_stale_in_the_figures_too(run_step: Runner, warehouse: Warehouse) -> None:
    """Also where an earlier airloop made the table, which required a value."""
    table = put(warehouse, "training.empty", flights(FEBRUARY))
    found: dict[str, Any] = {}
    for interval in (FEBRUARY, JANUARY):
        found = run_step(
            "detect_drift", model=NONE, current=table, interval=interval, max_age="1d", table="monitoring.empty"
        )
        if interval == FEBRUARY:
            with warehouse.table("monitoring.empty").update_schema(allow_incompatible_changes=True) as update:
                update.update_column("value", required=True)
    assert found["details"]["crossed"] == ["training.empty has no row known by the interval's end"]
    (row,) = rows_of(warehouse, "monitoring.empty", JANUARY)
    assert (row["column"], row["statistic"], row["value"], row["limit"]) == ("training.empty", "age_hours", None, 24)
    assert row["crossed"]
    (before,) = rows_of(warehouse, "monitoring.empty", FEBRUARY)
    assert before["value"] > 0


def test_no_model_yet(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    table = put(warehouse, "training.first", flights(JANUARY))
    empty = put(warehouse, "predictions.none", scored(flights(JANUARY).slice(0, 0), "", by=loaded))
    found = run_step(
        "detect_drift", model="delay@champion", current=table, predictions=empty, labels=table, interval=JANUARY,
        table="monitoring.none", quality_table="monitoring.none_quality",
    )  # fmt: skip
    assert found["details"]["drift"] == {
        "columns": [],
        "reason": "there was no delay model yet when the interval began: nothing to compare with",
    }
    assert found["details"]["quality"]["reason"] == "no prediction got its label within the interval"
    assert found["outputs"]["model"]["reference"] == NONE
    assert found["event"] is None
    assert {r["kind"] for r in rows_of(warehouse, "monitoring.none", JANUARY)} == {"freshness"}
    assert rows_of(warehouse, "monitoring.none_quality", JANUARY) == []


def test_few_rows_are_not_judged(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    rows = flights(FEBRUARY, rows=100, shift=3)
    table = put(warehouse, "training.few", rows)
    predictions = put(warehouse, "predictions.few", scored(rows, model, by=loaded))
    found = run_step(
        "detect_drift", model=model, current=table, predictions=predictions, labels=table, interval=FEBRUARY
    )
    assert found["counts"]["columns_too_few"] == 4
    assert "100 labels, at least 200 are needed" in found["details"]["quality"]["models"][0]["why"]
    empty = run_step("detect_drift", model=model, current=table, interval=MARCH, max_age="1d")
    assert empty["counts"]["columns_too_few"] == 3
    assert empty["details"]["quality"]["reason"] == "quality needs predictions and labels"
    assert empty["counts"]["tables_stale"] == 1
    nothing = run_step("detect_drift", model=model, current=table, interval=JANUARY, max_age="1d")
    assert nothing["details"]["freshness"][0]["why"] == "training.few has no row known by the interval's end"


def test_what_does_not_fit_is_an_error(run_step: Runner, warehouse: Warehouse, model: str, loaded: Model) -> None:
    table = put(warehouse, "training.narrow", flights(FEBRUARY).drop_columns(["wind", "night"]))
    with pytest.raises(SchemaMismatch, match=r"has no column night, wind, which model:/run/\w+ was trained on"):
        run_step("detect_drift", model=model, current=table, interval=FEBRUARY)
    with pytest.raises(BadArgument, match="is not a duration"):
        run_step("detect_drift", model=NONE, current=table, interval=FEBRUARY, max_age="soon")
    with pytest.raises(BadInterval):
        run_step("detect_drift", model=NONE, current=table)
    alien = put(warehouse, "labels.alien", flights(FEBRUARY).rename_columns(
        ["id", *flights(FEBRUARY).column_names[1:]]), key=("id",))  # fmt: skip
    predictions = put(warehouse, "predictions.narrow", scored(flights(FEBRUARY), model, by=loaded))
    with pytest.raises(SchemaMismatch, match="share no key column"):
        run_step("detect_drift", model=NONE, current=table, predictions=predictions, labels=alien, interval=FEBRUARY)
