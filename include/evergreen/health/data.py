"""Tables of the sources: how fresh they are, what became of every row, and what the quarantined ones broke."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from include.evergreen.errors import NotFound
from include.evergreen.health.facts import Failure, Partition, TableRow
from include.evergreen.health.fleet import EARLIEST, named, utc
from include.evergreen.mart.schema import ingest_batches

if TYPE_CHECKING:
    from include.evergreen.mart.store import Mart
    from include.evergreen.specs import SourceSpec, TableSpec

Quarantined = Callable[[str, dt.date, dt.date], Any]
"""`Lake.read`: (table, since, until) -> pyarrow.Table. Raises NotFound."""
EXAMPLES = 5
FIELDS = (
    ingest_batches.c.partition_date,
    ingest_batches.c.status,
    ingest_batches.c.rows_in,
    ingest_batches.c.trusted,
    ingest_batches.c.quarantined,
    ingest_batches.c.duplicates,
    ingest_batches.c.reasons,
    ingest_batches.c.validation_uri,
    ingest_batches.c.recorded_at,
)


def tables(mart: Mart, sources: Mapping[str, SourceSpec], limit: int = 14) -> tuple[TableRow, ...]:
    """Every table of the sources, by source and as declared, with its newest `limit` partitions, newest first."""
    names = [table for source in sources.values() for table in source.tables]
    if not names:
        return ()
    b, older = ingest_batches.c, ingest_batches.alias("older")
    stopped = sa.case((b.status != "published", 1), else_=0)
    totals = (
        sa.select(
            b.table_name,
            sa.func.count().label("total"),
            sa.func.sum(b.quarantined).label("quarantined"),
            sa.func.sum(stopped).label("stopped"),
            sa.func.max(b.partition_date).label("last"),
            sa.func.max(sa.case((b.status == "published", b.partition_date))).label("newest"),
        )
        .where(b.table_name.in_(names))
        .group_by(b.table_name)
    )
    with mart.reading() as connection:
        m = named(connection, names)
        oldest = (
            sa.select(older.c.partition_date)
            .where(older.c.table_name == m.c.name)
            .order_by(older.c.partition_date.desc())
            .limit(1)
            .offset(limit - 1)
            .correlate(m)
        ).scalar_subquery()
        recent = sa.and_(b.table_name == m.c.name, b.partition_date >= sa.func.coalesce(oldest, sa.literal(EARLIEST)))
        counted = {row.table_name: row for row in connection.execute(totals)}
        newest_first = sa.select(b.table_name, *FIELDS).select_from(m.join(ingest_batches, recent))
        shown: dict[str, list[Partition]] = {}
        for row in connection.execute(newest_first.order_by(b.table_name, b.partition_date.desc())):
            shown.setdefault(row.table_name, []).append(_partition(row))
    return tuple(
        _table(source, table, counted, tuple(shown.get(table.name, ())))
        for source in sources.values()
        for table in source.tables.values()
    )


def _table(
    source: SourceSpec, table: TableSpec, counted: Mapping[str, Any], partitions: tuple[Partition, ...]
) -> TableRow:
    runs = [
        counted[name].last + dt.timedelta(days=other.lag_days)
        for name, other in source.tables.items()
        if name in counted and other.cadence == "daily"
    ]
    mine, due = counted.get(table.name), None
    if runs and table.cadence == "daily":
        due = max(runs) - dt.timedelta(days=table.lag_days)
        due = min(due, source.end_date) if source.end_date else due
    newest = mine.newest if mine else None
    late = 0
    if due is not None:
        late = max((due - (newest or source.start_date - dt.timedelta(days=1))).days, 0)
    return TableRow(
        source=source.name,
        name=table.name,
        description=table.description,
        cadence=table.cadence,
        newest=newest,
        due=due,
        late_days=late,
        partitions=partitions,
        total=mine.total if mine else 0,
        quarantined=int(mine.quarantined) if mine else 0,
        stopped=int(mine.stopped) if mine else 0,
    )


def partitions(
    mart: Mart, source: SourceSpec, table: str, before: dt.date | None = None, limit: int = 50
) -> tuple[tuple[Partition, ...], bool]:
    """The newest `limit` partitions of a table before `before`, newest first, and whether there are older ones."""
    b = ingest_batches.c
    query = sa.select(*FIELDS).where(b.table_name == table, b.source == source.name).order_by(b.partition_date.desc())
    query = query if before is None else query.where(b.partition_date < before)
    with mart.reading() as connection:
        rows = connection.execute(query.limit(limit + 1)).all()
    return tuple(map(_partition, rows[:limit])), len(rows) > limit


def _partition(row: Any) -> Partition:
    return Partition(
        day=row.partition_date,
        status=row.status,
        rows_in=row.rows_in,
        trusted=row.trusted,
        quarantined=row.quarantined,
        duplicates=row.duplicates,
        reasons=tuple(map(str, row.reasons)),
        has_validation=row.validation_uri is not None,
        recorded_at=utc(row.recorded_at),
    )


def failures(
    mart: Mart, source: SourceSpec, table: str, day: dt.date, quarantined: Quarantined, examples: int = EXAMPLES
) -> tuple[Failure, ...]:
    """The expectations that a partition failed, most rows first, with up to `examples` rows each.

    What stopped it comes first, from the mart, without rows: a stopped partition quarantines none. Counts and rows come
    from the lake; a row that breaks two rules counts in both.

    Raises:
        NotFound: the mart has no such partition. Unavailable.
    """
    b = ingest_batches.c
    query = sa.select(b.status, b.reasons, b.quarantined).where(
        b.table_name == table, b.source == source.name, b.partition_date == day
    )
    with mart.reading() as connection:
        batch = connection.execute(query).one_or_none()
    if batch is None:
        raise NotFound(f"{source.name}.{table} of {day}: expected a partition in the mart, found none")
    stopped = [Failure(str(reason), 0, ()) for reason in batch.reasons] if batch.status != "published" else []
    try:
        rows = quarantined(f"quarantine.{table}", day, day).select(["row", "reasons"]) if batch.quarantined else None
    except NotFound:
        rows = None
    counted: dict[str, int] = {}
    kept: dict[str, list[Mapping[str, str]]] = {}
    for text, reasons in zip(rows["row"].to_pylist(), rows["reasons"].to_pylist(), strict=True) if rows else ():
        for rule in dict.fromkeys(str(reason).split(", found ")[0] for reason in reasons or ()):
            counted[rule] = counted.get(rule, 0) + 1
            mine = kept.setdefault(rule, [])
            if len(mine) < examples:
                mine.append(_example(text))
    ranked = sorted(counted, key=lambda rule: (-counted[rule], rule))
    return (*stopped, *(Failure(rule, counted[rule], tuple(kept[rule])) for rule in ranked))


def _example(text: str) -> dict[str, str]:
    return {str(name): "" if value is None else str(value) for name, value in json.loads(text).items()}
