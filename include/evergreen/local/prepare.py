"""What must exist before the first task: the MLflow database and the mart's tables. Idempotent.

python -m include.evergreen.local.prepare mlflow|mart
"""

from __future__ import annotations

import sys

from include.evergreen.settings import Settings


def mlflow() -> None:
    """Create or upgrade the MLflow database."""
    import sqlalchemy as sa
    from mlflow.store.db.utils import _safe_initialize_tables, _upgrade_db

    engine = sa.create_engine(Settings.from_env().registry_uri.get_secret_value())
    _safe_initialize_tables(engine)
    _upgrade_db(engine)
    engine.dispose()


def mart() -> None:
    """Create the mart's common tables."""
    from include.evergreen.mart.store import Mart

    Mart(Settings.from_env().mart_uri.get_secret_value()).create()


if __name__ == "__main__":
    {"mlflow": mlflow, "mart": mart}[sys.argv[1]]()
