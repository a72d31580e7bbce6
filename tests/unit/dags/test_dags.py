"""The loops' files: they parse, serialise, and cost a scheduler nothing that a plain DAG would not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = ("pandas", "numpy", "pyspark", "feast", "mlflow", "great_expectations", "kubernetes", "torch", "sklearn",
         "pyarrow", "duckdb", "pyiceberg", "xgboost", "lightgbm", "openlineage", "dask")  # fmt: skip
FILES = sorted((REPOSITORY / "dags").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_parsing_imports_no_heavy_library(file: Path) -> None:
    # Airflow itself imports some of them in places; what counts is what the file adds.
    code = (
        "import sys, runpy; from airflow.sdk import DAG, Asset, TaskGroup; before = set(sys.modules);"
        f"runpy.run_path({str(file)!r});"
        f"print([m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_loop_parses_and_survives_serialisation(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = DagBag(str(file))
    assert bag.import_errors == {}
    assert bag.dags
    for dag in bag.dags.values():
        again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert set(again.task_ids) == set(dag.task_ids)
        for task in dag.tasks:
            # A file named by a template field was found beside the DAG file and stands there with its content.
            for field in task.template_fields:
                value = getattr(task, field, None)
                assert not (isinstance(value, str) and value.endswith(tuple(task.template_ext) or ("\0",))), (
                    f"{task.task_id}.{field}: {value} was not found"
                )


def test_every_file_beside_the_loops_is_used() -> None:
    named = "".join(file.read_text() for file in FILES)
    for path in (REPOSITORY / "dags").rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".yml", ".json", ".sql"):
            assert path.stem in named, f"{path} is named by no loop"
