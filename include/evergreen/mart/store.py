"""The mart and the ledger: one SQL database, one transaction per fact.

Every fact keeps its first timestamp and run when it is recorded again unchanged, so that a rerun changes no row.
"""

from __future__ import annotations

import sqlalchemy as sa

from include.evergreen.errors import NotFound, Refused
from include.evergreen.mart import migrate, views
from include.evergreen.mart.batches import Batches
from include.evergreen.mart.decisions import Decisions
from include.evergreen.mart.models import model_tables, reason_columns
from include.evergreen.mart.performance import Performance
from include.evergreen.mart.scorings import Scorings
from include.evergreen.specs import ModelSpec, SourceSpec

__all__ = ["Mart", "reason_columns"]


class Mart(Batches, Decisions, Scorings, Performance):
    """The mart: facts by kind, the tables and views of models, who may read them.

    Every method raises Unavailable when the database cannot be reached or stays locked, NotFound when `create` or
    `ensure_model` has not run.
    """

    def create(self) -> None:
        """Bring the common tables, the ledger's guards and the common views to the newest revision.

        Keeps the data of a mart that is older, of before there were revisions too. Safe in several processes at once.
        Raises Refused when the mart is newer than this code.
        """
        if self.is_sqlite:
            self.enable_wal()
        with self.writing("create") as connection:
            migrate.to_head(connection)
            views.refresh(connection, views.common_views(connection.dialect))

    def migrate(self, revision: str) -> None:
        """Go up or down to a revision; `head` is the newest, `base` an empty database."""
        with self.writing("create") as connection:
            migrate.to(connection, revision)

    def ensure_model(self, spec: ModelSpec, source: SourceSpec) -> None:
        """Create a model's tables (predictions, labels) and views if absent or changed.

        More reasons in the spec add columns. Raises Refused when the entity key differs from the stored one.
        """
        predictions, _ = model_tables(spec, source)
        quote = self.engine.dialect.identifier_preparer.quote
        with self.writing("create") as connection:
            inspector = sa.inspect(connection)
            if inspector.has_table(predictions.name):
                stored = inspector.get_pk_constraint(predictions.name)["constrained_columns"]
                expected = [column.name for column in predictions.primary_key]
                if stored != expected:
                    raise Refused(f"{predictions.name}: expected the key {expected}, found {stored}; rename the model")
                present = [column["name"] for column in inspector.get_columns(predictions.name)]
                for name in reason_columns(spec):
                    if name not in present:
                        connection.exec_driver_sql(f"alter table {quote(predictions.name)} add column {name} text")
            predictions.metadata.create_all(connection)
            views.refresh(connection, views.model_views(spec, source))

    def grant_read(self, role: str = views.READ_ROLE) -> None:
        """Let a role of PostgreSQL read every view, those that are made later too, and nothing else.

        Raises Refused on SQLite (`read_only_uri`), NotFound without such a role.
        """
        if self.is_sqlite:
            raise Refused(f"{self!r}: expected PostgreSQL to grant on; a SQLite file is read by read_only_uri()")
        quote = self.engine.dialect.identifier_preparer.quote
        with self.writing("create") as connection:
            if connection.scalar(sa.text("select 1 from pg_roles where rolname = :role"), {"role": role}) is None:
                raise NotFound(f"role {role}: expected it on the server, found none; create it first")
            for name in views.made(connection):
                connection.exec_driver_sql(f"grant select on {quote(name)} to {quote(role)}")
