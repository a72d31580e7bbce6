"""What Airflow is told about this provider. Standard library only: Airflow reads it at every start."""

from __future__ import annotations

from typing import Any

# option: (type, description, default, example)
OPTIONS: dict[str, tuple[str, str, str | None, str | None]] = {
    "runner": ("string", "Where steps run unless a task says otherwise: `local` or `pod`.", "local", None),
    "home": ("string", "Folder of all state; a local file system. Default: AIRLOOP_HOME.", None, "/srv/airloop"),
    "warehouse": (
        "string",
        "Folder of the Iceberg tables' files, if not below home; or s3://bucket/prefix.",
        None,
        "s3://lake/airloop",
    ),
    "catalog": (
        "string",
        "SQLAlchemy address of the Iceberg catalog, or of a REST catalog.",
        None,
        "postgresql+psycopg://airloop@postgres:5432/airloop",
    ),
    "locks": (
        "string",
        "Where locks between processes are, if not in the catalog's database: the address of a PostgreSQL, or `local`.",
        None,
        "postgresql+psycopg://airloop@postgres:5432/airloop",
    ),
    "artifacts": (
        "string",
        "Folder of manifests, attempts' records and reports, if not below home; or a place in a bucket.",
        None,
        "s3://bucket/prefix",
    ),
    "mlflow": ("string", "MLflow tracking and registry address.", None, "http://127.0.0.1:5000"),
    "mlflow_ui": ("string", "Address of the MLflow UI for links in the Airflow UI.", None, "http://127.0.0.1:5000"),
    "feature_repo": ("string", "Folder of the Feast definitions.", None, "/srv/loops/feature_repo"),
    "online_store": (
        "string",
        "SQLite file of the online features, if not below home; or the address of a Redis or Valkey.",
        None,
        "redis://127.0.0.1:6379/0",
    ),
    "feast_registry": (
        "string",
        "File of the Feast registry, if not below home; or the address of a PostgreSQL.",
        None,
        "postgresql+psycopg://airloop@postgres:5432/feast",
    ),
    "secrets": (
        "string",
        "Environment variables of every step from Airflow connections: VARIABLE=connection_id.field, comma-separated.",
        None,
        "AWS_ACCESS_KEY_ID=airloop_s3.login, AWS_SECRET_ACCESS_KEY=airloop_s3.password, AIRLOOP_CATALOG=airloop_db.uri",
    ),
    "warm": ("boolean", "Start local steps from a warm process that has imported the large libraries.", "True", None),
    "preload": ("string", "Comma-separated modules that the warm process imports.", None, "pandas,mlflow"),
    "sizes": ("string", "YAML or JSON file: what pods of each size get, and where.", None, "/etc/airloop/sizes.yaml"),
    "memory_mb": ("integer", "Default memory limit of a local step, MiB; 0: none.", "0", "4096"),
}

SENSITIVE = frozenset({"catalog", "locks", "mlflow", "online_store", "feast_registry"})

LINKS = ("ManifestLink", "ReportLink", "MlflowRunLink", "PodLink")


def get_provider_info() -> dict[str, Any]:
    """The entry point ``apache_airflow_provider``."""
    return {
        "package-name": "airloop",
        "name": "Airloop",
        "description": "Retraining loops: from raw rows and labels to a gated, registered and monitored model.",
        "extra-links": [f"airloop_operators.links.{name}" for name in LINKS],
        "config": {
            "airloop": {
                "description": "Where steps of Airloop run and keep their state.",
                "options": {
                    name: {
                        "description": text,
                        "type": kind,
                        "default": default,
                        "example": example,
                        "version_added": "0.1.0",
                        "sensitive": name in SENSITIVE,
                    }
                    for name, (kind, text, default, example) in OPTIONS.items()
                },
            }
        },
    }
