"""When a channel is told of an alert: pure. What it was told is kept beside the alert, so that nothing is said twice.

An alert is told at its opening, as a reminder while it stays open and nobody took it, and at its end if its opening was
told. A message that did not arrive is tried again by whoever comes next. What a clock that ran ahead has written holds
nothing up: a moment that has not come yet was never.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from include.evergreen.health.facts import Alert

Said = Literal["opened", "reminder", "recovered"]

RETRY = dt.timedelta(seconds=60)
"""How long a try counts as under way, and a dead channel is left alone."""
WINDOW = dt.timedelta(seconds=60)
BURST = 5
"""Messages that one channel takes within the window; what comes then goes out together in a later one."""


@dataclass(frozen=True)
class Told:
    """What one channel knows of an alert: `said` last, at `at`. `tried_at`: of a message not known to have arrived."""

    said: Said | None = None
    at: dt.datetime | None = None
    tried_at: dt.datetime | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Told:
        """From the JSON that `write` gives."""

        def moment(name: str) -> dt.datetime | None:
            return dt.datetime.fromisoformat(stored[name]) if stored.get(name) else None

        return cls(stored.get("said"), moment("at"), moment("tried_at"))

    def write(self) -> dict[str, Any]:
        return {
            "said": self.said,
            "at": self.at.isoformat() if self.at else None,
            "tried_at": self.tried_at.isoformat() if self.tried_at else None,
        }


@dataclass(frozen=True)
class Due:
    """An alert that a channel is to be told of."""

    alert: Alert
    said: Said


def due(alert: Alert, told: Told, now: dt.datetime, remind: dt.timedelta) -> Said | None:
    """What a channel is to be told of an alert at `now`; None: nothing, or somebody is at it."""
    if told.tried_at is not None and lately(told.tried_at, now, RETRY):
        return None
    if alert.resolved_at is not None:
        return "recovered" if told.said in ("opened", "reminder") else None
    taken = alert.acknowledged_at is not None or (alert.snoozed_until is not None and now < alert.snoozed_until)
    if told.said is None:
        return None if taken else "opened"
    again = told.at is not None and (now - told.at >= remind or told.at - now > RETRY)
    return "reminder" if not taken and again else None


def lately(moment: dt.datetime, now: dt.datetime, span: dt.timedelta) -> bool:
    """Whether `moment` is less than `span` ago; another machine's clock may be as much ahead."""
    return abs(now - moment) < span
