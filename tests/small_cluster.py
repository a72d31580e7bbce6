"""
A cluster in little: the API server of :mod:`tests.api_server` over TLS, with nodes that run containers as processes.

The tests of ``tests/cluster`` run here where no cluster can be had, so that they are not run for the first time on one.
A scheduler knows selectors, taints, extended resources, anti-affinity and priority; a node knows images by name,
ConfigMaps, memory limits, grace periods and the log, and ends all that a container has started. What it does not do:
users, file systems, networks and cgroups of their own; a container sees the files of this machine.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

import psutil

from tests.api_objects import merge
from tests.api_server import ApiServer, Gone, ScriptedPod, expanded
from tests.certificate import Certificate

Object = dict[str, Any]
LOOK_S = 0.05
GOES_S = 0.5
"""Seconds for which a namespace that is deleted is still there."""
MOST_BYTES = 1 << 20
"""Of a ConfigMap's values together."""
_OTHERS = re.compile(
    r"/(?:api/v1|apis/[^/]+/v1)(?:/namespaces/[^/]+)?"
    r"/(nodes|configmaps|resourcequotas|serviceaccounts|priorityclasses|namespaces)(?:/([^/]+))?(?:/status)?"
)
_INSIDE = re.compile(r"/api/v1/namespaces/([^/]+)/")
_MANY = re.compile(r"/api/v1/namespaces/[^/]+/(pods|secrets|configmaps|resourcequotas)")
_EVICTION = re.compile(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/eviction")
_OWN = ("/airloop", "/tmp", "/dev/shm")
"""Empty folders that are not put elsewhere: the first is already, TMPDIR names the second, the machine has a third."""
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def node(name: str, *, labels: dict[str, str] | None = None, taints: Iterable[Object] = (), **resources: str) -> Object:
    """A node. :param resources: extended ones, ``example_com_gpu`` for ``example.com/gpu``."""
    known = {key.replace("_", ".", 1).replace("_", "/", 1): value for key, value in resources.items()}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": f"{name}.example", **(labels or {})}},
        "spec": {"taints": list(taints)},
        "status": {
            "allocatable": {"cpu": "4", "memory": "16Gi", **known},
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        },
    }


