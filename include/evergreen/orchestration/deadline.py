"""When a run is late: counted from its creation.

Airflow's DAGRUN_QUEUED_AT would count anew when a run is cleared; but 3.3.2 then reads the interval as a number where a
mapping is stored, and fails: no run could be cleared while its deadline is pending.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from airflow.sdk.definitions.deadline import BaseDeadlineReference


class RunCreated(BaseDeadlineReference):
    """The moment a run is created. The plugin registers it: the scheduler finds it there."""

    def _evaluate_with(self, *, session: Any, **_: Any) -> dt.datetime:
        return dt.datetime.now(dt.UTC)
