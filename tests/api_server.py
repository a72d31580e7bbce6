"""
An API server for tests of pods: it speaks HTTP to the real client, and its pods do what a script says.

It stands for a cluster where none can be had, and for what no cluster does on demand: a node that is lost, an API
server that is away, a log's stream that is cut. A script is a function that gets a :class:`ScriptedPod` and drives it;
it runs in a thread of its own from the moment at which the pod is made.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import api_objects
from tests.certificate import Certificate

Script = Callable[["ScriptedPod"], None]
UNKNOWN = "ContainerStatusUnknown"
_PATH = re.compile(r"/api/v1/namespaces/([^/]+)/(pods|events|secrets)(?:/([^/]+))?(?:/(log))?")


class ApiServer:
    """
    One namespace's pods, events and secrets. Scripts are used one after another, the last one ever again.

    :param certificate: to speak TLS with, as clusters do; it is for another name than this machine's address.
    """

    def __init__(self, *scripts: Script, certificate: Certificate | None = None) -> None:
        self.certificate = certificate
        self.scripts = list(scripts)
        self.lock = threading.Condition()
        self.pods: dict[str, dict[str, Any]] = {}
        self.handles: dict[str, ScriptedPod] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.history: list[tuple[int, str, dict[str, Any], dict[str, Any] | None]] = []
        """Version, what happened, the pod as it is since, and as it was."""
        self._before: dict[str, dict[str, Any]] = {}
        """Pods by their uid, as history has them last."""
        self.created: list[dict[str, Any]] = []
        """Pods as they were asked for."""
        self.secrets_created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.watches: list[str] = []
        """Programs that watch pods, as they name themselves."""
        self.forgotten = 0
        """Version up to which it has forgotten what happened, as a cluster has after some minutes."""
        self.too_old: list[int] = []
        """Versions from which somebody wanted to watch that were forgotten."""
        self.bodies: list[str] = []
        self.refusals: list[tuple[int, str, str]] = []
        """Answers to the next attempts to make a pod: status, reason, message."""
        self.secret_refusals: list[tuple[int, str, str]] = []
        """The same of Secrets."""
        self.log_cuts: list[int] = []
        """Bytes after which the next streams of a log are cut."""
        self.away_until = 0.0
        """Monotonic time until which connections are closed without an answer."""
        self.on_delete: Script = lambda pod: pod.die()
        self.closing = False
        self._version = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of_pods": self}))
        self._http.daemon_threads = True
        if certificate is not None:
            self._http.socket = certificate.over(self._http.socket)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.closing = True
            self.lock.notify_all()
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self, path: Path) -> Path:
        """A kube config that leads here."""
        cluster = {"server": self.url}
        if self.certificate is not None:
            content = base64.b64encode(self.certificate.cert.read_bytes()).decode()
            cluster |= {"certificate-authority-data": content, "tls-server-name": self.certificate.host}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": "t"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(json.dumps(document))
        return path

    def add(self, pod: dict[str, Any], script: Script | None = None) -> ScriptedPod:
        """Take a pod in, as if it had been asked for."""
        with self.lock:
            pod = copy.deepcopy(pod)
            pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
            pod.setdefault("status", {"phase": "Pending", "conditions": []})
            handle = ScriptedPod(self, pod["metadata"]["name"], pod["metadata"]["uid"])
            self.pods[handle.name] = pod
            self.handles[handle.name] = handle
            self._changed("ADDED", pod)
        if script is not None:
            threading.Thread(target=self._play, args=(script, handle), daemon=True).start()
        return handle

    def admit(self, pod: dict[str, Any]) -> tuple[int, str, str] | None:
        """What speaks against a pod that is asked for: status, reason, message."""
        return self.refusals.pop(0) if self.refusals else None

    def other(self, method: str, path: str, body: str) -> tuple[int, dict[str, Any]] | None:
        """Answer to a request for something else than pods, events and secrets; None: it is for them."""
        return None

    def next_script(self) -> Script | None:
        return self.scripts.pop(0) if len(self.scripts) > 1 else (self.scripts[0] if self.scripts else None)

    def _play(self, script: Script, handle: ScriptedPod) -> None:
        with contextlib.suppress(Gone):
            script(handle)

    def forget(self) -> None:
        """Much happens to others, so that all of this is long ago."""
        with self.lock:
            self._version += 1_000
            self.forgotten = self._version

    def _changed(self, kind: str, pod: dict[str, Any]) -> None:
        self._version += 1
        about = pod["metadata"]
        about["resourceVersion"] = str(self._version)
        now, before = copy.deepcopy(pod), self._before.get(about["uid"])
        self._before[about["uid"]] = now
        self.history.append((self._version, kind, now, before))
        self.lock.notify_all()


def answers(
    method: str, part: str, status: int, reason: str, message: str, *, times: int = 1000
) -> Callable[[str, str, str], tuple[int, dict[str, Any]] | None]:
    """What an API server says to requests with a part in their address, so many times."""
    left = iter(range(times))

    def answer(asked: str, path: str, body: str) -> tuple[int, dict[str, Any]] | None:
        if asked != method or part not in path or next(left, None) is None:
            return None
        return status, {"kind": "Status", "code": status, "reason": reason, "message": message}

    return answer


def expanded(value: str, known: Mapping[str, str]) -> str:
    """A plain variable, or a word of a command, as a node gives it to a container."""
    return re.sub(
        r"\$(?:(\$)|\(([^)]*)\))",
        lambda m: "$" if m[1] else known.get(m[2], m[0]),
        value,
    )


Start = Callable[..., ApiServer]
"""Begins one with scripts, to which Airflow's connection leads."""


