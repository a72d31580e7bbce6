"""Every operator against its step: the same arguments, documented, templated; and nothing heavy imported."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any

import pytest
from airflow.sdk import DAG

import airloop_operators
from airloop.steps import BUILT_IN, load
from airloop_operators.base import StepOperator, declared

OPERATORS = [
    found for name in airloop_operators.__all__ if (found := getattr(airloop_operators, name)) is not StepOperator
]
HEAVY = ("pandas", "numpy", "pyspark", "feast", "mlflow", "great_expectations", "kubernetes", "torch", "sklearn",
         "pyarrow", "duckdb", "pyiceberg", "xgboost", "lightgbm", "openlineage")  # fmt: skip


def _own_parameters(operator: type[StepOperator]) -> list[str]:
    return [
        p.name for p in inspect.signature(operator.__init__).parameters.values() if p.name not in ("self", "kwargs")
    ]


def _documented(operator: type[StepOperator]) -> dict[str, str]:
    return dict(re.findall(r":param (\w+):\s*(.*?)(?=\n\s*:param|\Z)", inspect.getdoc(operator) or "", re.S))


def test_every_built_in_step_has_an_operator() -> None:
    assert {operator.step_name for operator in OPERATORS} == set(BUILT_IN)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.__name__)
def test_an_operator_takes_what_its_step_takes(operator: type[StepOperator]) -> None:
    parameters = load(operator.step_name).parameters
    assert set(operator.step_arguments) == set(parameters) - {"interval"}
    required = {
        p.name
        for p in inspect.signature(operator.__init__).parameters.values()
        if p.default is inspect.Parameter.empty and p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert required <= {n for n, p in parameters.items() if p.required}, "demands what the step does not"


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.__name__)
def test_an_operator_says_which_arguments_name_what_is_read(operator: type[StepOperator]) -> None:
    parameters = load(operator.step_name).parameters
    named = {n for n, p in parameters.items() if re.search(r"\b(TableRef|ModelRef|IncumbentRef)\b", str(p.type))}
    assert named <= set(operator.step_reads), "the order of runs depends on it"
    assert set(operator.step_reads) <= set(operator.step_arguments)


@pytest.mark.parametrize("operator", [*OPERATORS, StepOperator], ids=lambda o: o.__name__)
def test_parameters_docstring_and_template_fields_agree(operator: type[StepOperator]) -> None:
    documented = _documented(operator)
    names = operator.step_arguments or _own_parameters(StepOperator)
    assert set(documented) >= set(names)
    for name in names:
        assert ("(templated)" in documented[name]) == (name in operator.template_fields), name


@pytest.mark.parametrize("operator", [*OPERATORS, StepOperator], ids=lambda o: o.__name__)
def test_all_parameters_are_keywords(operator: type[StepOperator]) -> None:
    kinds = {
        p.kind for p in inspect.signature(operator.__init__).parameters.values() if p.name not in ("self", "kwargs")
    }
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


def test_importing_operators_imports_no_heavy_library() -> None:
    code = (
        "import sys, airloop_operators; [getattr(airloop_operators, n) for n in airloop_operators.__all__];"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


class CountOperator(StepOperator):
    """An operator for a step of one's own."""

    step_name = "counts:count_rows"
    template_ext = (".sql",)

    @declared
    def __init__(self, *, table: str, column: str | None = None, **kwargs: Any) -> None: ...


def test_a_declared_constructor_has_its_own_parameters_and_those_of_all_operators() -> None:
    with DAG("counts", default_args={"column": "dest", "memory_mb": 64, "retries": 3}):
        task = CountOperator(task_id="count", table="raw.flights", cpus=1)
        other = CountOperator(task_id="other", table=task.output, column="origin", retries=0)
    assert (task.call_arguments(), task.memory_mb, task.cpus, task.retries) == (
        {"table": "raw.flights", "column": "dest"},
        64,
        1,
        3,
    )
    assert (other.call_arguments()["column"], other.retries) == ("origin", 0)
    assert other.upstream_task_ids == {"count"}
    assert {"table", "column", "environment"} <= set(CountOperator.template_fields)


@pytest.mark.parametrize(
    ("given", "says"),
    [({}, "missing keyword argument 'table'"), ({"table": "raw.flights", "colum": "x"}, "colum")],
)
def test_a_declared_constructor_refuses_what_it_does_not_name(given: dict[str, str], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        CountOperator(task_id="count", **given)


def test_a_declared_constructor_bypasses_no_other() -> None:
    with pytest.raises(TypeError, match="Longer: a declared constructor takes the place of StepOperator's alone"):

        class Longer(CountOperator):
            @declared
            def __init__(self, *, more: str, **kwargs: Any) -> None: ...
