"""The mart and the ledger: one SQL database, one transaction per fact.

Every fact keeps its first timestamp and run when it is recorded again unchanged, so that a rerun changes no row.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from include.evergreen.errors import AccountingError, NotFound, Refused, Unavailable
from include.evergreen.mart.schema import champions, cohorts, ingest_batches, ledger, metadata, monitorings, scorings
from include.evergreen.specs import ModelSpec, SourceSpec

BUSY_SECONDS = 30
CHUNK_ROWS = 10_000
SQL_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "string": sa.Text(),
    "integer": sa.BigInteger(),
    "number": sa.Double(),
    "boolean": sa.Boolean(),
    "date": sa.Date(),
    "timestamp": sa.DateTime(),
}
SQLITE_UNAVAILABLE = tuple(f"SQLITE_{name}" for name in ("BUSY", "LOCKED", "CANTOPEN", "IOERR", "FULL", "READONLY"))
# What may differ between two runs that found the same: it does not make a new fact.
PROVENANCE = {"run_id", "snapshot_id", "recorded_at", "scored_at", "promoted_at"}

SQLITE_LEDGER = (
    "create trigger if not exists ledger_no_update before update on ledger "
    "begin select raise(abort, 'the ledger is append only'); end",
    "create trigger if not exists ledger_no_delete before delete on ledger "
    "begin select raise(abort, 'the ledger is append only'); end",
    # `insert or replace` deletes without firing the delete trigger
    "create trigger if not exists ledger_no_replace before insert on ledger when exists (select 1 from ledger "
    "where id = new.id or (kind = new.kind and subject = new.subject and as_of = new.as_of and run_id = new.run_id)) "
    "begin select raise(abort, 'the ledger is append only'); end",
)
POSTGRES_LEDGER = (
    "create or replace function ledger_append_only() returns trigger language plpgsql as "
    "$$ begin raise exception 'the ledger is append only'; end $$",
    "create trigger ledger_append_only before update or delete or truncate on ledger "
    "for each statement execute function ledger_append_only()",
)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: dates as ISO text, numpy scalars as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (dt.date, dt.datetime)):
        return value.isoformat()
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _dumps(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False, ensure_ascii=False)


def _known(value: Any) -> Any:
    """A scalar as a column can hold it: numpy's as Python's, NaN and infinity as null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _utc(value: Any) -> Any:
    """SQLite returns naive timestamps; all stored ones are UTC."""
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    return value


def _naive(value: Any) -> Any:
    """A timestamp as naive UTC, whatever the database returned; anything else as it is."""
    return _utc(value).replace(tzinfo=None) if isinstance(value, dt.datetime) else value