class SmallCluster(ApiServer):
    """
    :param folder: for the files of containers.
    :param images: those that nodes have; no registry can be reached.
    """

    def __init__(self, folder: Path, nodes: Iterable[Object], images: Iterable[str]) -> None:
        super().__init__(self._live, certificate=Certificate.make(folder / "tls", "cluster.example"))
        self._folder = folder
        self.images = set(images)
        self.objects: dict[str, dict[str, Object]] = {
            kind: {}
            for kind in ("nodes", "configmaps", "resourcequotas", "serviceaccounts", "priorityclasses", "namespaces")
        }
        self.objects["nodes"] = {found["metadata"]["name"]: found for found in nodes}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        """By the pod's uid."""
        self.on_delete = self._stop

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for process in list(self._processes.values()):
            _end(process, _inside(process))

    def admit(self, pod: Object) -> tuple[int, str, str] | None:
        with self.lock:
            used = len(self.pods)
            for name, quota in self.objects["resourcequotas"].items():
                most = quota["spec"]["hard"].get("pods")
                if most is not None and used >= int(most):
                    told = f"exceeded quota: {name}, requested: pods=1, used: pods={used}, limited: pods={most}"
                    return 403, "Forbidden", f'pods "{pod["metadata"]["name"]}" is forbidden: {told}'
        return super().admit(pod)

    def other(self, method: str, path: str, body: str) -> tuple[int, Object] | None:
        path, _, query = path.partition("?")
        inside = _INSIDE.match(path) if method == "POST" else None
        if inside and self._goes(inside[1]):
            told = f"unable to create new content in namespace {inside[1]} because it is being terminated"
            return 403, {"kind": "Status", "reason": "Forbidden", "message": told, "code": 403}
        many = _MANY.fullmatch(path)
        if method == "DELETE" and many:
            return self._remove_all(many[1], parse_qs(query)["labelSelector"][0])
        evicted = _EVICTION.fullmatch(path)
        if evicted:
            handle = self.handles[evicted[1]]
            handle.condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
            handle.delete(_grace_s(handle.object))
            return 201, {"kind": "Status", "status": "Success"}
        found = _OTHERS.fullmatch(path)
        if found is None:
            return None
        kind, name = found.groups()
        with self.lock:
            self.lock.notify_all()
            return self._stored(method, kind, name, json.loads(body or "{}"))

    def _remove_all(self, kind: str, selector: str) -> tuple[int, Object]:
        """What has a label."""
        label, _, value = selector.partition("=")
        kept: dict[str, Object] = {"pods": self.pods, "secrets": self.secrets}.get(kind) or self.objects.get(kind) or {}
        with self.lock:
            for name, found in list(kept.items()):
                if (found["metadata"].get("labels") or {}).get(label) == value:
                    if kind == "pods":
                        self.handles[name].remove()
                    else:
                        del kept[name]
        return 200, {"kind": "Status", "status": "Success"}

    def _stored(self, method: str, kind: str, name: str | None, given: Object) -> tuple[int, Object]:
        kept = self.objects[kind]
        if method == "POST":
            name = str(given["metadata"]["name"])
            if name in kept:
                return 409, {
                    "kind": "Status",
                    "reason": "AlreadyExists",
                    "message": f"{kind} {name} exists",
                    "code": 409,
                }
            if kind == "configmaps" and sum(map(len, _contents(given).values())) > MOST_BYTES:
                told = f'ConfigMap "{name}" is invalid: []: Too long: may not be more than {MOST_BYTES} bytes'
                return 422, {"kind": "Status", "reason": "Invalid", "message": told, "code": 422}
            kept[name] = {**given, "status": {"hard": given.get("spec", {}).get("hard", {})}}
            if kind == "namespaces":
                self.objects["serviceaccounts"]["default"] = {"metadata": {"name": "default"}}
            return 201, kept[name]
        if name is None:
            return 200, {"kind": "List", "items": list(kept.values())}
        if name not in kept:
            return 404, {"kind": "Status", "reason": "NotFound", "message": f"{kind} {name} not found", "code": 404}
        if method == "PATCH":
            merge(kept[name], given)
            if kind == "nodes":
                self._evict_from(kept[name])
        if method == "DELETE" and kind == "namespaces":
            kept[name]["status"] = {"phase": "Terminating"}
            threading.Thread(target=self._remove_namespace, args=(name,), daemon=True).start()
        elif method == "DELETE":
            return 200, kept.pop(name)
        return 200, kept[name]

    def _goes(self, namespace: str) -> bool:
        """Whether a namespace is being removed."""
        found = self.objects["namespaces"].get(namespace) or {}
        return bool((found.get("status") or {}).get("phase") == "Terminating")

    def _remove_namespace(self, name: str) -> None:
        """With all that is in it, which is all that there is."""
        time.sleep(GOES_S)
        with self.lock:
            for pod in list(self.pods):
                self.handles[pod].remove()
            self.secrets.clear()
            for kind in ("configmaps", "resourcequotas", "serviceaccounts"):
                self.objects[kind].clear()
            del self.objects["namespaces"][name]

    def _evict_from(self, node: Object) -> None:
        """Of a node that got a taint whose effect is NoExecute."""
        for pod in list(self.pods.values()):
            here = pod["spec"].get("nodeName") == node["metadata"]["name"]
            if here and _untolerated(pod, node, "NoExecute") and "deletionTimestamp" not in pod["metadata"]:
                handle = self.handles[pod["metadata"]["name"]]
                handle.condition("DisruptionTarget", "True", "DeletionByTaintManager", "Taint manager: deleting")
                handle.delete(_grace_s(pod))

    def _live(self, pod: ScriptedPod) -> None:
        """A pod's life: a node, its files, its image, its process."""
        self._schedule(pod)
        pod.state("Pending", {"waiting": {"reason": "ContainerCreating"}})
        root = self._folder / pod.uid
        paths = self._mount(pod, root)
        spec = pod.object["spec"]
        container = spec["containers"][0]
        if container["image"] not in self.images:
            self._without_image(pod, container)
        given = self._from_config_maps(pod, container) | pod.environment()
        environment = {"PATH": os.environ["PATH"]}
        for name, value in given.items():
            environment[name] = value if name == "AIRLOOP_CALL" else _translated(value, paths)
        environment["TMPDIR"] = str(root / "tmp")
        if "AIRLOOP_RECEIPT" in given:
            environment["AIRLOOP_RECEIPT"] = str(root / "receipt")
        # The images have no entry point.
        words = [*container.get("command", []), *container.get("args", [])]
        program, *words = (expanded(word, given) for word in words)
        with self.lock:
            pod.object  # noqa: B018  it may have been deleted meanwhile
            process = self._processes[pod.uid] = subprocess.Popen(
                [sys.executable if program == "python" else program, *words],
                cwd=root / "scratch", env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            pod.state("Running", {"running": {"startedAt": _now()}})
        talker = threading.Thread(target=self._listen, args=(pod, process), daemon=True)
        talker.start()
        ended_for = self._watch(pod, process, spec)
        talker.join(10)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        receipt = root / "receipt"
        message = receipt.read_text() if receipt.exists() and not ended_for else ""
        if ended_for == "DeadlineExceeded":
            pod.change(reason=ended_for, message="Pod was active on the node longer than the specified deadline")
        pod.end(code, ended_for if ended_for == "OOMKilled" else "", message)

    def _schedule(self, pod: ScriptedPod) -> None:
        while True:
            with self.lock:
                wanted = pod.object
                reasons: list[str] = []
                for found in self.objects["nodes"].values():
                    why = self._unfit(wanted, found)
                    if not why:
                        wanted["spec"]["nodeName"] = found["metadata"]["name"]
                        break
                    reasons.append(why)
                else:
                    self._preempt(wanted)
            if "nodeName" in wanted["spec"]:
                return pod.condition("PodScheduled", "True")
            told = ", ".join(f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons))
            message = f"0/{len(reasons)} nodes are available: {told}."
            conditions = wanted["status"].get("conditions") or []
            if not any(c["type"] == "PodScheduled" and c["message"] == message for c in conditions):
                pod.condition("PodScheduled", "False", "Unschedulable", message)
            time.sleep(LOOK_S)

    def _unfit(self, pod: Object, node: Object) -> str:
        """Why a pod cannot be on a node; empty: it can."""
        labels = node["metadata"].get("labels") or {}
        if node["spec"].get("unschedulable"):
            return "node(s) were unschedulable"
        if not (pod["spec"].get("nodeSelector") or {}).items() <= labels.items():
            return "node(s) didn't match Pod's node affinity/selector"
        taint = _untolerated(pod, node, "NoSchedule", "NoExecute")
        if taint:
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        there = (p for p in self.pods.values() if p["spec"].get("nodeName") == node["metadata"]["name"])
        here = [other for other in there if other["status"]["phase"] not in ("Succeeded", "Failed")]
        for name, count in _resources(pod).items():
            if "/" in name:
                used = sum(int(_resources(other).get(name, 0)) for other in here)
                if used + int(count) > int(node["status"]["allocatable"].get(name, 0)):
                    return f"Insufficient {name}"
        if any(self._avoids(pod, other) for other in here):
            return "node(s) didn't match pod anti-affinity rules"
        return ""

    def _preempt(self, pod: Object) -> None:
        """Take away what stands in the way of a pod of higher priority."""
        for other in list(self.pods.values()):
            going = "deletionTimestamp" in other["metadata"]
            if not going and self._avoids(pod, other) and self._priority(other) < self._priority(pod):
                handle = self.handles[other["metadata"]["name"]]
                handle.condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting to accommodate a pod")
                handle.delete(_grace_s(other))

    @staticmethod
    def _avoids(pod: Object, other: Object) -> bool:
        if pod is other or not other["spec"].get("nodeName"):
            return False
        rules = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
        labels = other["metadata"].get("labels") or {}
        wanted = rules.get("requiredDuringSchedulingIgnoredDuringExecution") or []
        return any(rule["labelSelector"]["matchLabels"].items() <= labels.items() for rule in wanted)

    def _priority(self, pod: Object) -> int:
        found = self.objects["priorityclasses"].get(pod["spec"].get("priorityClassName") or "")
        return int(found["value"]) if found else 0

    def _mount(self, pod: ScriptedPod, root: Path) -> dict[str, Path]:
        """Where a container's paths are on this machine."""
        spec = pod.object["spec"]
        for name in ("scratch", "tmp"):
            (root / name).mkdir(parents=True)
        paths = {"/airloop": root / "scratch"}
        volumes = {volume["name"]: volume for volume in spec.get("volumes") or []}
        for mount in spec["containers"][0].get("volumeMounts") or []:
            volume = volumes[mount["name"]]
            folder = root / "files" / mount["mountPath"].lstrip("/")
            if "emptyDir" in volume and mount["mountPath"] not in _OWN:
                folder.mkdir(parents=True)
                paths[mount["mountPath"]] = folder
            if "configMap" not in volume:
                continue
            found = self._config_map(pod, volume["configMap"]["name"])
            top = PurePosixPath(*PurePosixPath(mount["mountPath"]).parts[:3])
            paths[str(top)] = root / "files" / top.relative_to("/")
            # As a kubelet does it, so that all files change at once: names that lead into a hidden folder.
            (folder / "..2013").mkdir(parents=True)
            (folder / "..data").symlink_to("..2013")
            for name, content in _contents(found).items():
                (folder / "..2013" / name).write_bytes(content)
                (folder / name).symlink_to(f"..data/{name}")
        return paths

    def _config_map(self, pod: ScriptedPod, name: str) -> Object:
        """A ConfigMap, which a node waits for."""
        told = False
        while (found := self.objects["configmaps"].get(name)) is None:
            if not told:
                pod.event("FailedMount", f'MountVolume.SetUp failed: configmap "{name}" not found')
            told = True
            pod.object  # noqa: B018  it may be gone
            time.sleep(LOOK_S)
        return found

    def _from_config_maps(self, pod: ScriptedPod, container: Object) -> dict[str, str]:
        """Variables that a container has from whole ConfigMaps."""
        found: dict[str, str] = {}
        for source in container.get("envFrom") or []:
            found |= self._config_map(pod, source["configMapRef"]["name"]).get("data") or {}
        return found

    @staticmethod
    def _without_image(pod: ScriptedPod, container: Object) -> None:
        """Until the pod is deleted."""
        never = container.get("imagePullPolicy") == "Never"
        reasons = ["ErrImageNeverPull"] if never else ["ErrImagePull", "ImagePullBackOff"]
        if not never:
            pod.event("Pulling", f'Pulling image "{container["image"]}"')
        for reason in reasons:
            told = f"Container image {container['image']!r} is not present" if never else "connection refused"
            pod.state("Pending", {"waiting": {"reason": reason, "message": told}})
            time.sleep(LOOK_S)
        while True:
            pod.object  # noqa: B018
            time.sleep(LOOK_S)

    @staticmethod
    def _listen(pod: ScriptedPod, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream, contextlib.suppress(Gone):
            for line in stream:
                pod.say(line.decode(errors="replace").rstrip("\n"))

    def _watch(self, pod: ScriptedPod, process: subprocess.Popen[bytes], spec: Object) -> str:
        """Wait for a process's end; why its node ended it, if it did: ``OOMKilled`` or ``DeadlineExceeded``."""
        limits = (spec["containers"][0].get("resources") or {}).get("limits") or {}
        limit = _bytes(limits["memory"]) if "memory" in limits else math.inf
        deadline = time.monotonic() + spec.get("activeDeadlineSeconds", math.inf)
        grace_s = float(spec.get("terminationGracePeriodSeconds", 30))
        oom = late = False
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                resident = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
                oom = oom or resident > limit
            try:
                pod.object  # noqa: B018
            except Gone:
                _end(process, _inside(process))
            if not late and time.monotonic() >= deadline:
                late = True
                _kill(process, signal.SIGTERM)
            if oom or time.monotonic() >= deadline + grace_s:
                _end(process, _inside(process))
            time.sleep(LOOK_S / 2)
        return "OOMKilled" if oom else "DeadlineExceeded" if late else ""

    def _stop(self, pod: ScriptedPod) -> None:
        """What a node does with a pod that is deleted."""
        with self.lock:
            process = self._processes.get(pod.uid)
            if process is None:
                pod.die()
                return
        inside = _inside(process)
        _kill(process, signal.SIGTERM)
        given_s = pod.object["metadata"]["deletionGracePeriodSeconds"] or _grace_s(pod.object)
        until = time.monotonic() + given_s
        while process.poll() is None and time.monotonic() < until:
            time.sleep(LOOK_S)
        _end(process, inside)
        # Its end is told before it is gone.
        while pod.object["status"]["phase"] == "Running":
            time.sleep(LOOK_S)
        pod.remove()


def _contents(config_map: Object) -> dict[str, bytes]:
    """By name."""
    found = {name: text.encode() for name, text in (config_map.get("data") or {}).items()}
    return found | {name: base64.b64decode(text) for name, text in (config_map.get("binaryData") or {}).items()}


def _inside(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What a container's first process has started, in groups and sessions of its own, too."""
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(process.pid).children(recursive=True)
    return []


def _end(process: subprocess.Popen[bytes], inside: Iterable[psutil.Process]) -> None:
    """SIGKILL, for all that is in a container."""
    _kill(process, signal.SIGKILL)
    for other in inside:
        with contextlib.suppress(psutil.NoSuchProcess):
            other.kill()


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _untolerated(pod: Object, node: Object, *effects: str) -> Object | None:
    tolerations = pod["spec"].get("tolerations") or []

    def tolerated(taint: Object) -> bool:
        return any(
            t.get("key", taint["key"]) == taint["key"]
            and (t.get("operator") == "Exists" or t.get("value", "") == taint.get("value", ""))
            and t.get("effect", taint["effect"]) == taint["effect"]
            for t in tolerations
        )

    taints: Iterator[Object] = (t for t in node["spec"].get("taints") or [] if t["effect"] in effects)
    return next((taint for taint in taints if not tolerated(taint)), None)


def _resources(pod: Object) -> dict[str, str]:
    found: dict[str, str] = (pod["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    return found


def _grace_s(pod: Object) -> float:
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def _translated(value: str, paths: dict[str, Path]) -> str:
    """A container's paths in a setting, as they are on this machine."""
    for path, place in paths.items():
        # Not the user of an address: ://airloop:
        value = re.sub(rf"(?<![\w.-])(?<!:/){re.escape(path)}(?![\w.-])", str(place), value)
    return value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
