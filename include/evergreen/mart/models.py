"""The tables of one model: predictions and labels, keyed by its entity."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from include.evergreen.mart.values import SQL_TYPES
from include.evergreen.specs import ModelSpec, SourceSpec


def reason_columns(spec: ModelSpec) -> list[str]:
    """`reason_1` .. `reason_n`, strongest first."""
    return [f"reason_{rank}" for rank in range(1, spec.scoring.reasons + 1)]


def model_tables(spec: ModelSpec, source: SourceSpec) -> tuple[sa.Table, sa.Table]:
    """(predictions, labels) of a model; the keys have the types that the source declares."""
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
