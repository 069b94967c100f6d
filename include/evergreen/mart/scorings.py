"""Scorings of partitions, their rows, and what happened to the entities."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from include.evergreen.mart.database import Database
from include.evergreen.mart.models import reason_columns
from include.evergreen.mart.schema import scorings
from include.evergreen.mart.values import chunks, dumps, naive, now, sql_type, utc
from include.evergreen.specs import ModelSpec


def _digest(rows: pa.Table) -> str:
    """SHA-256 of rows in key order, by value."""
    sha = hashlib.sha256()
    for chunk in chunks(rows):
        sha.update(dumps([list(record.values()) for record in chunk]).encode())
    return sha.hexdigest()


def _stated(
    fact: dict[str, Any], stored: dict[str, Any] | None, shown: int | None, reason: str | None
) -> dict[str, Any]:
    """`fact` with its restatement: it took the place of the version shown, or of other rows of its own."""
    kept = stored or {}
    known = ("digest",) if kept.get("digest") else ("rows", "mean_probability")
    changed = stored is not None and any(fact[name] != stored[name] for name in known)
    if shown is not None and shown != fact["version"]:
        why = f"version {fact['version']} in place of version {shown}"
    elif changed:
        why = f"other inputs of version {fact['version']}"
    elif stored is not None:
        return {**stored, **{name: fact[name] for name in ("is_current", "decision_rate", "digest")}}
    else:
        return {**fact, "restated_at": None, "restated_reason": None}
    return {**fact, "restated_at": now(), "restated_reason": reason or why}


class Scorings(Database):
    """Scorings and labels."""

    def publish_scoring(
        self,
        spec: ModelSpec,
        as_of: dt.date,
        version: int,
        predictions: pa.Table,
        snapshot_id: int | None,
        run_id: str,
        scored_at: dt.datetime | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        """Replace the rows of (as_of, version) and make them the current scoring, in one transaction.

        Args:
            predictions: the entity key, `as_of`, `probability`, `decision`, `reason_1..n`, `model_version`.
            scored_at: used at the first scoring of (as_of, version) only; now by default.
            reason: kept as `restated_reason` when these rows take the place of others.

        Returns:
            The row of `scorings`; `restated_at` is null for a first scoring, and a rerun leaves it.
        """
        keys = [*spec.entity.key, "as_of"]
        rows = predictions.select([*keys, "probability", "decision", *reason_columns(spec), "model_version"]).sort_by(
            [(name, "ascending") for name in keys]
        )
        table = sa.table(
            f"{spec.name}_predictions",
            *(sa.column(field.name, sql_type(field.type)) for field in rows.schema),
            sa.column("scored_at", sa.DateTime(timezone=True)),
        )
        c = scorings.c
        partition = (c.model == spec.name, c.as_of == as_of)
        fact: dict[str, Any] = {
            "model": spec.name,
            "as_of": as_of,
            "version": version,
            "is_current": True,
            "rows": rows.num_rows,
            "mean_probability": pc.mean(rows["probability"]).as_py() or 0.0,
            "decision_rate": pc.mean(rows["decision"].cast(pa.int8())).as_py() or 0.0,
            "digest": _digest(rows),
            "snapshot_id": snapshot_id,
            "run_id": run_id,
        }
        with self.writing(f"scorings {spec.name} {as_of}") as connection:
            stored = self.stored(connection, scorings, fact)
            shown = connection.scalar(sa.select(c.version).where(*partition, c.is_current))
            fact["scored_at"] = utc(stored["scored_at"] if stored else scored_at or now())
            connection.execute(sa.delete(table).where(table.c.as_of == as_of, table.c.model_version == version))
            insert = sa.insert(table)
            for chunk in chunks(rows):
                for record in chunk:
                    record["scored_at"] = fact["scored_at"]
                connection.execute(insert, chunk)
            connection.execute(
                sa.update(scorings).where(*partition, c.version != version, c.is_current).values(is_current=False)
            )
            return self.record(connection, scorings, _stated(fact, stored, shown, reason))

    def scoring(self, model: str, as_of: dt.date) -> dict[str, Any] | None:
        """The current scoring of a partition."""
        c = scorings.c
        found = self.listed(sa.select(scorings).where(c.model == model, c.as_of == as_of, c.is_current))
        return found[0] if found else None

    def scorings(self, model: str) -> list[dict[str, Any]]:
        """Every scoring, by as_of and version."""
        c = scorings.c
        return self.listed(sa.select(scorings).where(c.model == model).order_by(c.as_of, c.version))

    def newest_scored(self, model: str) -> dt.date | None:
        """The newest as-of date that a model was scored for."""
        with self.reading() as connection:
            found: dt.date | None = connection.scalar(
                sa.select(sa.func.max(scorings.c.as_of)).where(scorings.c.model == model)
            )
        return found

    def write_labels(self, spec: ModelSpec, labels: pa.Table) -> int:
        """Upsert what happened, by entity key and as_of. Returns the number of labels given.

        Args:
            labels: the entity key, `as_of`, `label` (bool), `known_at` (naive UTC timestamp).
        """
        keys = [*spec.entity.key, "as_of"]
        rows = labels.select([*keys, "label", "known_at"])
        table = sa.table(f"{spec.name}_labels", *(sa.column(f.name, sql_type(f.type)) for f in rows.schema))
        statement = self.insert(table)
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
        with self.writing(f"labels {spec.name}") as connection:
            # most labels are known already: reading them is ten times as fast as offering each again
            stored = {tuple(naive(value) for value in row) for row in connection.execute(known)}
            for chunk in chunks(rows):
                new_ones = [record for record in chunk if tuple(map(naive, record.values())) not in stored]
                if new_ones:
                    connection.execute(statement, new_ones)
        return int(rows.num_rows)
