"""DuckDB for SQL of specs: shut, and an expression stays one."""

from __future__ import annotations

from pathlib import Path

import duckdb
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


def test_a_connection_reads_what_is_registered_and_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a\n1\n")
    with connect() as connection:
        for sql in (f"select * from read_csv('{file}')", f"copy (select 1) to '{tmp_path}/y.csv'", "set threads = 4"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