class Gone(Exception):
    """A script's pod is not there any more."""


class ScriptedPod:
    """What scheduler, node and payload do with a pod."""

    def __init__(self, server: ApiServer, name: str, uid: str) -> None:
        self.server = server
        self.name = name
        self.uid = uid
        self.log: list[tuple[int, str]] = []
        self.log_ended = False

    @property
    def object(self) -> dict[str, Any]:
        found = self.server.pods.get(self.name)
        if found is None or found["metadata"]["uid"] != self.uid:
            raise Gone
        return found

    def environment(self) -> dict[str, str]:
        """The container's environment, secrets filled in."""
        found = {}
        for entry in self.object["spec"]["containers"][0].get("env") or []:
            if "value" in entry:
                found[entry["name"]] = expanded(entry["value"], found)
            else:
                ref = entry["valueFrom"]["secretKeyRef"]
                while (secret := self.server.secrets.get(ref["name"])) is None:
                    self.object  # noqa: B018  it may be gone, and then its Secret does not come
                    time.sleep(0.01)
                found[entry["name"]] = base64.b64decode(secret["data"][ref["key"]]).decode()
        return found

    def change(self, **status: Any) -> None:
        with self.server.lock:
            pod = self.object
            pod["status"] |= status
            self.log_ended = self.log_ended or status.get("phase") in ("Succeeded", "Failed")
            self.server._changed("MODIFIED", pod)

    def condition(self, kind: str, status: str, reason: str = "", message: str = "") -> None:
        found = [c for c in self.object["status"].get("conditions", []) if c["type"] != kind]
        new = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}
        self.change(conditions=[*found, new])

    def state(self, phase: str, state: dict[str, Any], last: dict[str, Any] | None = None, **status: Any) -> None:
        spec = self.object["spec"]["containers"][0]
        container = {
            "name": spec["name"], "image": spec["image"], "imageID": "", "restartCount": 0, "ready": "running" in state,
            "state": state, "lastState": last or {},
        }  # fmt: skip
        if "running" in state or state.get("terminated", {}).get("reason", UNKNOWN) != UNKNOWN:
            # Its node has made it, and has it.
            container |= {"containerID": f"containerd://{self.uid}", "imageID": "airloop@sha256:0123"}
        self.change(phase=phase, containerStatuses=[container], **status)

    def event(self, reason: str, message: str) -> None:
        self.server.events.append({"reason": reason, "message": message, "lastTimestamp": _now(), "_uid": self.uid})

    def schedule(self) -> None:
        """Give it a node, which has not started its container yet."""
        with self.server.lock:
            self.object["spec"]["nodeName"] = "node-1"
        self.condition("PodScheduled", "True")
        self.state("Pending", {"waiting": {"reason": "ContainerCreating"}})

    def run(self) -> None:
        """Schedule it, and start its container."""
        self.schedule()
        self.state("Running", {"running": {"startedAt": _now()}})

    def say(self, *texts: str, ago_s: float = 0.0) -> None:
        """Lines of the container's log. :param ago_s: how far their time goes back behind that of others."""
        with self.server.lock:
            for text in texts:
                self.log.append((time.time_ns() - round(ago_s * 1e9), text))
            self.server.lock.notify_all()

    def end(self, code: int, reason: str = "", message: str = "", **status: Any) -> None:
        """End its container, and with it the pod."""
        with self.server.lock:
            self.log_ended = True
            reason = reason or ("Completed" if code == 0 else "Error")
            about = {"exitCode": code, "reason": reason, "message": message, "startedAt": _now(), "finishedAt": _now()}
            self.state("Succeeded" if code == 0 else "Failed", {"terminated": about}, **status)

    def lose_sight(self, **status: Any) -> None:
        """As a kubelet tells of a pod that ends and whose container it does not find: it was not made, or is lost."""
        about = {"exitCode": 137, "reason": UNKNOWN, "startedAt": None, "finishedAt": None}
        text = "The container could not be located when the pod was"
        ran = {"terminated": {**about, "message": f"{text} deleted.  The container used to be Running"}}
        with self.server.lock:
            last = ran if "running" in self._container_state() else {}
            self.state("Failed", {"terminated": {**about, "message": f"{text} terminated"}}, last, **status)

    def _container_state(self) -> dict[str, Any]:
        """State of its container."""
        statuses = self.object["status"].get("containerStatuses")
        found: dict[str, Any] = statuses[0]["state"] if statuses else {}
        return found

    def succeed(self) -> None:
        """What a payload does that is done: its manifest, its receipt, exit code 0."""
        self.end(0, message=self.publish())

    def publish(self) -> str:
        """Publish a manifest; returns the receipt."""
        environment = self.environment()
        attempt = json.loads(environment["AIRLOOP_CALL"])["attempt"]
        call = json.loads(environment["AIRLOOP_CALL"])
        manifest = {
            "format": 1, "attempt": attempt, "key": "ab" * 32, "step": call["step"], "run": call["run"],
            "interval": None, "outputs": {}, "counts": {"rows": 1},
        }  # fmt: skip
        content = json.dumps(manifest).encode()
        path = Path(environment["AIRLOOP_ARTIFACTS"]) / "steps" / attempt / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return json.dumps(
            {
                "version": 1, "attempt": attempt, "status": "done", "key": "ab" * 32, "manifest": path.as_uri(),
                "digest": hashlib.sha256(content).hexdigest(),
            }
        )  # fmt: skip

    def delete(self, grace_s: float | None = None) -> None:
        """As somebody does who asks the API server for it."""
        with self.server.lock:
            pod = self.object
            again = "deletionTimestamp" in pod["metadata"]
            pod["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": grace_s or 0}
            self.server._changed("MODIFIED", pod)
        if grace_s == 0:
            self.remove()
        elif not again:
            threading.Thread(target=self.server._play, args=(self.server.on_delete, self), daemon=True).start()

    def die(self) -> None:
        """End by SIGTERM, if it runs, and go; its node tells of an end in any case."""
        with self.server.lock:
            if "running" in self._container_state():
                self.end(143)
            elif "terminated" not in self._container_state() and "nodeName" in self.object["spec"]:
                self.lose_sight()
            self.remove()

    def remove(self) -> None:
        """It is gone."""
        with self.server.lock:
            pod = self.object
            del self.server.pods[self.name]
            self.log_ended = True
            # As the garbage collector does it.
            self.server.secrets = {
                name: secret
                for name, secret in self.server.secrets.items()
                if not any(o["uid"] == self.uid for o in secret["metadata"].get("ownerReferences", []))
            }
            self.server._changed("DELETED", pod)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_pods: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server = self.server_of_pods
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if time.monotonic() < server.away_until:
            self.close_connection = True
            return
        url = urlsplit(self.path)
        if (answer := server.other(self.command, self.path, body)) is not None:
            self._json(*answer)
            return
        if url.path in api_objects.DISCOVERY:
            self._json(200, api_objects.DISCOVERY[url.path])
            return
        found = _PATH.fullmatch(url.path)
        assert found, self.path
        _, kind, name, log = found.groups()
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        server.requests.append(f"{self.command} {kind}{'/' + name if name else ''}{'/log' if log else ''}")
        server.bodies.append(body)
        if log:
            self._log(name, query)
        elif self.command == "GET" and kind == "pods" and query.get("watch"):
            self._watch(query)
        elif self.command == "GET":
            self._get(kind, name, query)
        elif self.command == "POST":
            self._create(kind, json.loads(body))
        elif self.command == "PATCH":
            self._patch(kind, name, json.loads(body))
        else:
            self._delete(kind, name, json.loads(body or "{}"))

    def _get(self, kind: str, name: str | None, query: dict[str, str]) -> None:
        server = self.server_of_pods
        with server.lock:
            if name:
                pod = server.pods.get(name)
                return self._json(200, pod) if pod else self._status(404, "NotFound", f'pods "{name}" not found')
            items: list[Any]
            if kind == "events":
                uid = dict(part.split("=") for part in query["fieldSelector"].split(","))["involvedObject.uid"]
                items = [event for event in server.events if event["_uid"] == uid]
            else:
                items = list(filter(api_objects.selects(query), server.pods.values()))
            named = {"events": "Event", "pods": "Pod"}[kind]
            return self._json(200, api_objects.listed(items, named, server._version, self.headers.get("Accept") or ""))

    def _create(self, kind: str, wanted: dict[str, Any]) -> None:
        server, name = self.server_of_pods, wanted["metadata"]["name"]
        if kind == "secrets":
            if server.secret_refusals:
                return self._status(*server.secret_refusals.pop(0))
            plain = wanted.pop("stringData", {})
            wanted.setdefault("data", {}).update({k: base64.b64encode(v.encode()).decode() for k, v in plain.items()})
            with server.lock:
                if name in server.secrets:
                    return self._status(409, "AlreadyExists", f'secrets "{name}" already exists')
                server.secrets[name] = wanted
                server.secrets_created.append(wanted)
            return self._json(201, wanted)
        if (refused := server.admit(wanted)) is not None:
            return self._status(*refused)
        with server.lock:
            if name in server.pods:
                return self._status(409, "AlreadyExists", f'pods "{name}" already exists')
            server.created.append(wanted)
            handle = server.add(wanted, server.next_script())
            return self._json(201, handle.object)

    def _patch(self, kind: str, name: str, given: dict[str, Any]) -> None:
        server = self.server_of_pods
        assert kind == "pods", self.path
        with server.lock:
            pod = server.pods.get(name)
            if pod is None:
                return self._status(404, "NotFound", f'pods "{name}" not found')
            api_objects.merge(pod, given)
            server._changed("MODIFIED", pod)
            return self._json(200, pod)

    def _delete(self, kind: str, name: str, options: dict[str, Any]) -> None:
        server = self.server_of_pods
        with server.lock:
            if kind == "secrets":
                server.secrets.pop(name, None)
                return self._json(200, {"kind": "Status", "status": "Success"})
            pod = server.pods.get(name)
            if pod is None:
                return self._status(404, "NotFound", f'pods "{name}" not found')
            uid = (options.get("preconditions") or {}).get("uid")
            if uid not in (None, pod["metadata"]["uid"]):
                return self._status(409, "Conflict", "the UID in the precondition does not match")
            answer = copy.deepcopy(pod)
        # Before the answer: who has it finds a pod that has no grace gone.
        with contextlib.suppress(Gone):
            server.handles[name].delete(options.get("gracePeriodSeconds"))
        return self._json(200, answer)

    def _watch(self, query: dict[str, str]) -> None:
        server = self.server_of_pods
        server.watches.append(str(self.headers.get("User-Agent")))
        wanted = api_objects.selects(query)
        seen = int(query.get("resourceVersion") or 0)
        until = time.monotonic() + int(query["timeoutSeconds"])
        self._begin()
        if 0 < seen < server.forgotten:
            server.too_old.append(seen)
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self._tell("ERROR", gone)
            self._chunk(b"")
            return
        if not seen:
            # From any version on: what there is comes first.
            with server.lock:
                seen, there = server._version, copy.deepcopy(list(filter(wanted, server.pods.values())))
            for pod in there:
                self._tell("ADDED", pod)
        while (left_s := until - time.monotonic()) > 0 and not server.closing:
            with server.lock:
                new = [entry for entry in server.history if entry[0] > seen]
                if not new:
                    server.lock.wait(min(left_s, 0.2))
            if time.monotonic() < server.away_until:
                self.close_connection = True
                return
            for version, kind, pod, before in new:
                seen = version
                if (change := api_objects.told(kind, pod, before, wanted)) is not None:
                    self._tell(change, pod)
        self._chunk(b"")

    def _log(self, name: str, query: dict[str, str]) -> None:
        server = self.server_of_pods
        handle = server.handles.get(name)
        if handle is None or name not in server.pods:
            return self._status(404, "NotFound", f'pods "{name}" not found')
        if "containerStatuses" not in server.pods[name]["status"]:
            return self._status(400, "BadRequest", "container is waiting to start")
        since = time.time_ns() - int(query["sinceSeconds"]) * 1_000_000_000 if "sinceSeconds" in query else 0
        cut = server.log_cuts.pop(0) if server.log_cuts else None
        follow, stamped = (query.get(name) in ("true", "True") for name in ("follow", "timestamps"))
        self._begin()
        sent = 0
        at = max(0, len(handle.log) - int(query["tailLines"])) if "tailLines" in query else 0
        while True:
            with server.lock:
                lines = handle.log[at:]
                if not lines and follow and not handle.log_ended and not server.closing:
                    server.lock.wait(0.2)
                    lines = handle.log[at:]
                finished = handle.log_ended or not follow or server.closing
            at += len(lines)
            told = (f"{_stamp(ns)} {line}" if stamped else line for ns, line in lines if ns >= since)
            text = "".join(f"{line}\n" for line in told).encode()
            if cut is not None and sent + len(text) >= cut:
                self._chunk(text[: cut - sent])
                self.close_connection = True
                self.connection.shutdown(2)
                return None
            sent += len(text)
            if text:
                self._chunk(text)
            elif finished:
                return self._chunk(b"")

    def _tell(self, kind: str, found: dict[str, Any]) -> None:
        """One line of a watch."""
        self._chunk(json.dumps({"type": kind, "object": found}).encode() + b"\n")

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _status(self, code: int, reason: str, message: str) -> None:
        document = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
        self._json(code, document)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stamp(ns: int) -> str:
    whole = datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns % 1_000_000_000:09d}Z"
