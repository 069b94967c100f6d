"""The DAGs as Airflow sees them, in an AIRFLOW_HOME of their own and without a socket."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

if "airflow" not in sys.modules:  # it reads its home when it is imported
    _home = tempfile.TemporaryDirectory(prefix="airflow-home-")
    os.environ["AIRFLOW_HOME"] = _home.name
    os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.disable_socket)


@pytest.fixture(scope="session")
def bag() -> Any:
    """The DagBag of `dags/`, told of the pools of airflow_settings.yaml."""
    from airflow.dag_processing.dagbag import DagBag

    from include.evergreen.orchestration import settings_file

    pools = {"default_pool", *settings_file.read().pools}
    return DagBag(PROJECT / "dags", known_pools=pools)
