"""Point-in-time features: one DuckDB query over Arrow from the lake, for training and scoring alike."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import DataError, LeakDetected, NotFound, SpecError
from include.evergreen.lake.ports import PARTITION, Lake
from include.evergreen.query import connect, expression, quoted, statements
from include.evergreen.specs import ModelSpec


def midnight(day: dt.date) -> dt.datetime:
    """The as-of instant of a date, naive UTC."""
    return dt.datetime.combine(day, dt.time())


@lru_cache(maxsize=64)
def _tables(sql: str) -> tuple[str, ...]:
    """Tables a query reads: the base tables of its parse tree that it does not define itself."""
    with connect() as connection:
        try:
            parsed = statements(connection, sql)
        except SpecError as error:
            raise DataError(f"features.sql: {error}") from error
    if len(parsed) != 1:
        raise DataError(f"features.sql: expected one DuckDB query, found {len(parsed)}")
    read, defined = set(), {"entities"}
    nodes: list[Any] = list(parsed)
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if node.get("type") == "BASE_TABLE":
                read.add(node["table_name"])
            defined |= {entry["key"] for entry in node.get("cte_map", {}).get("map", [])}
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)
    return tuple(sorted(read - defined))


@lru_cache(maxsize=64)
def _columns(sql: str, entities: str, schemas: tuple[tuple[str, pa.Schema], ...]) -> dict[str, list[str]]:
    """The columns of each table that two queries read, as DuckDB plans them: table -> names.

    Raises DataError for what DuckDB cannot plan.
    """
    # an empty table is not to be optimised away
    with connect(
        "set disabled_optimizers = 'statistics_propagation,empty_result_pullup,filter_pushdown'"
    ) as connection:
        for at, (table, schema) in enumerate(schemas):
            connection.register(f"scan_{at}", schema.empty_table())
            connection.execute(f'create temp table "{table}" as select * from scan_{at}')
        try:
            plans = [connection.execute(f"explain (format json) {entities}").fetchall()]
            connection.execute(f"create temp table entities as {entities}")
            plans.append(connection.execute(f"explain (format json) {sql.rstrip().rstrip(';')}").fetchall())
        except duckdb.Error as error:
            raise DataError(f"features.sql: expected a query over {[name for name, _ in schemas]}: {error}") from error
    found: dict[str, set[str]] = {table: set() for table, _ in schemas}
    nodes: list[Any] = [json.loads(plan[0][1]) for plan in plans]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
            continue
        info = node.get("extra_info", {})
        table = str(info.get("Table", "")).rsplit(".", 1)[-1].strip('"')
        if table in found:
            names = info.get("Projections", [])
            found[table].update([names] if isinstance(names, str) else names)
        nodes.extend(node.get("children", []))
    # a scan that is shown without columns is read whole
    return {
        table: [name for name in schema.names if not found[table] or name in found[table] or name == "available_at"]
        for table, schema in schemas
    }


def _inputs(
    lake: Lake,
    spec: ModelSpec,
    entities: str,
    since: dt.date,
    until: dt.date,
    cut: dt.date | None,
    snapshots: dict[str, int] | None,
) -> dict[str, pa.Table]:
    """What the queries read of each table, and no other column or partition."""
    tables = sorted({*_tables(spec.sql), spec.entity.table})
    at = {table: (snapshots or {}).get(f"trusted.{table}") for table in tables}
    schemas = tuple((table, lake.schema(f"trusted.{table}", at[table])) for table in tables)
    wanted = _columns(spec.sql, entities, schemas)

    def read(table: str) -> pa.Table:
        first = None if table in spec.reference_tables else since - dt.timedelta(days=spec.lookback_days)
        rows = lake.read(f"trusted.{table}", first, until, columns=wanted[table], snapshot=at[table])
        if cut is not None:
            rows = rows.filter(pc.less_equal(rows["available_at"], pa.scalar(midnight(cut), pa.timestamp("us"))))
        return rows

    # in one piece each: DuckDB reads a table of many small ones more slowly
    return {table: read(table).combine_chunks() for table in tables}


def input_tables(spec: ModelSpec) -> list[str]:
    """Lake names of the tables a model is made from: its query's, its entities' and its label's."""
    names = {*_tables(spec.sql), spec.entity.table, spec.label.table}
    return sorted(f"trusted.{name}" for name in names)