def _row(row: sa.Row[Any]) -> dict[str, Any]:
    return {name: _utc(value) for name, value in row._mapping.items()}


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def _same(table: sa.Table, stored: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether `values` state the fact that is stored."""
    for name, value in values.items():
        if name in PROVENANCE:
            continue
        expected = _dumps(value) if isinstance(table.c[name].type, sa.JSON) else _utc(value)
        found = _dumps(stored[name]) if isinstance(table.c[name].type, sa.JSON) else stored[name]
        if expected != found:
            return False
    return True


def _sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    if pa.types.is_date(kind):
        return SQL_TYPES["date"]
    if pa.types.is_timestamp(kind):
        return SQL_TYPES["timestamp"]
    if pa.types.is_boolean(kind):
        return SQL_TYPES["boolean"]
    if pa.types.is_integer(kind):
        return SQL_TYPES["integer"]
    return SQL_TYPES["number"] if pa.types.is_floating(kind) else SQL_TYPES["string"]


def _records(rows: pa.Table) -> Iterator[list[dict[str, Any]]]:
    names = rows.column_names
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        columns = [column.to_pylist() for column in rows.slice(start, CHUNK_ROWS).columns]
        yield [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def reason_columns(spec: ModelSpec) -> list[str]:
    """`reason_1` .. `reason_n`, strongest first."""
    return [f"reason_{rank}" for rank in range(1, spec.scoring.reasons + 1)]


class Mart:
    """A SQLAlchemy database: SQLite on one machine, PostgreSQL on many. All timestamps in and out are UTC.

    Every method raises Unavailable when the database cannot be reached or stays locked, NotFound when `create` or
    `ensure_model` has not run.
    """

    def __init__(self, uri: str) -> None:
        self._uri = sa.make_url(uri)
        self.is_sqlite = self._uri.get_backend_name() == "sqlite"

    def __repr__(self) -> str:
        return f"Mart({self._uri.render_as_string(hide_password=True)!r})"

    # --- connections -------------------------------------------------------------------------------------------------

    @cached_property
    def engine(self) -> sa.Engine:
        """The one engine, opened at first use. On SQLite a transaction with the option `write` takes the lock first."""
        if not self.is_sqlite:
            engine = sa.create_engine(
                self._uri,
                json_serializer=_dumps,
                pool_pre_ping=True,
                connect_args={"connect_timeout": 5, "keepalives_idle": 10, "tcp_user_timeout": 20_000},
            )
            event.listen(engine, "connect", self._configure_postgres)
            return engine
        engine = sa.create_engine(self._uri, json_serializer=_dumps, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", self._configure_sqlite)
        event.listen(engine, "begin", self._begin_sqlite)
        return engine

    @staticmethod
    def _configure_postgres(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"set time zone 'UTC'; set lock_timeout = '{BUSY_SECONDS}s'")
        connection.commit()

    @staticmethod
    def _configure_sqlite(connection: Any, _: Any) -> None:
        # the driver opens transactions too late: we begin them ourselves
        connection.isolation_level = None
        connection.execute(f"pragma busy_timeout = {BUSY_SECONDS * 1000}")
        connection.execute("pragma foreign_keys = on")

    @staticmethod
    def _begin_sqlite(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("begin immediate" if write else "begin")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            where = self._uri.render_as_string(hide_password=True)
            cause = error.orig
            if getattr(cause, "sqlstate", None) == "42P01" or "no such table" in str(cause):
                raise NotFound(f"mart {where}: expected its tables, found: {cause}. Has it been created?") from error
            if self.is_sqlite:
                dead = str(getattr(cause, "sqlite_errorname", "")).startswith(SQLITE_UNAVAILABLE)
            else:
                lost = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
                dead = lost or error.connection_invalidated
            if dead:
                raise Unavailable(f"mart {where}: expected an answer, found: {cause}") from error
            raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self, alone: str | None = None) -> Iterator[sa.Connection]:
        """One transaction; among transactions with the same `alone` only one runs at a time."""
        with self._translated(), self.engine.execution_options(write=True).begin() as connection:
            if alone is not None and not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_number(alone))))
            yield connection

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = 600) -> Iterator[None]:
        """Hold `name` among all processes; released when the holder dies.

        For work that spans the mart and the lake. Raises Unavailable after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            if self.is_sqlite:
                database = Path(self._uri.database or "mart.db")
                try:
                    file = stack.enter_context(database.with_name(f"{database.name}.{name}.lock").open("a"))
                except OSError as error:
                    raise Unavailable(f"mart lock {name!r}: expected a writable folder, found: {error}") from error
                held = False
                while not held:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        held = True
                    except BlockingIOError:
                        self._wait_for(name, deadline, timeout)
            else:
                stack.enter_context(self._translated())
                connection = stack.enter_context(self.engine.connect()).execution_options(isolation_level="AUTOCOMMIT")
                key = _number(f"lock {name}")
                while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                    self._wait_for(name, deadline, timeout)
                stack.callback(lambda: connection.scalar(sa.select(sa.func.pg_advisory_unlock(key))))
            yield

    @staticmethod
    def _wait_for(name: str, deadline: float, timeout: float) -> None:
        if time.monotonic() > deadline:
            raise Unavailable(f"mart lock {name!r}: expected it within {timeout:g} s, found it still held")
        time.sleep(0.05)

    # --- tables ------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Create the common tables and the ledger's guards if absent. Safe in several processes at once."""
        if self.is_sqlite:
            self._enable_wal()
        with self._writing("create") as connection:
            metadata.create_all(connection)
            if self.is_sqlite:
                for statement in SQLITE_LEDGER:
                    connection.exec_driver_sql(statement)
                return
            guarded = sa.text(
                "select 1 from pg_trigger where tgname = 'ledger_append_only' and tgrelid = to_regclass('ledger')"
            )
            if connection.scalar(guarded) is None:
                for statement in POSTGRES_LEDGER:
                    connection.exec_driver_sql(statement)

    def _enable_wal(self) -> None:
        # switching the journal ignores the busy timeout
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._translated():
                    driver = self.engine.raw_connection()
                    try:
                        driver.cursor().execute("pragma journal_mode = wal")
                    finally:
                        driver.close()
                return
            except sa.exc.DBAPIError:
                raise
            except Exception as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise Unavailable(f"{self!r}: expected to open it, found: {error}") from error
                time.sleep(0.05)

    def _model_tables(self, spec: ModelSpec, source: SourceSpec) -> tuple[sa.Table, sa.Table]:
        declared = source.tables[spec.entity.table].columns
        tables = sa.MetaData()

        def keys() -> list[sa.Column[Any]]:
            return [
                sa.Column(
                    name,
                    SQL_TYPES[declared[name].type],
                    primary_key=True,
                    autoincrement=False,
                    comment=declared[name].description or f"{name} of {spec.entity.table}",
                )
                for name in spec.entity.key
            ] + [sa.Column("as_of", sa.Date, primary_key=True, comment="scored at 00:00 UTC of this date")]

        reasons = [
            sa.Column(name, sa.Text, comment=f"reason {rank}, strongest first: feature = value (change of log-odds)")
            for rank, name in enumerate(reason_columns(spec), 1)
        ]
        predictions = sa.Table(
            f"{spec.name}_predictions",
            tables,
            *keys(),
            sa.Column("probability", sa.Double, nullable=False, comment=f"P({spec.label.expression})"),
            sa.Column("decision", sa.Boolean, nullable=False, comment="probability >= the threshold in force"),
            *reasons,
            sa.Column(
                "model_version", sa.Integer, primary_key=True, autoincrement=False, comment="version in the registry"
            ),
            sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False, comment="first scored, UTC"),
            sa.Index(f"{spec.name}_predictions_by_scoring", "as_of", "model_version"),
            comment=f"Every scoring of {spec.name}, withdrawn ones too; read {spec.name}_current",
            # stored in key order whatever was written first
            sqlite_with_rowid=False,
        )
        labels = sa.Table(
            f"{spec.name}_labels",
            tables,
            *keys(),
            sa.Column("label", sa.Boolean, nullable=False, comment=spec.label.description or spec.label.expression),
            sa.Column("known_at", sa.DateTime(timezone=True), nullable=False, comment="when it became known, UTC"),
            comment=f"What happened to the entities of {spec.name}",
            sqlite_with_rowid=False,
        )
        return predictions, labels

    @staticmethod
    def _views(spec: ModelSpec, predictions: sa.Table, labels: sa.Table) -> dict[str, tuple[sa.Select[Any], str]]:
        def current(table: Any, scoring: Any) -> sa.ColumnElement[bool]:
            return sa.and_(
                scoring.c.model == spec.name,
                scoring.c.as_of == table.c.as_of,
                scoring.c.version == table.c.model_version,
                scoring.c.is_current,
            )

        row, later = predictions.alias("p"), predictions.alias("later")
        scored, scored_later = scorings.alias("s"), scorings.alias("scored_later")
        newer = sa.exists(
            sa.select(sa.literal_column("1"))
            .select_from(later.join(scored_later, current(later, scored_later)))
            .where(*(later.c[name] == row.c[name] for name in spec.entity.key), later.c.as_of > row.c.as_of)
            .correlate(row)
        )
        known = labels.alias("l")
        happened = sa.and_(*(known.c[name] == row.c[name] for name in (*spec.entity.key, "as_of")))
        scored_rows = row.join(scored, current(row, scored))
        return {
            f"{spec.name}_current": (
                sa.select(*row.c).select_from(scored_rows).where(~newer),
                f"One row per entity of {spec.name}: its latest as-of date, as scored by the version in force",
            ),
            f"{spec.name}_outcomes": (
                sa.select(*row.c, known.c.label, known.c.known_at).select_from(scored_rows.join(known, happened)),
                f"One row per entity and as-of date of {spec.name} whose outcome is known",
            ),
        }

    def ensure_model(self, spec: ModelSpec, source: SourceSpec) -> None:
        """Create a model's tables (predictions, labels) and views (current, outcomes) if absent.

        More reasons in the spec add columns. Raises Refused when the entity key differs from the stored one.
        """
        predictions, labels = self._model_tables(spec, source)
        quote = self.engine.dialect.identifier_preparer.quote
        with self._writing("create") as connection:
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
            existing = set(inspector.get_view_names())
            for name, (query, comment) in self._views(spec, predictions, labels).items():
                if name in existing:
                    present = [column["name"] for column in inspector.get_columns(name)]
                    if set(query.selected_columns.keys()) <= set(present):
                        continue
                    connection.exec_driver_sql(f"drop view {quote(name)}")
                body = query.compile(dialect=self.engine.dialect, compile_kwargs={"literal_binds": True})
                connection.exec_driver_sql(f"create view {quote(name)} as {body}")
                if not self.is_sqlite:
                    connection.exec_driver_sql(f"comment on view {quote(name)} is '{comment}'")

    # --- upserts -----------------------------------------------------------------------------------------------------

    def _insert(self, table: Any) -> Any:
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @staticmethod
    def _stored(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> dict[str, Any] | None:
        match = [column == values[column.name] for column in table.primary_key]
        row = connection.execute(sa.select(table).where(*match)).one_or_none()
        return None if row is None else _row(row)

    def _record(self, connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> dict[str, Any]:
        """Upsert one fact by primary key, leaving an unchanged one alone. Returns the stored row."""
        stored = self._stored(connection, table, values)
        if stored is not None and _same(table, stored, values):
            return stored
        key = [column.name for column in table.primary_key]
        statement = self._insert(table).values(**values)
        changed = {name: statement.excluded[name] for name in values if name not in key}
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
        match = [column == values[column.name] for column in table.primary_key]
        return _row(connection.execute(sa.select(table).where(*match)).one())

    def _list(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._reading() as connection:
            return [_row(row) for row in connection.execute(statement)]

    # --- ingest ------------------------------------------------------------------------------------------------------

    def record_batches(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Upsert batches by (table_name, partition_date); keys are columns of `ingest_batches` but `recorded_at`.

        A batch stopped after an earlier one of its partition was published keeps that one's counts, deliveries and
        snapshot: they are still what the lake holds.

        Raises:
            AccountingError: a published batch whose rows in are not trusted + quarantined + duplicates.
        """
        with self._writing("ingest_batches") as connection:
            for batch in rows:
                values = {"validation_uri": None, "snapshot_id": None, **batch, "recorded_at": _now()}
                parts = values["trusted"] + values["quarantined"] + values["duplicates"]
                if values["status"] == "published" and values["rows_in"] != parts:
                    raise AccountingError(
                        f"{values['table_name']} of {values['partition_date']}: expected rows in = trusted + "
                        f"quarantined + duplicates, found {values['rows_in']} = {values['trusted']} + "
                        f"{values['quarantined']} + {values['duplicates']}"
                    )
                stored = self._stored(connection, ingest_batches, values)
                if values["status"] == "stopped" and stored is not None and self._holds_rows(stored):
                    kept = ("rows_in", "trusted", "quarantined", "duplicates", "deliveries", "snapshot_id")
                    values |= {name: stored[name] for name in kept}
                self._record(connection, ingest_batches, values)

    @staticmethod
    def _holds_rows(batch: Mapping[str, Any]) -> bool:
        return batch["status"] == "published" or batch["snapshot_id"] is not None

    def recent_counts(self, table: str, before: dt.date, n: int) -> list[int]:
        """Rows without duplicates of the last `n` published partitions before a date, newest first."""
        c = ingest_batches.c
        published = sa.or_(c.status == "published", c.snapshot_id.is_not(None))
        query = sa.select(c.trusted + c.quarantined).where(c.table_name == table, c.partition_date < before, published)
        with self._reading() as connection:
            return list(connection.scalars(query.order_by(c.partition_date.desc()).limit(n)))

    def batches(self, table: str | None = None) -> list[dict[str, Any]]:
        """Batches, by table and partition."""
        query = sa.select(ingest_batches).order_by(ingest_batches.c.table_name, ingest_batches.c.partition_date)
        return self._list(query if table is None else query.where(ingest_batches.c.table_name == table))

    def totals(self) -> dict[str, dict[str, int]]:
        """Rows of published partitions by table: {table: {in, trusted, quarantined, duplicates}}."""
        c = ingest_batches.c
        counts = (c.rows_in, c.trusted, c.quarantined, c.duplicates)
        query = (
            sa.select(c.table_name, *(sa.func.sum(count) for count in counts))
            .where(sa.or_(c.status == "published", c.snapshot_id.is_not(None)))
            .group_by(c.table_name)
            .order_by(c.table_name)
        )
        names = ("in", "trusted", "quarantined", "duplicates")
        with self._reading() as connection:
            return {row[0]: dict(zip(names, map(int, row[1:]), strict=True)) for row in connection.execute(query)}

    # --- ledger ------------------------------------------------------------------------------------------------------

    def append_decision(
        self,
        *,
        kind: str,
        subject: str,
        as_of: dt.date,
        outcome: str,
        reasons: Sequence[str],
        evidence: Mapping[str, Any],
        actor: str,
        run_id: str,
        once_a_date: bool = False,
    ) -> dict[str, Any]:
        """Record a decision and return it. A retry of the same run gets the one first recorded.

        With `once_a_date`, another run that says what the newest decision of (kind, subject, as_of) says (outcome,
        reasons, evidence) leaves no row and gets that one.
        """
        c = ledger.c
        of_date = sa.select(ledger).where(c.kind == kind, c.subject == subject, c.as_of == as_of)
        query = of_date.where(c.run_id == run_id)
        with self._writing(f"ledger {kind} {subject} {as_of}") as connection:
            row = connection.execute(query).one_or_none()
            if row is None and once_a_date:
                newest = connection.execute(of_date.order_by(c.id.desc()).limit(1)).one_or_none()
                said = {"outcome": outcome, "reasons": list(reasons), "evidence": evidence}
                if newest is not None and _same(ledger, _row(newest), said):
                    return _row(newest)
            if row is None:
                connection.execute(
                    ledger.insert().values(
                        kind=kind,
                        subject=subject,
                        as_of=as_of,
                        outcome=outcome,
                        reasons=list(reasons),
                        evidence=dict(evidence),
                        actor=actor,
                        run_id=run_id,
                        decided_at=_now(),
                    )
                )
                row = connection.execute(query).one()
            return _row(row)

    def decisions(
        self,
        subject: str | None = None,
        kind: str | None = None,
        until: dt.date | None = None,
        limit: int | None = None,
        since: dt.date | None = None,
    ) -> list[dict[str, Any]]:
        """Decisions with `since` <= as_of <= `until`, newest first: by as_of, then as they were recorded."""
        c = ledger.c
        query = sa.select(ledger).order_by(c.as_of.desc(), c.id.desc()).limit(limit)
        for column, value in ((c.subject, subject), (c.kind, kind)):
            query = query if value is None else query.where(column == value)
        query = query if since is None else query.where(c.as_of >= since)
        return self._list(query if until is None else query.where(c.as_of <= until))

    # --- champions ---------------------------------------------------------------------------------------------------

    def promote(
        self, *, model: str, version: int, effective_from: dt.date, metrics: Mapping[str, Any], run_id: str
    ) -> dict[str, Any]:
        """Make `version` the champion for as-of dates from `effective_from` on, and return the row."""
        values = {
            "model": model,
            "effective_from": effective_from,
            "version": version,
            "metrics": dict(metrics),
            "run_id": run_id,
            "promoted_at": _now(),
        }
        with self._writing(f"champions {model}") as connection:
            return self._record(connection, champions, values)

    def champion_at(self, model: str, as_of: dt.date) -> tuple[int, dt.date] | None:
        """(version, effective_from) of the champion in force at a date."""
        c = champions.c
        query = sa.select(c.version, c.effective_from).where(c.model == model, c.effective_from <= as_of)
        with self._reading() as connection:
            row = connection.execute(query.order_by(c.effective_from.desc()).limit(1)).one_or_none()
        return None if row is None else (row.version, row.effective_from)

    def champion_history(self, model: str) -> list[dict[str, Any]]:
        """Champions by effective_from, oldest first."""
        return self._list(sa.select(champions).where(champions.c.model == model).order_by(champions.c.effective_from))

    # --- scorings ----------------------------------------------------------------------------------------------------

    def publish_scoring(
        self,
        spec: ModelSpec,
        as_of: dt.date,
        version: int,
        predictions: pa.Table,
        snapshot_id: int | None,
        run_id: str,
        scored_at: dt.datetime | None = None,
    ) -> dict[str, Any]:
        """Replace the rows of (as_of, version) and make them the current scoring, in one transaction.

        Args:
            predictions: the entity key, `as_of`, `probability`, `decision`, `reason_1..n`, `model_version`.
            scored_at: used at the first scoring of (as_of, version) only; now by default.

        Returns:
            The row of `scorings`.
        """
        keys = [*spec.entity.key, "as_of"]
        rows = predictions.select([*keys, "probability", "decision", *reason_columns(spec), "model_version"]).sort_by(
            [(name, "ascending") for name in keys]
        )
        table = sa.table(
            f"{spec.name}_predictions",
            *(sa.column(field.name, _sql_type(field.type)) for field in rows.schema),
            sa.column("scored_at", sa.DateTime(timezone=True)),
        )
        c = scorings.c
        partition = (c.model == spec.name, c.as_of == as_of)
        with self._writing(f"scorings {spec.name} {as_of}") as connection:
            first = connection.scalar(sa.select(c.scored_at).where(*partition, c.version == version))
            moment = _utc(first or scored_at or _now())
            connection.execute(sa.delete(table).where(table.c.as_of == as_of, table.c.model_version == version))
            insert = sa.insert(table)
            for records in _records(rows):
                for record in records:
                    record["scored_at"] = moment
                connection.execute(insert, records)
            connection.execute(
                sa.update(scorings).where(*partition, c.version != version, c.is_current).values(is_current=False)
            )
            return self._record(
                connection,
                scorings,
                {
                    "model": spec.name,
                    "as_of": as_of,
                    "version": version,
                    "is_current": True,
                    "rows": rows.num_rows,
                    "mean_probability": pc.mean(rows["probability"]).as_py() or 0.0,
                    "snapshot_id": snapshot_id,
                    "run_id": run_id,
                    "scored_at": moment,
                },
            )

    def scoring(self, model: str, as_of: dt.date) -> dict[str, Any] | None:
        """The current scoring of a partition."""
        c = scorings.c
        found = self._list(sa.select(scorings).where(c.model == model, c.as_of == as_of, c.is_current))
        return found[0] if found else None

    def scorings(self, model: str) -> list[dict[str, Any]]:
        """Every scoring, by as_of and version."""
        c = scorings.c
        return self._list(sa.select(scorings).where(c.model == model).order_by(c.as_of, c.version))

    def write_labels(self, spec: ModelSpec, labels: pa.Table) -> int:
        """Upsert what happened, by entity key and as_of. Returns the number of labels given.

        Args:
            labels: the entity key, `as_of`, `label` (bool), `known_at` (naive UTC timestamp).
        """
        keys = [*spec.entity.key, "as_of"]
        rows = labels.select([*keys, "label", "known_at"])
        table = sa.table(f"{spec.name}_labels", *(sa.column(f.name, _sql_type(f.type)) for f in rows.schema))
        statement = self._insert(table)
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=keys,
            set_={"label": new.label, "known_at": new.known_at},
            where=sa.or_(table.c.label != new.label, table.c.known_at != new.known_at),
        )
        if not rows.num_rows:
            return 0
        bounds = pc.min_max(rows["as_of"]).as_py()
        columns = [table.c[name] for name in rows.column_names]
        known = sa.select(*columns).where(table.c.as_of.between(bounds["min"], bounds["max"]))
        with self._writing(f"labels {spec.name}") as connection:
            # most labels are known already: reading them is ten times as fast as offering each again
            stored = {tuple(_naive(value) for value in row) for row in connection.execute(known)}
            for records in _records(rows):
                new_ones = [record for record in records if tuple(map(_naive, record.values())) not in stored]
                if new_ones:
                    connection.execute(statement, new_ones)
        return int(rows.num_rows)

    # --- monitoring --------------------------------------------------------------------------------------------------

    def record_monitoring(
        self,
        *,
        model: str,
        as_of: dt.date,
        version: int,
        verdict: str,
        reasons: Sequence[str],
        columns: Mapping[str, Any],
        performance: Mapping[str, Any],
        report_uri: str | None,
        run_id: str,
    ) -> dict[str, Any]:
        """Upsert the verdict of (model, as_of) and return it."""
        values = {
            "model": model,
            "as_of": as_of,
            "version": version,
            "verdict": verdict,
            "reasons": list(reasons),
            "columns": dict(columns),
            "performance": dict(performance),
            "report_uri": report_uri,
            "run_id": run_id,
            "recorded_at": _now(),
        }
        with self._writing(f"monitorings {model}") as connection:
            return self._record(connection, monitorings, values)

    def monitorings(self, model: str, until: dt.date | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """Verdicts with as_of <= `until`, newest first."""
        c = monitorings.c
        query = sa.select(monitorings).where(c.model == model).order_by(c.as_of.desc()).limit(limit)
        return self._list(query if until is None else query.where(c.as_of <= until))

    def record_cohorts(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Upsert cohorts by (model, as_of, version) and return the stored rows, in the order given.

        Keys are columns of `cohorts` but first_*, revisions and recorded_at. A cohort whose figures are unchanged, and
        one that a later run has measured, is left alone. A changed one keeps its first figures and counts a revision.
        """
        given = [{name: _known(value) for name, value in row.items()} for row in rows]
        if not given:
            return []
        with self._writing("cohorts") as connection:
            return [self._record_cohort(connection, row) for row in given]

    def _record_cohort(self, connection: sa.Connection, row: dict[str, Any]) -> dict[str, Any]:
        stored = self._stored(connection, cohorts, row)
        if stored is None:
            first = {f"first_{name}": row[name] for name in ("measured_on", "matured_rows", "auc", "brier")}
            return self._record(connection, cohorts, {**row, **first, "revisions": 0, "recorded_at": _now()})
        figures = {name: value for name, value in row.items() if name != "measured_on"}
        if row["measured_on"] < stored["measured_on"] or _same(cohorts, stored, figures):
            return stored
        changed = {"revisions": stored["revisions"] + 1, "recorded_at": _now()}
        return self._record(connection, cohorts, {**stored, **row, **changed})

    def cohorts(self, model: str, since: dt.date | None = None, until: dt.date | None = None) -> list[dict[str, Any]]:
        """Cohorts with `since` <= as_of <= `until`, by as_of and version."""
        c = cohorts.c
        query = sa.select(cohorts).where(c.model == model).order_by(c.as_of, c.version)
        query = query if since is None else query.where(c.as_of >= since)
        return self._list(query if until is None else query.where(c.as_of <= until))
