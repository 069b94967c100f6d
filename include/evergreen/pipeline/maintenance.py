"""Upkeep of the lake: tables stay quick and small, staging does not grow."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from include.evergreen.lake.ports import Upkeep, newest

if TYPE_CHECKING:
    from include.evergreen.platform import Platform

STAGING = "staging/"


def maintain_lake(
    platform: Platform, keep_snapshots: int = 10, staging_days: int = 3, now: dt.datetime | None = None
) -> list[Upkeep]:
    """Maintain every table, then delete staging objects older than `staging_days`. Changes no row; safe to repeat.

    Args:
        keep_snapshots: newest snapshots kept per table; tagged ones stay whatever their age.
        now: aware timestamp; by default what the newest staging object tells of the store's clock.

    Returns:
        One entry per table by name, and a last one for the staging objects.

    Raises:
        Unavailable: a dependency is down; what was done stays done.
    """
    done = [platform.lake.maintain(table, keep_snapshots) for table in platform.lake.tables()]
    staged = platform.objects.list(STAGING)
    oldest = (now or newest(staged)) - dt.timedelta(days=staging_days)
    stale = [item for item in staged if item.modified < oldest]
    if stale:
        platform.objects.delete([item.key for item in stale])
    size, freed = sum(item.size for item in staged), sum(item.size for item in stale)
    name = platform.objects.uri(STAGING)
    return [*done, Upkeep(name, len(staged), len(staged) - len(stale), 0, size, size - freed)]
