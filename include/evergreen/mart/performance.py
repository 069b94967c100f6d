"""Verdicts of monitoring, and what matured cohorts measured."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from include.evergreen.mart.database import Database
from include.evergreen.mart.schema import cohorts, monitorings
from include.evergreen.mart.values import known, now, same


class Performance(Database):
    """Verdicts and cohorts."""

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
            "recorded_at": now(),
        }
        with self.writing(f"monitorings {model}") as connection:
            return self.record(connection, monitorings, values)

    def monitorings(self, model: str, until: dt.date | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """Verdicts with as_of <= `until`, newest first."""
        c = monitorings.c
        query = sa.select(monitorings).where(c.model == model).order_by(c.as_of.desc()).limit(limit)
        return self.listed(query if until is None else query.where(c.as_of <= until))

    def record_cohorts(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Upsert cohorts by (model, as_of, version) and return the stored rows, in the order given.

        Keys are columns of `cohorts` but first_*, revisions and recorded_at. A cohort whose figures are unchanged, and
        one that a later run has measured, is left alone. A changed one keeps its first figures and counts a revision.
        """
        given = [{name: known(value) for name, value in row.items()} for row in rows]
        if not given:
            return []
        with self.writing("cohorts") as connection:
            return [self._record_cohort(connection, row) for row in given]

    def _record_cohort(self, connection: sa.Connection, row: dict[str, Any]) -> dict[str, Any]:
        stored = self.stored(connection, cohorts, row)
        if stored is None:
            first = {f"first_{name}": row[name] for name in ("measured_on", "matured_rows", "auc", "brier")}
            return self.record(connection, cohorts, {**row, **first, "revisions": 0, "recorded_at": now()})
        figures = {name: value for name, value in row.items() if name != "measured_on"}
        if row["measured_on"] < stored["measured_on"] or same(cohorts, stored, figures):
            return stored
        changed = {"revisions": stored["revisions"] + 1, "recorded_at": now()}
        return self.record(connection, cohorts, {**stored, **row, **changed})

    def cohorts(self, model: str, since: dt.date | None = None, until: dt.date | None = None) -> list[dict[str, Any]]:
        """Cohorts with `since` <= as_of <= `until`, by as_of and version."""
        c = cohorts.c
        query = sa.select(cohorts).where(c.model == model).order_by(c.as_of, c.version)
        query = query if since is None else query.where(c.as_of >= since)
        return self.listed(query if until is None else query.where(c.as_of <= until))
