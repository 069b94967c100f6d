"""Wait for a delivery without holding a worker."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.evergreen.errors import DeliveryMissing


def _arrived(source: str, table: str, dates: list[str]) -> bool:
    from include.evergreen.orchestration.connections import platform
    from include.evergreen.pipeline.ingest import arrived
    from include.evergreen.specs import sources

    return arrived(platform(), sources()[source].tables[table], [dt.date.fromisoformat(day) for day in dates])


class DeliveryTrigger(BaseTrigger):
    """Fires once every partition of `dates` has a delivery."""

    def __init__(self, source: str, table: str, dates: list[str], poke_seconds: float) -> None:
        super().__init__()
        self.source, self.table, self.dates, self.poke_seconds = source, table, dates, poke_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__name__}",
            {"source": self.source, "table": self.table, "dates": self.dates, "poke_seconds": self.poke_seconds},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while not await asyncio.to_thread(_arrived, self.source, self.table, self.dates):
            await asyncio.sleep(self.poke_seconds)
        yield TriggerEvent("arrived")


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
        from include.evergreen.specs import sources

        spec = sources()[self.source]
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
            self.defer(
                trigger=DeliveryTrigger(self.source, self.table, wanted, self.poke_seconds),
                method_name="resume",
                kwargs={"dates": wanted},
                timeout=dt.timedelta(minutes=self.wait_minutes),
            )
        return wanted

    def resume(self, context: Any, event: str | None = None, dates: list[str] | None = None) -> list[str]:
        """Called by the triggerer's event. Raises DeliveryMissing."""
        if event != "arrived":
            raise DeliveryMissing(
                f"{self.source}.{self.table}: expected files for {dates} within {self.wait_minutes} minutes, found none"
            )
        return dates or []
