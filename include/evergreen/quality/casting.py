"""Text to declared types. What does not cast is kept as text beside its null, so that a rule can say what it found."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import SpecError
from include.evergreen.quality.deliveries import DELIVERED, ORDER
from include.evergreen.query import connect, expression, quoted
from include.evergreen.specs import TableSpec

UNCAST = "__not_"
"""`<column>__not_<type>` holds the text that is not of the column's type; null when it is."""

CASTS = {
    "string": "{text}",
    "integer": r"case when regexp_full_match({text}, '[+-]?\d{{1,19}}') then try_cast({text} as bigint) end",
    "number": (
        r"case when regexp_full_match({text}, '[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?') "
        "and isfinite(try_cast({text} as double)) then try_cast({text} as double) end"
    ),
    "boolean": "case when lower({text}) in ('true', 'false', '1', '0') then try_cast({text} as boolean) end",
    # Python, and so Iceberg's readers, know the years 1 to 9999 only
    "date": (
        r"case when regexp_full_match({text}, '\d{{4}}-\d{{2}}-\d{{2}}') and {text} >= '0001' "
        "then try_cast({text} as date) end"
    ),
    # no clock on earth is fifteen hours from UTC
    "timestamp": (
        r"case when regexp_full_match({text}, '\d{{4}}-\d{{2}}-\d{{2}}[T ]\d{{2}}:\d{{2}}.*') and "
        r"not regexp_matches({text}, '[+-](1[5-9]|[2-9]\d)(:?\d\d)?$') and "
        "try_cast({text} as timestamptz) at time zone 'UTC' between '0001-01-01' and '9999-12-31 23:59:59.999999' "
        "then try_cast({text} as timestamptz) at time zone 'UTC' end"
    ),
}

PLACE = {"partition_date": pa.int32(), ORDER: pa.int32(), "source_row": pa.int64()}


def uncast(name: str, table: TableSpec) -> str:
    """Name of the companion column."""
    return f"{name}{UNCAST}{table.columns[name].type}"


def _in_order(raw: pa.Table) -> bool:
    """Whether rows come by partition, delivery and row already, as `deliveries.read` gives them."""
    steps = [np.diff(raw[name].cast(kind).to_numpy()) for name, kind in PLACE.items()]
    later, equal = np.zeros(max(raw.num_rows - 1, 0), dtype=bool), np.ones(max(raw.num_rows - 1, 0), dtype=bool)
    for step in steps:
        later |= equal & (step > 0)
        equal &= step == 0
    return bool((later | equal).all())


def _typed(
    connection: duckdb.DuckDBPyConnection, texts: pa.ChunkedArray, kind: str, known: str
) -> tuple[pa.Array, pa.Array]:
    """A column in its type, and what did not cast; each text is looked at once, however many rows hold it."""
    encoded = texts.combine_chunks().dictionary_encode()
    connection.register("found", pa.table({"found": encoded.dictionary}))
    value = CASTS[kind].format(text="text")
    looked_at = connection.sql(
        f"select {value} as value, case when text is not null and ({value}) is null then text end as left_over "
        f"from (select {known.format('found')} as text from found)"
    ).to_arrow_table()
    return tuple(column.combine_chunks().take(encoded.indices) for column in looked_at.columns)


def cast(raw: pa.Table, table: TableSpec) -> pa.Table:
    """Typed columns, derived columns, companions of what did not cast, and the engine's own columns.

    Args:
        raw: what `deliveries.read` gives.

    Returns:
        The declared columns in their types, the derived ones, `<column>__not_<type>` (string) for each column that is
        no string, and `partition_date`, `available_at` (naive UTC), `source_file`, `source_row`, `__delivery`, in
        order of partition, delivery and row. A derived value that cannot be computed, infinity and NaN are null.

    Raises:
        SpecError: a derived column that DuckDB does not understand.
    """
    null = table.null.replace("'", "''")
    known = f"nullif(nullif({{0}}, '{null}'), '')"
    if table.available.rule == "scheduled":
        minutes = round(table.available.hours_after * 60)
        available = f"partition_date::timestamp + to_minutes({minutes})"
    else:
        available = DELIVERED
    # DuckDB keeps the order of its input
    order = "" if _in_order(raw) else f" order by partition_date, {ORDER}, source_row"
    with connect() as connection:
        columns = {name: raw[name] for name in ("source_row", "partition_date", "source_file", ORDER, DELIVERED)}
        typed, left = [], []
        for name, column in table.columns.items():
            if column.type == "string":
                columns[name] = raw[name]
                typed.append(f"{known.format(quoted(name))} as {quoted(name)}")
            else:
                beside = uncast(name, table)
                columns[name], columns[beside] = _typed(connection, raw[name], column.type, known)
                typed.append(quoted(name))
                left.append(quoted(beside))
        own = f"partition_date, {available} as available_at, source_file, source_row, {ORDER}"
        derived = "".join(
            f', try({expression(connection, text, f"{table.name}: derive.{name}")}) as "{name}"'
            for name, text in table.derive.items()
        )
        connection.register("raw", pa.table(columns))
        query = f"with typed as (select {', '.join([*typed, *left, own])} from raw) select *{derived} from typed{order}"
        try:
            rows = connection.sql(query).to_arrow_table()
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException) as error:
            raise SpecError(
                f"{table.name}: derive: expected DuckDB expressions over its columns, found {table.derive}: {error}"
            ) from error
    for name in table.derive:
        if pa.types.is_floating(rows[name].type):
            finite = pc.if_else(pc.is_finite(rows[name]), rows[name], pa.scalar(None, rows[name].type))
            rows = rows.set_column(rows.column_names.index(name), name, finite)
    return rows
