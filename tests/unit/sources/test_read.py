from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from airloop.errors import SchemaMismatch
from airloop.sources.files import SourceFile
from airloop.sources.read import Plan, plan, rows
from airloop.sources.spec import SourceSpec

Make = Callable[..., SourceSpec]
Files = Callable[..., tuple[SourceFile, ...]]
HEADER = "id,at,value,note\n"


def table(spec: SourceSpec, planned: Plan) -> pa.Table:
    return pa.Table.from_batches([batch for *_, batch in rows(spec, planned)])


def test_an_undeclared_column_is_kept_and_reported(spec: Make, resolved: Files) -> None:
    files = resolved(**{"a.csv": "id,at,value,note,gate\n1,,,,A1\n"})
    planned = plan(spec(), files, {})
    assert planned.added == {"gate": "string"}
    assert planned.report == ("a.csv: column gate (string) is not declared; kept as a nullable column",)
    assert table(spec(), planned).column("gate").to_pylist() == ["A1"]
    assert plan(spec(ignore=["gate"]), files, {}).added == {}
    with pytest.raises(SchemaMismatch, match=r"a\.csv: column 'gate' is not declared and evolve is false"):
        plan(spec(evolve=False), files, {})


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "", "-5"], "long"),
        (["1", "2.5"], "double"),
        (["007", "8"], "string"),
        (["true", "FALSE"], "boolean"),
        (["2013-01-01", "2013-12-31"], "date"),
        (["2013-01-01T00:00:00Z"], "timestamptz"),
        (["2013-01-01T00:00:00"], "string"),
        (["nan", "1"], "string"),
        (["1", "x"], "string"),
        (["", ""], "string"),
        (["99999999999999999999"], "double"),
    ],
)
def test_types_of_undeclared_columns_are_guessed_with_care(
    spec: Make, resolved: Files, values: list[str], kind: str
) -> None:
    text = "id,at,value,note,new\n" + "".join(f"{i},,,,{value}\n" for i, value in enumerate(values))
    assert plan(spec(), resolved(**{"a.csv": text}), {}).added == {"new": kind}


def test_a_known_column_keeps_its_type(spec: Make, resolved: Files) -> None:
    files = resolved(**{"a.csv": "id,at,value,note,new\n1,,,,5\n"})
    planned = plan(spec(), files, {"new": "string", "gone": "long"})
    assert planned.added == {"new": "string"}
    assert planned.report == ()
    assert table(spec(), planned).column("new").to_pylist() == ["5"]


def test_files_may_differ_in_undeclared_columns(spec: Make, resolved: Files) -> None:
    files = resolved(
        **{
            "a.csv": HEADER + "1,,,\n",
            "b.csv": "id,at,value,note,x\n2,,,,5\n",
            "c.csv": "x,id,at,value,note\n1.5,3,,,\n",
        }
    )
    planned = plan(spec(), files, {})
    assert planned.added == {"x": "double"}
    assert table(spec(), planned).column("x").to_pylist() == [None, 5.0, 1.5]
    clashing = resolved(**{"b.csv": "id,at,value,note,x\n2,,,,5\n", "c.csv": "id,at,value,note,x\n2,,,,2013-01-01\n"})
    with pytest.raises(SchemaMismatch, match=r"c\.csv: x, which is not declared, is date here and long elsewhere"):
        plan(spec(), clashing, {})


def test_a_lost_column_is_an_error_unless_it_is_optional(spec: Make, resolved: Files) -> None:
    files = resolved(**{"a.csv": "id,at\n1,\n", "b.csv": HEADER, "c.csv": "at,value\n,\n"})
    with pytest.raises(SchemaMismatch) as caught:
        plan(spec(), files, {})
    assert "a.csv: lost column 'value' (double); lost column 'note' (string)" in str(caught.value)
    assert "c.csv: lost column 'id' (long); lost column 'note' (string)" in str(caught.value)
    assert "b.csv" not in str(caught.value)
    columns = {"id": "long", "at": "timestamptz", "value": {"type": "double", "optional": True}}
    planned = plan(spec(columns=columns), files[:1], {})
    assert planned.report == ("a.csv: optional column value is missing, its values are null",)
    assert table(spec(columns=columns), planned).to_pylist() == [{"id": 1, "at": None, "value": None}]


@pytest.mark.parametrize("name", ["Departure delay", "", "_batch", "ID"])
def test_names_that_a_table_cannot_have(spec: Make, resolved: Files, name: str) -> None:
    with pytest.raises(SchemaMismatch, match="is not declared and cannot be the name of a column here"):
        plan(spec(), resolved(**{"a.csv": f"id,at,value,note,{name}\n1,,,,\n"}), {})
