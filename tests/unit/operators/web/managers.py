"""Airflow's simple auth manager with one rule more."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class Discreet(SimpleAuthManager):
    """``bob`` may read every DAG but ``secret``, and so not all of them."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        if user.username == "bob" and (details is None or details.id == "secret"):
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