def features(
    lake: Lake,
    spec: ModelSpec,
    since: dt.date,
    until: dt.date,
    cut: dt.date | None = None,
    snapshots: dict[str, int] | None = None,
) -> pa.Table:
    """Features of every entity with since <= as_of <= until.

    Args:
        cut: drop every row of every table that was not available at midnight of this date before the query runs.
        snapshots: lake table -> snapshot id to read instead of the current one.

    Returns:
        One row per entity: the entity key, `as_of` (date32), then the spec's features in order (numbers as float32,
        categories as strings), sorted by as_of and key.

    Raises:
        NotFound: a table of the query is not in the lake.
        DataError: the query's result is not one row per entity with the declared columns.
    """
    keys = quoted(*spec.entity.key)
    with connect() as connection:
        where = expression(connection, spec.entity.where, f"{spec.name}: entity.where")
        entities = (
            f"select {keys}, cast({PARTITION} as timestamp) as as_of from {quoted(spec.entity.table)} where {where}"
        )
        for table, rows in _inputs(lake, spec, entities, since, until, cut, snapshots).items():
            connection.register(table, rows)
        connection.execute(f"create temp table entities as {entities} and {PARTITION} between ? and ?", [since, until])
        expected = connection.execute("select count(*) from entities").fetchall()[0][0]
        result = connection.sql(spec.sql)
        missing = [name for name in (*spec.entity.key, "as_of", *spec.features) if name not in result.columns]
        if missing:
            raise DataError(
                f"features.sql of {spec.name}: expected the columns {missing}, found {sorted(result.columns)}"
            )
        columns = [
            keys,
            "cast(as_of as date) as as_of",
            *(
                f'cast("{name}" as {"varchar" if feature.type == "category" else "float"}) as "{name}"'
                for name, feature in spec.features.items()
            ),
        ]
        rows = result.project(", ".join(columns)).order(f"as_of, {keys}").to_arrow_table()
        distinct = rows.group_by([*spec.entity.key, "as_of"]).aggregate([]).num_rows
        if rows.num_rows != expected or distinct != expected:
            raise DataError(
                f"features.sql of {spec.name}: expected one row for each of {expected} entities, "
                f"found {rows.num_rows} rows for {distinct}"
            )
        return rows


def labels(
    lake: Lake,
    spec: ModelSpec,
    since: dt.date,
    until: dt.date,
    cut: dt.date | None = None,
    snapshots: dict[str, int] | None = None,
) -> pa.Table:
    """What happened to the entities with since <= as_of <= until, as far as it was known at midnight of `cut`.

    Returns:
        The entity key, `as_of` (date32), `label` (bool, never null), `known_at` (timestamp[us]).
    """
    name = f"trusted.{spec.label.table}"
    try:
        rows = lake.read(name, since, until, snapshot=(snapshots or {}).get(name))
    except NotFound:
        return pa.table(
            {
                **{key: pa.array([], pa.string()) for key in spec.entity.key},
                "as_of": pa.array([], pa.date32()),
                "label": pa.array([], pa.bool_()),
                "known_at": pa.array([], pa.timestamp("us")),
            }
        )
    with connect() as connection:
        connection.register("outcomes", rows)
        keys = quoted(*spec.entity.key)
        label = expression(connection, spec.label.expression, f"{spec.name}: label.expression")
        bound = midnight(cut or dt.date.max)
        return connection.sql(
            f"select * from (select {keys}, {PARTITION} as as_of, cast({label} as boolean) as label, "
            f"cast(available_at as timestamp) as known_at from outcomes where available_at <= ?) "
            f"where label is not null order by as_of, {keys}",
            params=[bound],
        ).to_arrow_table()


def labelled(features_: pa.Table, labels_: pa.Table, spec: ModelSpec) -> pa.Table:
    """Features of the entities whose label is known, with `label`, sorted by as_of and key."""
    with connect() as connection:
        connection.register("f", features_)
        connection.register("l", labels_)
        keys = quoted(*spec.entity.key, "as_of")
        return connection.sql(
            f"select f.*, l.label from f join (select {keys}, label from l) l using ({keys}) order by {keys}"
        ).to_arrow_table()


def check_leaks(lake: Lake, spec: ModelSpec, dates: Sequence[dt.date], horizon_days: int = 2) -> int:
    """Prove on real rows that no feature sees the future.

    For each as-of date the features are computed on the lake as it is (with `horizon_days` of later partitions in
    sight) and on the lake cut at that midnight; every value must be the same.

    Returns:
        The number of entity rows compared.

    Raises:
        LeakDetected: names the features that differ, with one example.
    """
    compared = 0
    for day in dates:
        later = day + dt.timedelta(days=horizon_days)
        full = features(lake, spec, day, later)
        full = full.filter(pc.equal(full["as_of"], pa.scalar(day, pa.date32())))
        cut = features(lake, spec, day, day, cut=day)
        compared += full.num_rows
        guilty = []
        for name in spec.features:
            # repr() makes NaN equal to itself
            pairs = zip(map(repr, full[name].to_pylist()), map(repr, cut[name].to_pylist()), strict=True)
            different = next(((left, right) for left, right in pairs if left != right), None)
            if different:
                guilty.append(f"{name} (found {different[0]}, known at the time {different[1]})")
        if guilty:
            raise LeakDetected(f"{spec.name}, as of {day}: these features see the future: {'; '.join(guilty)}")
    return compared
