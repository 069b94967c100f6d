"""What must exist before the first task: the MLflow database and the mart's tables. Idempotent.

python -m include.evergreen.local.prepare mlflow|mart|migrate [REVISION]
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from include.evergreen.errors import EvergreenError, NotFound
from include.evergreen.settings import Settings


def mlflow() -> None:
    """Create or upgrade the MLflow database."""
    import sqlalchemy as sa
    from mlflow.store.db.utils import _safe_initialize_tables, _upgrade_db

    engine = sa.create_engine(Settings.from_env().registry_uri.get_secret_value())
    _safe_initialize_tables(engine)
    _upgrade_db(engine)
    engine.dispose()


def mart(uri: str | None = None) -> None:
    """Create or upgrade the mart: common tables, every model's tables and views, who may read them."""
    from include.evergreen.mart.dictionary import pairs
    from include.evergreen.mart.store import Mart

    made = Mart(uri or Settings.from_env().mart_uri.get_secret_value())
    made.create()
    try:
        for spec, source in pairs():
            made.ensure_model(spec, source)
    except EvergreenError as error:
        # a wrong spec shows in the UI too; the other models go on
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if not made.is_sqlite:
        with suppress(NotFound):
            made.grant_read()
    made.engine.dispose()


def migrate(revision: str = "head") -> None:
    """Bring a mart to a revision: that of EVERGREEN_MART_URI, else the embedded one."""
    from include.evergreen.local.layout import Layout
    from include.evergreen.mart.store import Mart

    uri = os.environ.get("EVERGREEN_MART_URI") or f"sqlite:///{Layout.from_env().mart_db}"
    if revision == "head":
        mart(uri)
    else:
        made = Mart(uri)
        made.migrate(revision)
        made.engine.dispose()
    print(f"the mart is at {revision}")


if __name__ == "__main__":
    try:
        {"mlflow": mlflow, "mart": mart, "migrate": migrate}[sys.argv[1]](*sys.argv[2:])
    except EvergreenError as failure:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        sys.exit(1)
