"""Celery's configuration, for `[celery] celery_config_options`: a worker's parent loads what its tasks need.

Celery forks its pool from that parent, and Airflow each task from a process of the pool: as `local.preload` says.
"""

from __future__ import annotations

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from celery.signals import worker_init  # type: ignore[import-not-found, import-untyped]

CONFIG = DEFAULT_CELERY_CONFIG
CLUSTER = (
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.model_registry.rest_store",
)
"""What only a cluster's tasks use."""


def warm(**_: object) -> None:
    """Sent once, in the parent, before its pool is made; importing this module loads nothing."""
    from include.evergreen.local import preload

    preload.warm(CLUSTER)


worker_init.connect(warm)
