"""Revisions of the common tables, by Alembic. Tables and views of models are made by `Mart.ensure_model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.errors import Refused
from include.evergreen.mart import guards
from include.evergreen.mart.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0002"
"""The newest revision: known without importing Alembic, which a mart that is up to date never needs."""
VERSION_TABLE = "mart_version"
SCRIPTS = Path(__file__).with_name("migrations")


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration for an open transaction."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def current(connection: sa.Connection) -> str | None:
    """The revision of a mart; None when it has none: empty, or of before there were revisions."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE)))


def to_head(connection: sa.Connection) -> None:
    """Bring a mart to the newest revision. An empty one is made whole at once: the same schema without Alembic.

    Raises Refused when its revision is not known here.
    """
    found = current(connection)
    if found == HEAD:
        return
    if found is not None or sa.inspect(connection).has_table("ledger"):
        to(connection, "head")
        return
    version = sa.Table(
        VERSION_TABLE,
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
    )
    metadata.create_all(connection)
    guards.create(connection)
    version.create(connection, checkfirst=True)
    connection.execute(version.insert().values(version_num=HEAD))


def to(connection: sa.Connection, revision: str) -> None:
    """Go up or down to `revision` (`head`, `base`) in the open transaction. Raises Refused: an unknown revision."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    found = current(connection)
    made = config(connection)
    try:
        script = ScriptDirectory.from_config(made)
        known = [entry.revision for entry in script.walk_revisions()]
        target = {"head": HEAD, "base": None}.get(revision, revision)
        if found not in (None, *known) or target not in (None, *known):
            raise Refused(f"mart: expected revisions of {sorted(known)}, found it at {found} on the way to {revision}")
        upwards = (found or "") <= (target or "")
        (command.upgrade if upwards else command.downgrade)(made, target or "base")
    except CommandError as error:
        raise Refused(f"mart: expected a way from revision {found} to {revision}, found: {error}") from error


def ours(name: str | None, kind: str, _: Any) -> bool:
    """Whether Alembic compares an object: every table but those of models."""
    return kind != "table" or not str(name).endswith(("_predictions", "_labels"))
