"""Triggers that keep the ledger append only, whatever tool writes to it. A change here is a new revision too."""

from __future__ import annotations

import sqlalchemy as sa

SQLITE = (
    "create trigger if not exists ledger_no_update before update on ledger "
    "begin select raise(abort, 'the ledger is append only'); end",
    "create trigger if not exists ledger_no_delete before delete on ledger "
    "begin select raise(abort, 'the ledger is append only'); end",
    # `insert or replace` deletes without firing the delete trigger
    "create trigger if not exists ledger_no_replace before insert on ledger when exists (select 1 from ledger "
    "where id = new.id or (kind = new.kind and subject = new.subject and as_of = new.as_of and run_id = new.run_id)) "
    "begin select raise(abort, 'the ledger is append only'); end",
)
POSTGRES = (
    "create or replace function ledger_append_only() returns trigger language plpgsql as "
    "$$ begin raise exception 'the ledger is append only'; end $$",
    "create or replace trigger ledger_append_only before update or delete or truncate on ledger "
    "for each statement execute function ledger_append_only()",
)


def create(connection: sa.Connection) -> None:
    """Guard the ledger; again changes nothing."""
    for statement in SQLITE if connection.dialect.name == "sqlite" else POSTGRES:
        connection.exec_driver_sql(statement)


def drop(connection: sa.Connection) -> None:
    """Let the ledger be dropped. On SQLite triggers go with their table."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("drop trigger if exists ledger_append_only on ledger")
        connection.exec_driver_sql("drop function if exists ledger_append_only()")
