"""The feature repository: read without a trace, applied once, described without Feast."""

from __future__ import annotations

import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airloop.config import Config
from airloop.contract import Interval
from airloop.errors import BadConfiguration, NotFound
from airloop.features import repo
from airloop.features.refs import FeatureServiceRef, digest_of
from airloop.reference import Scope
from tests import offline_world as world
from tests.conftest import REPOSITORY
from tests.offline_world import FILES, at


@pytest.fixture(params=["file", "postgres"])
def config(config: Config, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    if request.param == "postgres":
        config = replace(config, feast_registry=request.getfixturevalue("postgres_url"))
    return world.with_repo(config, world.write_repo(tmp_path / "feature_repo"))


def folder_of(config: Config) -> Path:
    assert config.feature_repo is not None
    return config.feature_repo


def test_describes_views_and_services(config: Config) -> None:
    found = repo.describe(config)
    service = found.service("small_v1")
    assert service.feature_names == ["hour", "distance", "delays__late_rate", "delays__flights", "weather__temp"]
    assert service.keys == ["carrier", "origin"]
    assert service.tables == ["features.delays", "features.weather"]
    delays = found.views["delays"]
    assert (delays.ttl_s, delays.event_time, delays.arrival_time) == (12 * 3600, "event_time", "arrival_time")
    assert found.views["weather"].spec().ttl is None
    assert repo.RepoDefinition.from_json(found.to_json()) == found
    with pytest.raises(NotFound, match="no feature service 'other'"):
        found.service("other")


def test_second_look_does_not_import_feast(config: Config) -> None:
    first = repo.describe(config)
    environment = {
        "AIRLOOP_HOME": str(config.home),
        "AIRLOOP_FEATURE_REPO": str(folder_of(config)),
        "AIRLOOP_FEAST_REGISTRY": str(config.feast_registry),
    }
    code = f"""
import sys
from pathlib import Path
from airloop.config import Config
from airloop.features import offline, repo
config = Config.from_environment({environment!r})
print(repo.describe(config).digest)
assert not {{"feast", "pandas"}} & set(sys.modules), "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first.digest


def test_changed_definitions_are_seen(config: Config) -> None:
    first = repo.describe(config)
    world.write_repo(folder_of(config), views=FILES["views.py"].replace("hours=12", "hours=6"))
    second = repo.describe(config)
    assert second.digest != first.digest
    assert second.views["delays"].ttl_s == 6 * 3600


def test_two_repositories_in_one_process_keep_apart(config: Config, tmp_path: Path) -> None:
    other = world.write_repo(
        tmp_path / "other",
        entities=FILES["entities.py"]
        + "\n        desk = Entity(name='desk', join_keys=['desk'], value_type=ValueType.INT64)\n",
        views=FILES["views.py"].replace("late_rate", "other_rate"),
    )
    from feast import FeatureView

    before = (dict(sys.modules), list(sys.path))
    assert "delays" in [o.name for o in repo.objects_of(folder_of(config))]
    sys.modules["views"] = sentinel = type(sys)("views")
    try:
        delays = next(o for o in repo.objects_of(other) if isinstance(o, FeatureView) and o.name == "delays")
        assert [f.name for f in delays.features] == ["other_rate", "flights"]
        assert sys.modules["views"] is sentinel, "somebody else's module of the same name is back"
    finally:
        del sys.modules["views"]
    left = {n for n in set(sys.modules) - set(before[0]) if n in {"views", "sources", "entities", "services"}}
    assert not left
    assert sys.path == before[1]
    assert not list(other.rglob("__pycache__")), "nothing is written into a repository"


def test_failing_definition_leaves_no_trace(config: Config) -> None:
    (folder_of(config) / "views.py").write_text("raise RuntimeError('broken view')")
    before = list(sys.path)
    with pytest.raises(RuntimeError, match="broken view"):
        repo.describe(config)
    assert sys.path == before
    assert "views" not in sys.modules


def test_apply_registers_and_is_done_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = repo.open_store(config)
    assert sorted(v.name for v in store.list_feature_views()) == ["delays", "weather"]
    assert store.get_feature_service("small_v1").name == "small_v1"
    assert config.online_store.is_file()
    calls: list[Any] = []
    applying = repo._apply
    monkeypatch.setattr(repo, "_apply", lambda *a: (calls.append(a), applying(*a)))
    repo.apply(config)
    assert not calls, "nothing changed"
    config.online_store.unlink()
    repo.apply(config)
    assert len(calls) == 1, "a lost online store is made again"
    without = FILES["services.py"].replace("delays, weather[", "weather[").replace("small_v1", "small_v2")
    world.write_repo(folder_of(config), services=without)
    store = repo.open_store(config)
    assert [s.name for s in store.list_feature_services()] == ["small_v2"], "what is gone is removed"


def test_apply_at_once_from_many(config: Config) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: repo.apply(config).digest, range(4)))
    assert len(set(found)) == 1
    assert len(repo.open_store(config).list_feature_views()) == 2


OF_ARRAYS = FILES["views.py"].replace("Int64)", "Array(Int64))").replace("Int64, S", "Array, Int64, S")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_store": "provider: local"}, "names no project"),
        ({"feature_store": "project: a\nregistry: ${NOT_SET_ANYWHERE}"}, "uses \\${NOT_SET_ANYWHERE}"),
        ({"feature_store": "project: [a"}, "is no YAML"),
        ({"services": FILES["services.py"].replace('"schedule"', '"timetable"')}, "request source 'timetable'"),
        ({"views": OF_ARRAYS}, "flights is Array"),
        ({"views": FILES["views.py"].replace("ttl=None", "ttl=None, tags={'known': 'always'}")}, "'at_event'"),
    ],
)
def test_unusable_definitions_are_explained(config: Config, changed: dict[str, str], message: str) -> None:
    world.write_repo(folder_of(config), **changed)
    with pytest.raises(BadConfiguration, match=message):
        repo.describe(config)


@pytest.mark.parametrize("secret", ["s3cret-word", "s3cret-" * 30], ids=["short", "long"])
@pytest.mark.parametrize("setting", ["catalog", "locks", "mlflow"])
@pytest.mark.parametrize(
    ("feature_store", "said"),
    [
        (
            "project: a\nregistry: r.db\nprovider: local\nentity_key_serialization_version: '${{{}}}'",
            "entity_key_serialization_version: Input should be a valid integer",
        ),
        (
            "# a comment\nproject: small\nregistry: x: ${{{}}}",
            "is no YAML: mapping values are not allowed here in line 3",
        ),
    ],
    ids=["number", "YAML"],
)
def test_what_is_said_of_settings_has_no_password(
    config: Config, setting: str, secret: str, feature_store: str, said: str
) -> None:
    name = f"AIRLOOP_{setting.upper()}"
    world.write_repo(folder_of(config), feature_store=feature_store.format(name))
    given = replace(config, **{setting: f"postgresql+psycopg://me:{secret}@db.example/airloop"})
    with pytest.raises(BadConfiguration, match=said) as caught:
        repo._repo_config(given, folder_of(config))
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_source_of_another_kind_is_refused(config: Config) -> None:
    other = (
        "from feast import FileSource\nweather_source = FileSource(path='x.parquet', timestamp_field='event_time')\n"
    )
    world.write_repo(folder_of(config))
    path = folder_of(config) / "sources.py"
    path.write_text(path.read_text() + other)
    with pytest.raises(BadConfiguration, match="weather has a FileSource"):
        repo.describe(config)


def test_reference_resolves_to_the_definitions(config: Config) -> None:
    scope = Scope(config, Interval(at(0), at(1)))
    ref = FeatureServiceRef.parse("small_v1").resolve(scope)
    assert ref.canonical() == f"small_v1@{digest_of(folder_of(config))}"
    assert FeatureServiceRef.parse(str(ref)) == ref
    assert ref.exists(scope)
    (folder_of(config) / "more.py").write_text("# another file\n")
    assert FeatureServiceRef.parse("small_v1").resolve(scope) != ref
    assert not ref.exists(scope)
    with pytest.raises(NotFound, match="as of definitions"):
        ref.resolve(scope)


def test_digest_is_of_content_and_not_of_place(config: Config, tmp_path: Path) -> None:
    copy = world.write_repo(tmp_path / "copy")
    assert digest_of(copy) == digest_of(folder_of(config))
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.py").write_text("ignored")
    (copy / "README.md").write_text("ignored")
    assert digest_of(copy) == digest_of(folder_of(config))


@pytest.mark.parametrize("text", ["", "a b", "delay@", "delay@123", 7, "1delay"])
def test_malformed_reference_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="is not the name of a feature service"):
        FeatureServiceRef.parse(text)


def test_missing_repository_is_explained(config: Config, tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="AIRLOOP_FEATURE_REPO"):
        repo.describe(replace(config, feature_repo=None))
    with pytest.raises(BadConfiguration, match=r"no feature_store\.yaml"):
        repo.describe(replace(config, feature_repo=tmp_path))


def test_the_flights_repository(config: Config) -> None:
    service = repo.describe(world.with_repo(config, REPOSITORY / "feature_repo")).service("delay_v1")
    assert service.keys == ["origin", "carrier", "dest", "tailnum"]
    assert service.feature_names[:6] == ["hour", "weekday", "month", "distance", "sched_minutes", "weather__temp"]
    assert len(service.feature_names) == 30
    assert all(view.arrival_time for view in service.views)
