"""The ledger, and the champions that its decisions made."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from include.evergreen.mart.database import Database
from include.evergreen.mart.schema import champions, ledger
from include.evergreen.mart.values import now, row_of, same


class Decisions(Database):
    """Decisions and champions."""

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
        with self.writing(f"ledger {kind} {subject} {as_of}") as connection:
            row = connection.execute(query).one_or_none()
            if row is None and once_a_date:
                newest = connection.execute(of_date.order_by(c.id.desc()).limit(1)).one_or_none()
                said = {"outcome": outcome, "reasons": list(reasons), "evidence": evidence}
                if newest is not None and same(ledger, row_of(newest), said):
                    return row_of(newest)
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
                        decided_at=now(),
                    )
                )
                row = connection.execute(query).one()
            return row_of(row)

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
        return self.listed(query if until is None else query.where(c.as_of <= until))

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
            "promoted_at": now(),
        }
        with self.writing(f"champions {model}") as connection:
            return self.record(connection, champions, values)

    def champion_at(self, model: str, as_of: dt.date) -> tuple[int, dt.date] | None:
        """(version, effective_from) of the champion in force at a date."""
        c = champions.c
        query = sa.select(c.version, c.effective_from).where(c.model == model, c.effective_from <= as_of)
        with self.reading() as connection:
            row = connection.execute(query.order_by(c.effective_from.desc()).limit(1)).one_or_none()
        return None if row is None else (row.version, row.effective_from)

    def champion_history(self, model: str) -> list[dict[str, Any]]:
        """Champions by effective_from, oldest first."""
        return self.listed(sa.select(champions).where(champions.c.model == model).order_by(champions.c.effective_from))
