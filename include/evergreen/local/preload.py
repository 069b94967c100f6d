"""Imported once by what workers are forked from: their tasks find these modules loaded.

That is the scheduler's fork server, or the parent process of a Celery worker.

Only imports: a thread or a connection would not survive the fork.
"""

from __future__ import annotations

import gc
import importlib
import logging

MODULES = (
    "airflow.executors.local_executor",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.serialization.definitions.dag",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "duckdb",
    "sqlalchemy.dialects.sqlite",
    "boto3",
    "botocore.config",
    "s3fs",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.fsspec",
    "pyiceberg.expressions",
    "xgboost",
    "sklearn.metrics",
    "mlflow",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "evidently",
    "evidently.metrics",
    "evidently.presets",
    "great_expectations",
    "great_expectations.expectations",
    "great_expectations.render.renderer.page_renderer",
    "great_expectations.render.view",
    # what a DAG file and the bodies of its tasks import
    "airflow.providers.standard.decorators.python",
    "airflow.sdk.definitions.retry_policy",
    "include.evergreen.alerts.inbox",
    "include.evergreen.drift.report",
    "include.evergreen.features.build",
    "include.evergreen.lake.iceberg",
    "include.evergreen.mart.store",
    "include.evergreen.orchestration.defaults",
    "include.evergreen.orchestration.notify",
    "include.evergreen.orchestration.quick",
    "include.evergreen.orchestration.runs",
    "include.evergreen.orchestration.sensors",
    "include.evergreen.pipeline.approval",
    "include.evergreen.pipeline.ingest",
    "include.evergreen.pipeline.monitoring",
    "include.evergreen.pipeline.retraining",
    "include.evergreen.pipeline.rollback",
    "include.evergreen.pipeline.scoring",
    "include.evergreen.pipeline.training",
    "include.evergreen.platform",
    "include.evergreen.promotion.card",
    "include.evergreen.promotion.evaluate",
    "include.evergreen.promotion.registry",
    "include.evergreen.quality.validation",
    "include.evergreen.scoring.contract",
    "include.evergreen.scoring.score",
    "include.evergreen.training.fit",
)


def load(modules: tuple[str, ...] = MODULES) -> dict[str, str]:
    """Import every module; returns {module: error} of those that failed. A missing one only costs its warmth."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    failed: dict[str, str] = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a task that needs it reports the error itself
            failed[name] = f"{type(error).__name__}: {error}"
    gc.collect()
    gc.freeze()  # the collector of a fork leaves these pages shared
    return failed


def warm(modules: tuple[str, ...] = MODULES) -> None:
    """Load, and say what could not be."""
    for name, error in load(modules).items():
        print(f"preload: {name}: {error}", flush=True)


warm()
