"""The data dictionary: every view that analysts read, with the meaning and the type of every column.

python -m include.evergreen.mart.dictionary      writes docs/data-dictionary.md and the contracts
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from include.evergreen.errors import EvergreenError
from include.evergreen.mart.views import Definition, common_views, model_views
from include.evergreen.specs import PROJECT, ColumnType, ModelSpec, SourceSpec, models, survey

PAGE = PROJECT / "docs" / "data-dictionary.md"
TYPES: tuple[tuple[type[Any], ColumnType], ...] = (
    (sa.Boolean, "boolean"),
    (sa.Integer, "integer"),
    (sa.Float, "number"),
    (sa.DateTime, "timestamp"),
    (sa.Date, "date"),
    (sa.String, "string"),
)


@dataclass(frozen=True)
class Column:
    """A column as an analyst sees it. `type` is one of a source's column types."""

    name: str
    type: ColumnType
    says: str


@dataclass(frozen=True)
class View:
    """A view as an analyst sees it."""

    name: str
    says: str
    columns: tuple[Column, ...]


def type_name(kind: sa.types.TypeEngine[Any]) -> ColumnType:
    """The plain name of a SQL type."""
    return next(name for known, name in TYPES if isinstance(kind, known))


def _view(definition: Definition) -> View:
    columns = definition.query.selected_columns
    return View(
        definition.name,
        definition.about,
        tuple(Column(str(column.name), type_name(column.type), definition.says_of(column)) for column in columns),
    )


def dictionary(spec: ModelSpec, source: SourceSpec) -> tuple[View, ...]:
    """The views of one model: current, history, outcomes, daily."""
    return tuple(map(_view, model_views(spec, source)))


def common() -> tuple[View, ...]:
    """The views that all models share. They are the same on every database."""
    return tuple(map(_view, common_views(sqlite.dialect())))  # type: ignore[no-untyped-call]


def text(known: Iterable[tuple[ModelSpec, SourceSpec]]) -> str:
    """The page of docs/: Markdown."""
    lines = [
        "# Data dictionary",
        "",
        "Written by `make dictionary` from the specs. How to read the views: [analysts.md](analysts.md).",
    ]
    for spec, source in known:
        lines += ["", f"## {spec.name}", spec.description]
        lines += _tables(dictionary(spec, source))
    return "\n".join([*lines, "", "## All models", "What is about no single model.", *_tables(common()), ""])


def _tables(views: Iterable[View]) -> list[str]:
    def cell(said: str) -> str:
        return said.replace("|", "\\|").replace("\n", " ")

    lines = []
    for view in views:
        lines += ["", f"### {view.name}", cell(view.says) + ".", "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {column.type} | {cell(column.says)} |" for column in view.columns]
    return lines


def pairs() -> list[tuple[ModelSpec, SourceSpec]]:
    """Every model of the project with its source, by name. Raises SpecError."""
    models()  # all of them are sound
    return survey().pairs


def main(page: Path = PAGE) -> int:
    """Write the page and freeze the contracts. Exit code 1 when a contract would break."""
    from include.evergreen.mart import contract

    found = pairs()
    try:
        contract.freeze(contract.COMMON, common())
        for spec, source in found:
            contract.freeze(contract.path(spec.name), dictionary(spec, source))
    except EvergreenError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    page.write_text(text(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
