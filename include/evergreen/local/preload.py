"""Imported once by the scheduler's fork server: workers and tasks are forked from it and find these modules loaded.

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
    "include.evergreen.specs",
    "include.evergreen.platform",
)


def load() -> dict[str, str]:
    """Import every module; returns {module: error} of those that failed. A missing one only costs its warmth."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    failed: dict[str, str] = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a task that needs it reports the error itself
            failed[name] = f"{type(error).__name__}: {error}"
    gc.collect()
    gc.freeze()  # the collector of a fork leaves these pages shared
    return failed


failed = load()
for _name, _error in failed.items():
    print(f"preload: {_name}: {_error}", flush=True)
