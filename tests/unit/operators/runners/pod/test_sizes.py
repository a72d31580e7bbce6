"""Sizes and pools: what a file may say, and what is refused with what is possible."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airloop.errors import BadConfiguration
from airloop_operators.runners.pod.profiles import PROFILES
from airloop_operators.runners.pod.sizes import Pods, Size, parse_pods, quantity, read_pods

IMAGES = {profile.variant: f"airloop:{profile.variant}" for profile in PROFILES.values()}


def parsed(**document: Any) -> Pods:
    return parse_pods({"images": IMAGES, **document}, origin="sizes.yaml")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2Gi", 2 << 30),
        ("500m", Decimal("0.5")),
        (2, 2),
        ("1.5", Decimal("1.5")),
        ("128974848", 128974848),
        ("1k", 1000),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: Any, number: Any) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "2 GB", "-1", "0", "lots", True, "1e3x"])
def test_what_is_no_quantity_is_refused(text: Any) -> None:
    with pytest.raises(BadConfiguration, match="no quantity above 0"):
        quantity(text)


def test_a_file_is_yaml_or_json(tmp_path: Path) -> None:
    yaml, as_json = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml.write_text("images: {cpu: 'airloop:1'}\nsizes:\n  small: {cpu: 1, memory: 1Gi}\n")
    as_json.write_text(json.dumps({"images": {"cpu": "airloop:1"}, "sizes": {"small": {"cpu": 1, "memory": "1Gi"}}}))
    for path in (yaml, as_json):
        pods = read_pods(path)
        assert pods.sizes == {"small": Size(cpu="1", memory="1Gi")}
        assert pods.place(None).image == "airloop:1"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"no\.yaml cannot be read"):
        read_pods(tmp_path / "no.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(BadConfiguration, match="neither YAML nor JSON"):
        read_pods(broken)


def test_without_a_file_there_are_sizes_and_no_image() -> None:
    with pytest.raises(BadConfiguration, match="there is no image for cpu, which size 'small' needs"):
        read_pods(None).place(None)


def test_a_pool_makes_the_place() -> None:
    pods = parsed(
        pools={"gpu": {"accelerator": "nvidia", "resource": "example.com/gpu", "node_selector": {"pool": "gpu"}}},
        sizes={"small": {}, "gpu": {"pool": "gpu", "accelerators": 2, "shared_memory": "1Gi", "memory": "8Gi"}},
    )
    place = pods.place("gpu")
    assert (place.image, place.resource, place.backend) == ("airloop:cuda", "example.com/gpu", "nccl")
    assert pods.place("small").backend == "gloo"
    assert pods.place("small").resource == ""


@pytest.mark.parametrize("profile", [p for p in PROFILES.values() if p.accelerated])
def test_each_accelerator_has_a_place(profile: Any) -> None:
    resource = {} if profile.resource else {"resource": "nvidia.com/mig-1g.10gb"}
    pods = parsed(
        pools={"p": {"accelerator": profile.name, **resource}},
        sizes={"small": {}, "one": {"pool": "p", "accelerators": 1}},
    )
    place = pods.place("one")
    assert place.image == f"airloop:{profile.variant}"
    assert place.resource
    assert place.backend == profile.backends[0]


GPU = {"gpu": {"accelerator": "nvidia"}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sizes": {"small": {"pool": "gpu"}}}, "pool 'gpu', which is not there; pools in sizes.yaml: none"),
    ({"pools": {"p": {"accelerator": "abacus"}}, "sizes": {"small": {"pool": "p"}}}, "accelerators: cpu, edge, nv"),
    ({"pools": GPU, "sizes": {"small": {"pool": "gpu"}}}, "has no accelerators, its pool 'gpu' is of nvidia"),
    ({"pools": GPU, "sizes": {"small": {"accelerators": 1}}}, "give it a pool that has: gpu"),
    (
        {
            "pools": {"mig": {"accelerator": "nvidia-mig", "resource": "nvidia.com/mig-1g.10gb"}},
            "sizes": {"small": {"pool": "mig", "accelerators": 2}},
        },
        "a pod can use 1 of nvidia-mig",
    ),
    (
        {"pools": {"p": {"accelerator": "nvidia-mig"}}, "sizes": {"small": {"pool": "p", "accelerators": 1}}},
        "give it: the instance's own",
    ),
    (
        {
            "pools": {"p": {"accelerator": "amd", "resource": "nvidia.com/gpu"}},
            "sizes": {"small": {"pool": "p", "accelerators": 1}},
        },
        "write accelerator: nvidia",
    ),
    (
        {
            "pools": {"p": {"accelerator": "ascend", "backend": "nccl"}},
            "sizes": {"small": {"pool": "p", "accelerators": 1}},
        },
        "possible: hccl, gloo",
    ),
    ({"pools": {"p": {"resource": "nvidia.com/gpu"}}, "sizes": {"small": {"pool": "p"}}}, "'cpu' has no resource"),
    ({"sizes": {"small": {"memory": "lots"}}}, "sizes.small.memory 'lots' is no quantity"),
    ({"sizes": {"small": {"memory": "1Gi", "shared_memory": "1Gi"}}}, "it is part of the limit"),
    ({"sizes": {"small": {"cpu": 1, "requests": {"cpu": 2}}}}, "requests.cpu 2 is above 1"),
    ({"sizes": {"small": {"requests": {"nvidia.com/gpu": 1}}}}, "requests are of cpu and memory"),
    ({"sizes": {"small": {"accelerators": 0.5}}}, "accelerators is 0.5; give a whole number"),
    ({"sizes": {"small": {"accelerators": True}}}, "give a whole number"),
    ({"sizes": {"small": {"ram": "1Gi"}}}, "there is no 'ram'; possible: cpu, memory"),
    ({"sizes": {"big": {}}}, "default is 'small', which is no size; sizes: big"),
    ({"size": {}}, "there is no 'size'; possible: namespace"),
    ({"user": 0}, "payloads do not run as root"),
    ({"volumes": [{"claim": "c", "path": "srv"}]}, "give the path of a folder"),
    ({"volumes": [{"claim": "c"}]}, "path is missing"),
    ({"volumes": [{"path": "/srv"}]}, "/srv has neither a claim nor a config_map; give one of them"),
    (
        {"volumes": [{"path": "/srv", "claim": "c", "config_map": "m"}]},
        "/srv has a claim and a config_map; give one of them",
    ),
    ({"pools": {"p": {"gang": "slurm"}}}, "pools.p: gang is 'slurm'; possible: kueue, volcano"),
    ({"pools": {"p": {"queue": "team"}}}, "queue 'team' is nobody's; say whose: gang: kueue or volcano"),
    ({"pools": {"p": {"gang": "kueue"}}}, "there is no queue; give queue: NAME"),
    ({"pools": {"p": {"gang": "volcano", "scheduler": "other"}}}, "the scheduler is 'other'; leave out scheduler"),
    ({"secrets": {"X": "abc"}}, "secrets.X is a str; write name: value pairs"),
    ({"patience": {"schedule_s": 0}}, "give a number above 0"),
    ({"environment": {"X": ["a"]}}, "give name: text pairs"),
    ({"images": {}}, "there is no image for cpu"),
    ({"pools": {"p": {"accelerator": "nvidia", "budget": "b"}}}, "pools.p.budget is 'b', which is not there"),
    ({"budgets": {"b": 1}, "pools": {"p": {"budget": "b"}}}, "'cpu' has no accelerators"),
    ({"budgets": {"b": 0}}, "give a whole number of accelerators, 1 or more"),
    (
        {
            "budgets": {"b": 1},
            "pools": {"p": {"accelerator": "nvidia", "budget": "b"}},
            "sizes": {"small": {}, "two": {"pool": "p", "accelerators": 2}},
        },
        "its budget 'b' is 1: its tasks would wait for ever",
    ),
    (
        {
            "budgets": {"b": 1},
            "pools": {"p": {"accelerator": "nvidia", "budget": "b"}},
            "sizes": {"small": {"pool": "p", "accelerators": 1}},
        },
        "default is 'small', whose accelerators are counted",
    ),
    ({"sizes": {"small": {"cpu": "0"}}}, "sizes.small.cpu '0' is no quantity"),
]
"""Also of the chart, under `pods`."""


@pytest.mark.parametrize(("document", "says"), REFUSED)
def test_what_cannot_be_right_is_refused_with_what_is_possible(document: dict[str, Any], says: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        parsed(**document)
    assert says in str(refused.value)


def test_an_unknown_size_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadConfiguration, match=r"there is no size 'huge'; sizes in sizes\.yaml: small, large"):
        parsed().place("huge")
