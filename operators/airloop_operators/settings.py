"""The ``[airloop]`` section of ``airflow.cfg``, as operators use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from airloop.config import S3Address, place_of
from airloop_operators.secrets import read_secrets

PASSED_ON = (
    "home",
    "warehouse",
    "catalog",
    "artifacts",
    "mlflow",
    "feature_repo",
    "online_store",
    "feast_registry",
    "locks",
)
"""Options that the payload reads as ``AIRLOOP_*`` environment variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Read once per task, when it starts to run."""

    runner: str
    """Name of the default runner."""
    environment: dict[str, str] = field(repr=False)
    """``AIRLOOP_*`` variables for the payload; may hold passwords."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Variables of every payload, by ``connection_id.field``; a task's own count for more."""
    artifacts: Path | S3Address
    """Where attempts' records and manifests are read and, for attempts that could not, written."""
    mlflow_ui: str
    """Address of the MLflow UI, without a slash at its end; empty if there is none."""
    memory_mb: int
    """Default memory limit of a step, MiB; 0: none."""
    warm: bool
    """Whether local steps start from the warm process."""
    preload: tuple[str, ...] | None
    """Modules that the warm process imports; None: its own list."""
    sizes: Path | None = None
    """File of sizes and pools of pods."""
    deferrable: bool = False
    """Whether tasks that do not say so are deferred while their pods run, as Airflow's ``[operators]`` has it."""

    @classmethod
    def read(cls) -> Self:
        """Read ``airflow.cfg``; a variable of the environment stands in for an option that is not set."""
        from airflow.sdk.configuration import conf

        environment = {
            f"AIRLOOP_{name.upper()}": value
            for name in PASSED_ON
            if (value := conf.get("airloop", name, fallback=None) or os.environ.get(f"AIRLOOP_{name.upper()}"))
        }
        # Payloads must not each guess a home from their own working directory.
        home = Path(environment.setdefault("AIRLOOP_HOME", str(Path.home() / ".airloop"))).expanduser().resolve()
        preload = conf.get("airloop", "preload", fallback=None)
        sizes = conf.get("airloop", "sizes", fallback=None)
        return cls(
            runner=conf.get("airloop", "runner", fallback="local"),
            environment=environment,
            secrets=read_secrets(conf.get("airloop", "secrets", fallback=None) or ""),
            artifacts=place_of(environment.get("AIRLOOP_ARTIFACTS", "")) or home / "artifacts",
            mlflow_ui=(conf.get("airloop", "mlflow_ui", fallback=None) or "").rstrip("/"),
            memory_mb=conf.getint("airloop", "memory_mb", fallback=0),
            warm=conf.getboolean("airloop", "warm", fallback=True),
            preload=tuple(m.strip() for m in preload.split(",") if m.strip()) if preload else None,
            sizes=Path(sizes).expanduser() if sizes else None,
            deferrable=conf.getboolean("operators", "default_deferrable", fallback=False),
        )
