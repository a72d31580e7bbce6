"""References to models and decisions: every form, every refusal, and resolution without heavy imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airloop.config import Config
from airloop.errors import ContractBroken, NotFound
from airloop.reference import Scope
from airloop.registry.refs import DecisionRef, ModelRef
from airloop.warehouse.artifacts import ArtifactStore, sha256


@pytest.mark.parametrize(
    ("text", "expected", "printed"),
    [
        ("delay@champion", ModelRef("delay", alias="champion"), "delay@champion"),
        ("model:/delay@champion", ModelRef("delay", alias="champion"), "delay@champion"),
        (" delay@3 ", ModelRef("delay", version=3), "model:/delay/3"),
        ("model:/delay/3", ModelRef("delay", version=3), "model:/delay/3"),
        ("model:/run/3f2a-b_C", ModelRef(run_id="3f2a-b_C"), "model:/run/3f2a-b_C"),
        ("model:/delay/none", ModelRef("delay", version=0), "model:/delay/none"),
        ("delay@none", ModelRef("delay", version=0), "model:/delay/none"),
        ("my.model-2@v_1", ModelRef("my.model-2", alias="v_1"), "my.model-2@v_1"),
    ],
)
def test_forms(text: str, expected: ModelRef, printed: str) -> None:
    assert ModelRef.parse(text) == expected
    assert str(expected) == printed == expected.canonical()
    assert ModelRef.parse(printed) == expected
    assert expected.absent == ("none" in printed)


@pytest.mark.parametrize(
    "value",
    ["", "delay", "delay@", "@champion", "delay@0", "model:/delay/0", "model:/delay/latest", "run@champion",
     "model:/run/", "model:/run/a b", "a b@champion", "delay@cham pion", "delay/../x", "model:/a/b/3", 3, None],
)  # fmt: skip
def test_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected name@alias|not the name of a model"):
        ModelRef.parse(value)


def test_a_steps_result_is_accepted() -> None:
    result = {"step": "train", "key": "ab", "status": "done", "manifest": "m", "counts": {}, "model": "model:/run/1f"}
    assert ModelRef.coerce(result) == ModelRef(run_id="1f")
    with pytest.raises(ValueError, match="the result of step train has no decision, only \\['model'\\]"):
        DecisionRef.coerce(result)


def test_alias_of_nothing_resolves_to_none(config: Config) -> None:
    found = ModelRef.parse("delay@champion").resolve(Scope(config))
    assert str(found) == "model:/delay/none"
    assert found.exists(Scope(config))
    assert not ModelRef.parse("delay@champion").exists(Scope(config))


@pytest.mark.parametrize("text", ["model:/delay/3", "model:/run/abc"])
def test_what_is_not_there_is_not_found(config: Config, text: str) -> None:
    with pytest.raises(NotFound, match="not in the model registry"):
        ModelRef.parse(text).resolve(Scope(config))


def test_decision(config: Config) -> None:
    store, scope = ArtifactStore(config.artifacts), Scope(config)
    content = b'{"challenger": "model:/run/1"}'
    reference = DecisionRef("steps/evaluate/ab/decision.json", sha256(content))
    with pytest.raises(NotFound):
        reference.resolve(scope)
    assert not reference.exists(scope)
    store.publish_bytes(reference.name, content)
    assert DecisionRef.parse(str(reference)) == reference.resolve(scope)
    assert reference.exists(scope)
    assert reference.read(scope) == {"challenger": "model:/run/1"}
    assert reference.canonical() == {"decision": reference.digest}
    store.publish_bytes(reference.name, b"{}")
    with pytest.raises(ContractBroken, match="changed after the gate wrote it"):
        reference.resolve(scope)


@pytest.mark.parametrize("value", ["", "decision:", "decision:a#12", "x#" + "a" * 64, 7])
def test_no_decision(value: object) -> None:
    with pytest.raises(ValueError, match="pass the result of an evaluate step"):
        DecisionRef.parse(value)


def test_resolving_imports_no_mlflow(config: Config) -> None:
    code = (
        "import sys; from airloop.config import Config; from airloop.reference import Scope;"
        "from airloop.registry.refs import ModelRef;"
        f"c = Config.from_environment({{'AIRLOOP_HOME': {str(config.home)!r}}});"
        "print(ModelRef.parse('delay@champion').resolve(Scope(c)), ModelRef.parse('model:/run/1').exists(Scope(c)));"
        "assert 'mlflow' not in sys.modules and 'sklearn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["model:/delay/none", "False"]), done.stderr
