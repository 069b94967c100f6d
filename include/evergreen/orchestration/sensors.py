"""Wait for a delivery without holding a worker."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.evergreen.errors import DeliveryMissing, SettingsError, Unavailable

GRACE = dt.timedelta(minutes=10)
"""Past the wait: only then does Airflow itself give a silent trigger up."""


def _arrived(source: str, table: str, dates: list[str]) -> bool:
    from include.evergreen.orchestration.connections import platform
    from include.evergreen.pipeline.ingest import arrived
    from include.evergreen.specs import source as spec_of

    return arrived(platform(), spec_of(source).tables[table], [dt.date.fromisoformat(day) for day in dates])


class DeliveryTrigger(BaseTrigger):
    """Fires `arrived` once the partitions have their delivery, or `timeout` at `until` (seconds since the epoch).

    An object store that does not answer is asked again; it fails the wait only when it is still silent at `until`. So
    is an Airflow that finds no connection: its own database may be away.
    """

    def __init__(
        self, source: str, table: str, dates: list[str], poke_seconds: float, until: float | None = None
    ) -> None:
        super().__init__()
        self.source, self.table, self.dates, self.poke_seconds = source, table, dates, poke_seconds
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("source", "table", "dates", "poke_seconds", "until")
        return f"{type(self).__module__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    def arrived(self) -> bool:
        """Whether the delivery is there. Raises Unavailable."""
        return _arrived(self.source, self.table, self.dates)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            silent = None
            try:
                if await asyncio.to_thread(self.arrived):
                    yield TriggerEvent("arrived")
                    return
            except (Unavailable, SettingsError) as error:
                silent = error
                self.log.warning("cannot look for %s yet: %s", self.table, error)
            left = math.inf if self.until is None else self.until - time.time()
            if left <= 0:
                if silent:
                    raise silent
                yield TriggerEvent("timeout")
                return
            await asyncio.sleep(min(self.poke_seconds, left))


class DeliverySensor(BaseSensorOperator):
    """Succeeds at once when the delivery is there, else defers to the triggerer until the timeout.

    Args:
        table: table name; may come from a mapped task group.
    """

    template_fields = ("table",)

    def __init__(self, *, source: str, table: str, wait_minutes: float, poke_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source, self.table = source, table
        self.wait_minutes, self.poke_seconds = wait_minutes, poke_seconds

    def execute(self, context: Any) -> list[str]:
        from include.evergreen.orchestration.connections import platform
        from include.evergreen.orchestration.runs import as_of, params
        from include.evergreen.pipeline.ingest import due
        from include.evergreen.specs import source

        spec = source(self.source)
        since = params().get("history_from")
        dates = due(
            platform(),
            spec.tables[self.table],
            as_of(),
            dt.date.fromisoformat(since) if since else None,
            spec.start_date,
        )
        wanted = [day.isoformat() for day in dates]
        if not _arrived(self.source, self.table, wanted):
            self.log.info("waiting up to %s minutes for %s of %s", self.wait_minutes, self.table, wanted[-1])
            wait = dt.timedelta(minutes=self.wait_minutes)
            until = time.time() + wait.total_seconds()
            self.defer(
                trigger=DeliveryTrigger(self.source, self.table, wanted, self.poke_seconds, until),
                method_name="resume",
                kwargs={"dates": wanted},
                timeout=wait + GRACE,  # a timeout of Airflow's own would not say what is missing
            )
        return wanted

    def resume(self, context: Any, event: str | None = None, dates: list[str] | None = None) -> list[str]:
        """Called by the triggerer's event. Raises DeliveryMissing."""
        if event != "arrived":
            raise DeliveryMissing(
                f"{self.source}.{self.table}: expected files for {dates} within {self.wait_minutes} minutes, found none"
            )
        return dates or []
