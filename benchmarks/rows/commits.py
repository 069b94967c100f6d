"""Daily commits to one table: the first, the one after a year of them, and the one after maintenance."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from typing import Any

from benchmarks import data
from benchmarks.side import Side

DAYS = 365
SAMPLES = 5


def engine(side: Side) -> dict[str, Any]:
    """The table exists; every commit writes the schedules of one day, as `ingest` does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schedules = data.history().tables["trusted.schedules"]
    first = dt.date(2013, 1, 1)
    one = schedules.filter(pc.equal(schedules["partition_date"], pa.scalar(first, pa.date32())))
    at = one.column_names.index("partition_date")
    with side.platform() as platform:

        def commit(number: int) -> float:
            day = first + dt.timedelta(days=number)
            rows = one.set_column(at, "partition_date", pa.repeat(pa.scalar(day, pa.date32()), one.num_rows))
            start = time.perf_counter()
            platform.lake.write("trusted.schedules", rows, [day])
            return time.perf_counter() - start

        with side.timed():
            commit(0)  # makes the table
            times = [commit(number) for number in range(1, DAYS + SAMPLES)]
            start = time.perf_counter()
            platform.lake.maintain("trusted.schedules")
            maintained = time.perf_counter() - start
            after = [commit(DAYS + SAMPLES + number) for number in range(SAMPLES)]
        rows = sum(platform.lake.counts("trusted.schedules").values())
    return {
        "rows": rows,
        "first": statistics.median(times[:SAMPLES]),
        "last": statistics.median(times[-SAMPLES:]),
        "after": statistics.median(after),
        "maintain": maintained,
        "every_30": [round(value, 4) for value in times[::30]],
    }


SIDES = {"engine": engine}
