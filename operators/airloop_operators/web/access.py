"""
Who asks, and what he may read: Airflow's own login and its auth manager decide.

A page is opened by navigation, so Airflow's session cookie counts as well as a bearer token. Every address here only
reads; nothing can be done by a forged request.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPAuthorizationCredentials


class NotSignedIn(Exception):
    """The request carries no valid credentials of Airflow."""


class NotPermitted(Exception):
    """The user may not read this; the message says what."""


async def signed_in(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer_scheme)]
) -> Any:
    """The user. :raises NotSignedIn: no token, or one that is expired, revoked or forged."""
    try:
        return await get_user(request, None, bearer)
    except HTTPException as cause:
        raise NotSignedIn(str(cause.detail)) from cause


User = Annotated[Any, Depends(signed_in)]


async def to_login(request: Request, _: Exception) -> Response:
    """Send a person to Airflow's login and back; tell a program that it is not authenticated."""
    mounted = request.scope.get("root_path", "")
    own = request.url.path.removeprefix(mounted)
    if own.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": "Not authenticated"}, 401, headers={"WWW-Authenticate": "Bearer"})
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    airflow = mounted.rpartition("/")[0]
    return RedirectResponse(f"{airflow}/api/v2/auth/login?next={quote(target, safe='')}", 302)


def readable(user: Any, dag_ids: Collection[str]) -> set[str]:
    """Those of the DAGs whose runs the user may read."""
    from airflow.models.dag import DagModel

    manager = get_auth_manager()
    teams = DagModel.get_dag_id_to_team_name_mapping(list(dag_ids)) if dag_ids else {}
    return {
        dag_id
        for dag_id in dag_ids
        if manager.is_authorized_dag(
            method="GET",
            access_entity=DagAccessEntity.RUN,
            details=DagDetails(id=dag_id, team_name=teams.get(dag_id)),
            user=user,
        )
    }


def reads_all(user: Any) -> bool:
    """Whether the user may read runs of DAGs in general: needed for what belongs to no DAG."""
    return bool(get_auth_manager().is_authorized_dag(method="GET", access_entity=DagAccessEntity.RUN, user=user))
