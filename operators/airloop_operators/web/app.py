"""
The addresses of the plugin, mounted at ``/airloop``.

``/`` lists the loops, ``/loops/DAG`` shows one, ``/loops/DAG/run?run_id=`` one of its runs, ``/manifest?path=`` a step,
``/pods?dag_id=&run_id=&task_id=`` a task's pods, ``/view/PATH`` a report with the way back, ``/artifacts/PATH`` the
file itself, ``/mlflow/EXPERIMENT/RUN`` leads on to MLflow; ``/api/loops`` and ``/api/loops/DAG`` are the pages' content
as JSON. All of them only read, run in the server's thread pool, and ask for Airflow's login.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from airloop.config import Config
from airloop.contract import RunInfo
from airloop.errors import AirloopError, BadArgument, NotFound
from airloop_operators.settings import Settings
from airloop_operators.web import artifacts, manifests, pages, pods, scheduler
from airloop_operators.web.access import NotPermitted, NotSignedIn, User, readable, to_login
from airloop_operators.web.data import RUNS_SHOWN, Loop, Reader, too_long

log = logging.getLogger(__name__)

CATALOG = "AIRLOOP_CATALOG"
Last = Annotated[int, Query(ge=1, le=500)]


def create_app(config: Config | None = None) -> FastAPI:
    """
    Build the application.

    :param config: where the state lives; default the ``[airloop]`` section of ``airflow.cfg``.
    """
    ledger_unknown = ""
    if config is None:
        settings = Settings.read()
        config = Config.from_environment(settings.environment)
        if CATALOG in settings.secrets and CATALOG not in settings.environment:
            ledger_unknown = f"tasks get {CATALOG} from a connection; give it to the API server by its environment too"
    reader = Reader(config, ledger_unknown=ledger_unknown)
    app = FastAPI(title="Airloop", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.reader = reader
    app.add_exception_handler(NotSignedIn, to_login)
    app.add_exception_handler(OSError, _unreadable)
    app.add_exception_handler(Exception, _broken)
    for error, status in ((NotPermitted, 403), (NotFound, 404), (BadArgument, 400), (AirloopError, 500)):
        app.add_exception_handler(error, _refusal(status))
    app.middleware("http")(_guarded)

    @app.get("/")
    def loops_page(request: Request, user: User) -> Response:
        found = [_told(reader.loop(dag_id)) for dag_id in _permitted(reader, user)]
        found.sort(key=lambda loop: loop.last.started_at if loop.last else "", reverse=True)
        problems = sorted({p for loop in found for p in loop.problems})
        return pages.render(request, "loops", loops=found, problems=problems, home=reader.config.home)

    @app.get("/loops/{dag_id}")
    def loop_page(request: Request, user: User, dag_id: str, last: Last = RUNS_SHOWN) -> Response:
        loop = _loop(reader, user, dag_id, last)
        return pages.render(request, "loop", it=loop, problems=loop.problems, chart=pages.chart(loop))

    @app.get("/loops/{dag_id}/run")
    def run_page(request: Request, user: User, dag_id: str, run_id: str) -> Response:
        _check(user, dag_id, run_id)
        run = reader.run_of(dag_id, run_id)
        if run is None:
            raise NotFound(f"No step of run {run_id} of {dag_id} has ended yet.")
        state = scheduler.run_states(dag_id, [run_id]).get(run_id, "")
        return pages.render(request, "run", run=run, state=state)

    @app.get("/manifest")
    def manifest_page(request: Request, user: User, path: str = "", attempt: str = "") -> Response:
        if not path and not attempt:
            raise BadArgument("a manifest's path is missing", "open the page from a task or a run")
        found = manifests.find(reader, path, attempt)
        for name in (found[0], found[2]):
            if name:
                artifacts.permit(reader, user, name)
        page = manifests.describe(*found, reader)
        return pages.render(request, "manifest", page=page)

    @app.get("/pods")
    def pods_page(
        request: Request, user: User, dag_id: str, run_id: str, task_id: str, map_index: int = -1
    ) -> Response:
        _check(user, dag_id, run_id)
        if too_long(task_id) or not (dag_id and run_id and task_id):
            raise NotFound("no task has such a name")
        run = RunInfo(dag_id, run_id, task_id, map_index)
        attempts, more = pods.attempts_of(reader, run)
        task = f"{task_id}[{map_index}]" if map_index >= 0 else task_id
        return pages.render(request, "pods", run=run, task=task, attempts=attempts, more=more)

    @app.get("/mlflow/{experiment_id}/{run_id}")
    def mlflow_run(user: User, experiment_id: str, run_id: str) -> Response:
        ui = Settings.read().mlflow_ui
        if not ui:
            raise NotFound("No MLflow UI is known", "start one and name its address as [airloop] mlflow_ui")
        return RedirectResponse(
            f"{ui}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}", 302
        )

    @app.get("/view/{path:path}")
    def view_page(request: Request, user: User, path: str) -> Response:
        owner = artifacts.permit(reader, user, path)
        file = artifacts.locate(reader, path)
        if file.suffix != ".html":
            return RedirectResponse(f"{request.scope['root_path']}/artifacts/{quote(path)}", 302)
        if PurePosixPath(path).name != file.name:
            return RedirectResponse(f"{request.scope['root_path']}/view/{quote(path.rstrip('/'))}/{file.name}", 302)
        return pages.render(request, "view", path=path, owner=owner, docs=file.parent.name == "docs")

    @app.get("/artifacts/{path:path}")
    def artifact(request: Request, user: User, path: str) -> Response:
        artifacts.permit(reader, user, path)
        file = artifacts.locate(reader, path)
        if PurePosixPath(path).name != file.name:
            # A folder's page links to its neighbours.
            return RedirectResponse(
                f"{request.scope['root_path']}/artifacts/{quote(path.rstrip('/'))}/{file.name}", 302
            )
        return artifacts.answer(reader, file)

    @app.get("/api/loops")
    def loops_json(user: User) -> Response:
        return JSONResponse({"loops": [_summary(_told(reader.loop(d))) for d in _permitted(reader, user)]})

    @app.get("/api/loops/{dag_id}")
    def loop_json(user: User, dag_id: str, last: Last = RUNS_SHOWN) -> Response:
        return JSONResponse(asdict(_loop(reader, user, dag_id, last)))

    @app.get("/static/{name}")
    def static(user: User, name: str) -> Response:
        if name not in pages.STATIC:
            raise NotFound(f"there is no {name}")
        # The address carries the content's digest, so what a browser keeps is never out of date.
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(pages.asset(name), media_type=pages.STATIC[name], headers=headers)

    return app


def _permitted(reader: Reader, user: Any) -> list[str]:
    return sorted(readable(user, reader.dag_ids()))


def _check(user: Any, dag_id: str, run_id: str = "") -> None:
    if too_long(dag_id) or too_long(run_id):
        raise NotFound("no DAG or run has so long a name")
    if not readable(user, [dag_id]):
        raise NotPermitted(f"You may not read the runs of {dag_id}.")


def _loop(reader: Reader, user: Any, dag_id: str, last: int) -> Loop:
    _check(user, dag_id)
    return _told(reader.loop(dag_id, last=last))


def _told(loop: Loop) -> Loop:
    """The same with what Airflow knows: names, schedule, and the states of its runs."""
    facts = scheduler.dag_facts([loop.dag_id]).get(loop.dag_id)
    if facts is not None:
        loop.name, loop.schedule, loop.paused = facts.name, facts.schedule, facts.paused
    states = scheduler.run_states(loop.dag_id, [run.run_id for run in loop.runs])
    # What the reader keeps is shared by all requests.
    loop.runs = [replace(run, state=states.get(run.run_id, "")) for run in loop.runs]
    return loop


def _summary(loop: Loop) -> dict[str, Any]:
    """What the list tells of a loop."""
    decided, drifted = loop.last_decision, loop.last_drift
    return {
        "dag_id": loop.dag_id,
        "name": loop.name,
        "schedule": loop.schedule,
        "paused": loop.paused,
        "champions": [asdict(c) for c in loop.champions],
        "decision": {"run_id": decided.run_id, "interval": decided.interval, **decided.outcome} if decided else None,
        "data_until": loop.data_until or None,
        "last_run": _run_summary(loop),
        "drift": {"run_id": drifted.run_id, **asdict(drifted.drift)} if drifted and drifted.drift else None,
        "problems": loop.problems,
    }


def _run_summary(loop: Loop) -> dict[str, Any] | None:
    last = loop.last
    if last is None:
        return None
    return {
        "run_id": last.run_id,
        "interval": last.interval,
        "state": loop.last_state or None,
        "started_at": last.started_at,
        "finished_at": last.finished_at,
        "failed": [t.name for t in last.failed],
    }


def _refusal(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        return pages.refusal(request, status, str(error))

    return refuse


async def _unreadable(request: Request, error: Exception) -> Response:
    log.error("the state cannot be read", exc_info=error)
    advice = "The API server's user needs read access to the artifact store that [airloop] home or artifacts names."
    return pages.refusal(request, 500, f"The loops' state cannot be read: {error}. {advice}")


async def _broken(request: Request, error: Exception) -> Response:
    # Starlette raises it again after the answer, so the server's log has the traceback.
    return pages.refusal(request, 500, f"This page broke ({type(error).__name__}); the API server's log says more.")


async def _guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    # What serves a file has set its own, stricter ones.
    for name, value in pages.HEADERS.items():
        response.headers.setdefault(name, value)
    return response
