"""DuckDB for SQL of specs: shut, and an expression stays one."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from include.evergreen.errors import SpecError
from include.evergreen.query import connect, expression, quoted, statements


@pytest.mark.parametrize(
    "text",
    ["a > 15", "true", "(select max(a) from t)", "case when a in (1, 2) then 'x' end", "sum(a) over ()", "/* why */ 1"],
)
def test_one_expression_is_taken_in_brackets(text: str) -> None:
    with connect() as connection:
        assert expression(connection, text, "label") == f"({text})"


@pytest.mark.parametrize(
    "text",
    [
        "1) as x, (2",
        "1) from t where (true",
        "1) where (false",
        "1) limit (0",
        "1) union all select (2",
        "true --",
        "1; select 2",
        "1); drop table t; select (1",
        "a as b",
        "a b",
        "'",
        "(",
    ],
)
def test_more_or_less_than_one_expression_is_refused(text: str) -> None:
    with connect() as connection, pytest.raises(SpecError, match="label: expected one DuckDB expression, found"):
        expression(connection, text, "label")


def test_statements_are_queries() -> None:
    with connect() as connection:
        assert len(statements(connection, "select 1; select 2;")) == 2
        with pytest.raises(SpecError, match="expected a DuckDB query"):
            statements(connection, "drop table t")


def test_names_are_quoted() -> None:
    assert quoted("a", "order") == '"a", "order"'


def test_connections_share_no_table() -> None:
    with connect() as one, connect() as other:
        one.register("rows", pa.table({"x": [1]}))
        one.execute("create temp table kept as select * from rows")
        for name in ("rows", "kept"):
            assert one.sql(f"select x from {name}").fetchall() == [(1,)]
            with pytest.raises(duckdb.CatalogException):
                other.sql(f"select x from {name}")
        other.register("rows", pa.table({"x": [2]}))
        assert one.sql("select x from rows").fetchall() == [(1,)]
        assert other.sql("select current_setting('timezone')").fetchall() == [("UTC",)]


def test_a_fork_opens_a_database_of_its_own() -> None:
    with connect() as connection:
        connection.sql("select sum(range) from range(1000000)").fetchall()
    child = os.fork()
    if not child:
        with connect() as connection:
            found = connection.sql("select sum(range) from range(1000000)").fetchall()
        os._exit(0 if found == [(499999500000,)] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_connection_reads_what_is_registered_and_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a\n1\n")
    with connect() as connection:
        for sql in (f"select * from read_csv('{file}')", f"copy (select 1) to '{tmp_path}/y.csv'", "set threads = 4"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
