"""The inbox: alerts in the mart, one row per cause and episode. Repeats are folded into it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from include.evergreen.alerts.cause import MAX_SUBJECT, Occurrence, Severity, cause_key, fit
from include.evergreen.alerts.delivery import BURST, WINDOW, Due, Said, Told, due, lately
from include.evergreen.errors import NotFound, Refused
from include.evergreen.health.facts import Alert
from include.evergreen.mart.schema import alert_occurrences, alerts, ledger
from include.evergreen.mart.store import Mart
from include.evergreen.mart.values import now as clock
from include.evergreen.mart.values import row_of

MAX_NOTE = 2_000
TELL_DAYS = 7
"""How long after its end a channel is still told of it."""
FIELDS = [field.name for field in fields(Alert)]
ALONE = "alerts"


@dataclass(frozen=True)
class Change:
    """What an occurrence did to the inbox. `unchanged`: it was counted before, or newer things are known."""

    kind: Literal["opened", "repeated", "unchanged"]
    alert: Alert | None


def _alert(row: dict[str, Any]) -> Alert:
    return Alert(**{name: row[name] for name in FIELDS})


def _newest(row: dict[str, Any]) -> dt.date | None:
    """The newest as-of date that an alert knows of: of an occurrence, or of its end."""
    return max((day for day in (row["as_of"], row["resolved_as_of"]) if day), default=None)


class Inbox:
    """Alerts of a mart. Every change is one transaction; all methods raise what the mart raises.

    Everything is dates, not arrivals: what is about an earlier as-of date than the newest one known of a cause neither
    opens nor ends anything, unless it `stands`. What has no as-of date counts as it comes.
    """

    def __init__(self, mart: Mart, now: Callable[[], dt.datetime] = clock) -> None:
        self.mart = mart
        self._now = now

    # --- what happens ------------------------------------------------------------------------------------------------

    def raise_(self, occurrence: Occurrence) -> Change:
        """Open an alert, or fold the occurrence into the open one of its cause.

        The same (cause, run, as-of date) counts once, whatever happened since; what `stands` opens again once it was
        repaired.
        """
        a, o = alerts.c, alert_occurrences.c
        cause, day = occurrence.cause, occurrence.as_of
        key = {"cause": cause, "run_id": occurrence.run_id, "dated": day.isoformat() if day else ""}
        moment = self._now()
        with self.mart.writing(ALONE) as connection:
            newest = connection.execute(
                sa.select(alerts).where(a.cause == cause).order_by(a.id.desc()).limit(1)
            ).one_or_none()
            known = row_of(newest) if newest else None
            same = [o[name] == value for name, value in key.items()]
            seen = connection.scalar(sa.select(o.alert_id).where(*same))
            if seen is not None:
                told = self._get(connection, seen)
                if told.resolved_at is None or not occurrence.stands:
                    return Change("unchanged", told)
                connection.execute(sa.delete(alert_occurrences).where(*same))  # repaired, and broken again
            limit = _newest(known) if known else None
            earlier = bool(known and day and limit and day < limit)
            if known and earlier and not occurrence.stands:
                return Change("unchanged", _alert(known))
            values = {
                "severity": occurrence.severity,
                "what": occurrence.what,
                "as_of": day,
                "link": occurrence.link,
                "runbook": occurrence.runbook,
                "last_seen_at": moment,
                "run_id": occurrence.run_id,
            }
            if known and known["resolved_at"] is None:
                number = int(known["id"])
                if day is None or earlier:
                    del values["as_of"]
                connection.execute(sa.update(alerts).where(a.id == number).values(**values, seen=a.seen + 1))
            else:
                opening: dict[str, Any] = {
                    "cause": cause,
                    "subject": occurrence.subject,
                    "kind": occurrence.kind,
                    "since": day,
                    "seen": 1,
                    "opened_at": moment,
                    "told": {},
                }
                inserted = connection.execute(sa.insert(alerts).values(**values, **opening)).inserted_primary_key
                number = int(inserted[0]) if inserted else 0
            connection.execute(sa.insert(alert_occurrences).values(**key, alert_id=number))
            repeated = known is not None and known["id"] == number
            return Change("repeated" if repeated else "opened", self._get(connection, number))

    def recover(
        self, subject: str, kinds: Sequence[str], as_of: dt.date | None, by: str, part: str | None = None
    ) -> list[Alert]:
        """End the open alerts of these kinds that are not newer than `as_of`, and return them.

        Args:
            by: what ended them, one sentence.
            part: only those about this part of the subject; None for all.
        """
        a = alerts.c
        wanted = [a.subject == fit(subject, MAX_SUBJECT), a.kind.in_(kinds), a.resolved_at.is_(None)]
        if as_of is not None:
            wanted.append(sa.or_(a.as_of.is_(None), a.as_of <= as_of))
        if part is not None:
            wanted.append(a.cause.in_([cause_key(subject, kind, part) for kind in kinds]))
        if not kinds:
            return []
        if not self._rows(sa.select(alerts).where(*wanted).limit(1)):
            return []  # the usual case takes no lock
        with self.mart.writing(ALONE) as connection:
            ended = list(connection.scalars(sa.select(a.id).where(*wanted).order_by(a.id)))
            connection.execute(
                sa.update(alerts)
                .where(a.id.in_(ended))
                .values(resolved_at=self._now(), resolution=fit(by, MAX_NOTE), resolved_as_of=as_of)
            )
            return [self._get(connection, number) for number in ended]

    # --- what people do ----------------------------------------------------------------------------------------------

    def acknowledge(self, number: int, who: str, note: str = "") -> Alert:
        """`who` takes an alert: no reminder of it is sent. In the ledger as an `acknowledgement`.

        Pressed twice it is one decision.

        Raises:
            NotFound: no such alert. Refused: it has ended, `who` is empty, or the note is too long.
        """
        name, said = self._person(who, note)

        def change(row: dict[str, Any]) -> dict[str, Any] | None:
            if (row["acknowledged_by"], row["note"] or "") == (name, said):
                return None
            return {"acknowledged_by": name, "acknowledged_at": self._now(), "note": said or None}

        return self._decide(number, name, said, "acknowledged", {}, change)

    def snooze(self, number: int, who: str, until: dt.datetime, note: str = "") -> Alert:
        """No reminder of an alert before `until`; its end is told all the same. In the ledger as an `acknowledgement`.

        Raises:
            NotFound: no such alert. Refused: as `acknowledge`; `until` has no time zone or is over.
        """
        name, said = self._person(who, note)
        if until.tzinfo is None or until <= self._now():
            raise Refused(f"until: expected a time to come, with its zone, found {until.isoformat()}")
        until = until.astimezone(dt.UTC)

        def change(row: dict[str, Any]) -> dict[str, Any] | None:
            if (row["snoozed_until"], row["note"] or "") == (until, said):
                return None
            return {"snoozed_until": until, "note": said or None}

        return self._decide(number, name, said, "snoozed", {"until": until}, change)

    @staticmethod
    def _person(who: str, note: str) -> tuple[str, str]:
        name, said = fit(who, MAX_SUBJECT), note.replace("\x00", "").strip()
        if not name:
            raise Refused("who: expected the name of a person, found none")
        if len(said) > MAX_NOTE:
            raise Refused(f"note: expected at most {MAX_NOTE} characters, found {len(said)}")
        return name, said

    def _decide(
        self,
        number: int,
        who: str,
        note: str,
        outcome: str,
        evidence: dict[str, Any],
        change: Callable[[dict[str, Any]], dict[str, Any] | None],
    ) -> Alert:
        c = ledger.c
        with self.mart.writing(ALONE) as connection:
            row = self._row(connection, number)
            values = change(row)
            if values is None:
                return _alert(row)
            if row["resolved_at"] is not None:
                raise Refused(f"alert {number}: expected an open one, found it ended: {row['resolution']}")
            connection.execute(sa.update(alerts).where(alerts.c.id == number).values(**values))
            mine = (c.kind == "acknowledgement", c.subject == row["subject"], c.run_id.like(f"alert-{number}-%"))
            count = connection.scalar(sa.select(sa.func.count()).select_from(ledger).where(*mine)) or 0
            connection.execute(
                sa.insert(ledger).values(
                    kind="acknowledgement",
                    subject=row["subject"],
                    as_of=row["as_of"] or row["opened_at"].date(),
                    outcome=outcome,
                    reasons=[note or f"{outcome} without a note"],
                    evidence={"alert": number, "cause": row["cause"], "what": row["what"], **evidence},
                    actor=who,
                    run_id=f"alert-{number}-{count + 1}",
                    decided_at=self._now(),
                )
            )
            return self._get(connection, number)

    # --- reading -----------------------------------------------------------------------------------------------------

    def get(self, number: int) -> Alert:
        """One alert. Raises NotFound."""
        with self.mart.reading() as connection:
            return self._get(connection, number)

    def open(self, subject: str | None = None) -> list[Alert]:
        """Open alerts: those that wake somebody first, then the newest."""
        a = alerts.c
        query = sa.select(alerts).where(a.resolved_at.is_(None))
        query = query if subject is None else query.where(a.subject == fit(subject, MAX_SUBJECT))
        return self._alerts(query.order_by(a.severity, a.opened_at.desc(), a.id.desc()))

    def count_open(self) -> int:
        """How many are open."""
        with self.mart.reading() as connection:
            query = sa.select(sa.func.count()).select_from(alerts).where(alerts.c.resolved_at.is_(None))
            return int(connection.scalar(query) or 0)

    def history(self, subject: str | None = None, limit: int = 50, before: int | None = None) -> list[Alert]:
        """Alerts, open or not, newest first. `before`: only those with a lower id, for the next page."""
        a = alerts.c
        query = sa.select(alerts).order_by(a.id.desc()).limit(limit)
        query = query if subject is None else query.where(a.subject == fit(subject, MAX_SUBJECT))
        return self._alerts(query if before is None else query.where(a.id < before))

    def tells_of(self, subject: str, run_id: str, kinds: Sequence[str]) -> bool:
        """Whether an open alert of these kinds holds an occurrence that this run saw."""
        a, o = alerts.c, alert_occurrences.c
        query = sa.select(a.id).join(alert_occurrences, o.alert_id == a.id)
        with self.mart.reading() as connection:
            mine = (o.run_id == run_id, a.subject == fit(subject, MAX_SUBJECT), a.kind.in_(kinds))
            found = connection.scalar(query.where(*mine, a.resolved_at.is_(None)).limit(1))
        return found is not None

    # --- telling -----------------------------------------------------------------------------------------------------

    def claim(
        self,
        channel: str,
        remind: dt.timedelta,
        severities: Iterable[Severity] = ("page", "warn"),
        burst: int | None = BURST,
    ) -> list[Due]:
        """What `channel` is to be told now, all of it, taken by the caller: `settle` says whether it arrived.

        Of callers at the same moment one gets it. Nothing while the channel has had `burst` messages within `WINDOW`.
        """
        a, moment = alerts.c, self._now()
        recent = sa.and_(a.told_at.is_not(None), a.resolved_at > moment - dt.timedelta(days=TELL_DAYS))
        query = sa.select(alerts).where(sa.or_(a.resolved_at.is_(None), recent)).order_by(a.severity, a.id)
        if not self._due(self._rows(query), channel, moment, remind, set(severities)):
            return []  # the usual case takes no lock
        with self.mart.writing(ALONE) as connection:
            rows = [row_of(row) for row in connection.execute(query)]
            found = self._due(rows, channel, moment, remind, set(severities))
            sent = {
                Told.read(row["told"].get(channel, {})).at
                for row in rows
                if row["told_at"] and row["told_at"] > moment - WINDOW
            }
            if burst is not None and len([at for at in sent if at and lately(at, moment, WINDOW)]) >= burst:
                return []
            for row in rows:
                if row["id"] in found:
                    before = Told.read(row["told"].get(channel, {}))
                    self._tell(connection, row, channel, Told(before.said, before.at, tried_at=moment))
            return [Due(_alert(row), found[row["id"]]) for row in rows if row["id"] in found]

    def settle(self, channel: str, told: Sequence[Due], arrived: bool) -> None:
        """Keep that a claimed message arrived; one that did not is due again after `delivery.RETRY`."""
        if not arrived:
            return
        moment = self._now()
        with self.mart.writing(ALONE) as connection:
            for one in told:
                row = self._row(connection, one.alert.id)
                self._tell(connection, row, channel, Told(one.said, at=moment), told_at=moment)

    @staticmethod
    def _due(
        rows: Sequence[dict[str, Any]], channel: str, now: dt.datetime, remind: dt.timedelta, severities: set[Severity]
    ) -> dict[int, Said]:
        found = {
            row["id"]: due(_alert(row), Told.read(row["told"].get(channel, {})), now, remind)
            for row in rows
            if row["severity"] in severities
        }
        return {number: said for number, said in found.items() if said}

    @staticmethod
    def _tell(connection: sa.Connection, row: dict[str, Any], channel: str, told: Told, **values: Any) -> None:
        known = {**row["told"], channel: told.write()}
        connection.execute(sa.update(alerts).where(alerts.c.id == row["id"]).values(told=known, **values))

    # --- rows --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _row(connection: sa.Connection, number: int) -> dict[str, Any]:
        row = connection.execute(sa.select(alerts).where(alerts.c.id == number)).one_or_none()
        if row is None:
            raise NotFound(f"alert {number}: expected it in the inbox, found none")
        return row_of(row)

    def _get(self, connection: sa.Connection, number: int) -> Alert:
        return _alert(self._row(connection, number))

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self.mart.reading() as connection:
            return [row_of(row) for row in connection.execute(query)]

    def _alerts(self, query: sa.Select[Any]) -> list[Alert]:
        return [_alert(row) for row in self._rows(query)]
