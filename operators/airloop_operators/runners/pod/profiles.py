"""
Accelerators by name: what a pod asks for, which image variant knows them, and how several of them talk to each other.

A profile is what all clusters with such devices have in common. A pool (:mod:`.sizes`) says what is a cluster's own.

Beside each stands where its names are from; "not checked" is what no document of its maker could be read for. None of
them was run by us but under another name (``resource: example.com/gpu``). A back end is named by its library:
``torch.distributed`` calls ``rccl`` by the name ``nccl`` ("Distributed communication package",
https://docs.pytorch.org/docs/stable/distributed.html, also for ``gloo``, ``nccl`` and ``xccl``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airloop.errors import BadConfiguration

GLOO = "gloo"
"""The collective back end that needs no accelerator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A kind of accelerator, or none."""

    name: str
    resource: str = ""
    """Extended resource that its device plugin offers; empty: it has none, or each cluster names its own."""
    variant: str = "cpu"
    """Variant of the payload's image."""
    backends: tuple[str, ...] = (GLOO,)
    """Collective back ends that work on it, the best first."""
    most: int | None = None
    """Accelerators that one pod can use; None: as many as a node has."""
    environment: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    """What to say where a pool leaves out what it must give."""

    @property
    def accelerated(self) -> bool:
        """Whether it has accelerators at all."""
        return self.variant != "cpu"


# NVIDIA Container Toolkit, "Specialized Configurations with Docker"
# (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html): which libraries of
# the driver a container gets. Unset it is the same, but for older versions (utility only) and images that ask for more.
_NVIDIA = {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="cpu"),
        # Small nodes: streams are cut into small pieces, and DuckDB spills early. Its image is the CPU's, for arm64.
        Profile(name="edge", environment={"AIRLOOP_ROWS_PER_CHUNK": "100000", "AIRLOOP_MEMORY_MB": "256"}),
        # NVIDIA device plugin, README (https://github.com/NVIDIA/k8s-device-plugin).
        Profile(
            name="nvidia",
            resource="nvidia.com/gpu",
            variant="cuda",
            backends=("nccl", GLOO),
            environment=_NVIDIA,
        ),
        # The same with migStrategy "mixed": nvidia.com/mig-<slices>g.<memory>gb. A process sees one instance only, and
        # instances have no way to each other (NVIDIA, "Multi-Instance GPU User Guide",
        # https://docs.nvidia.com/datacenter/tesla/mig-user-guide/), so NCCL does not join them. With "single" they are
        # called nvidia.com/gpu: give that as `resource`.
        Profile(
            name="nvidia-mig",
            variant="cuda",
            most=1,
            environment=_NVIDIA,
            hint="the instance's own, e.g. nvidia.com/mig-1g.10gb",
        ),
        # NVIDIA GPU Operator, "Time-Slicing GPUs in Kubernetes"
        # (https://docs.nvidia.com/datacenter/cloud-native/gpu-operator/latest/gpu-sharing.html): the name with
        # renameByDefault, without it nvidia.com/gpu. Two shares may be of one GPU, which NCCL refuses; asking for more
        # shares gives no more of it.
        Profile(
            name="nvidia-timeslice",
            resource="nvidia.com/gpu.shared",
            variant="cuda",
            most=1,
            environment=_NVIDIA,
        ),
        # AMD GPU device plugin, README and example/pod (https://github.com/ROCm/k8s-device-plugin).
        Profile(name="amd", resource="amd.com/gpu", variant="rocm", backends=("rccl", GLOO)),
        # Intel GPU device plugin, README (https://intel.github.io/intel-device-plugins-for-kubernetes/cmd/gpu_plugin/
        # README.html): of the older kernel driver; nodes with the newer one offer gpu.intel.com/xe, so give that.
        Profile(name="intel", resource="gpu.intel.com/i915", variant="xpu", backends=("xccl", GLOO)),
        # MindCluster, "Ascend Docker Runtime" (https://www.hiascend.com/doc_center/source/zh/mindcluster/70rc1/
        # clustersched/dlug/dlruntime_ug_007.html). Other chips have other names: huawei.com/Ascend310P, say; so do the
        # shares of HAMi. Its back end's name, hccl, is torch_npu's: not checked.
        Profile(name="ascend", resource="huawei.com/Ascend910", variant="ascend", backends=("hccl", GLOO)),
        # Not checked: Hygon's own document could not be read. Many public manifests ask for this name; where DCUs are
        # shared by HAMi it is hygon.com/dcunum. That its collectives are RCCL's is not checked either.
        Profile(name="hygon", resource="hygon.com/dcu", variant="dcu", backends=("rccl", GLOO)),
        # The resource is not checked at Moore Threads: DLRover and HAMi know it by this name, and newer versions of its
        # device plugin can be told another. The back end is of torch_musa (https://github.com/MooreThreads/torch_musa).
        Profile(name="mthreads", resource="mthreads.com/gpu", variant="musa", backends=("mccl", GLOO)),
        # GKE, "Plan TPUs in GKE" (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus):
        # a pod has to ask for all chips of its node, and the pool's node_selector has to name
        # cloud.google.com/gke-tpu-accelerator and, for most node pools, cloud.google.com/gke-tpu-topology. The back
        # end's name is PyTorch/XLA's: not checked.
        Profile(name="tpu", resource="google.com/tpu", variant="tpu", backends=("xla",)),
    )
}


def profile_of(name: str) -> Profile:
    """:raises BadConfiguration: there is no such profile."""
    found = PROFILES.get(name)
    if found is None:
        raise BadConfiguration(f"there is no accelerator {name!r}", f"accelerators: {', '.join(PROFILES)}")
    return found


def resource_of(profile: Profile, given: str) -> str:
    """
    The resource that pods of a pool ask for.

    :param given: what the pool says, which may be of the cluster's own; empty: nothing.
    :raises BadConfiguration: it is another kind's, or there is none.
    """
    if not profile.accelerated:
        if given:
            raise BadConfiguration(
                f"accelerator {profile.name!r} has no resource, {given!r} is given",
                "leave out `resource`, or say which",
            )
        return ""
    vendors = {p.resource.partition("/")[0]: p for p in PROFILES.values() if p.resource}
    vendor = given.partition("/")[0]
    other = vendors.get(vendor)
    if other is not None and other.variant != profile.variant:
        raise BadConfiguration(
            f"resource {given!r} is not of accelerator {profile.name!r}, whose image is made for {profile.variant}",
            f"write accelerator: {other.name}, or the resource {profile.resource or profile.hint}",
        )
    if not (given or profile.resource):
        raise BadConfiguration(f"accelerator {profile.name!r} has no resource of its own", f"give it: {profile.hint}")
    return given or profile.resource


def backend_of(profile: Profile, given: str) -> str:
    """
    The collective back end.

    :param given: what the pool asks for; empty: nothing.
    :raises BadConfiguration: it does not work on these accelerators.
    """
    if given and given not in profile.backends:
        raise BadConfiguration(
            f"back end {given!r} does not work on accelerator {profile.name!r}",
            f"possible: {', '.join(profile.backends)}",
        )
    return given or profile.backends[0]
