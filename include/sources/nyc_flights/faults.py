"""Faults that this upstream could deliver, for the time machine: each on 10 June 2013 or from then on."""

from __future__ import annotations

import datetime as dt

from include.evergreen.replay.faults import Fault, Row, flipped, shifted

DATE = dt.date(2013, 6, 10)
WEEK = dt.timedelta(days=6)
KILOMETRES = 1.609344
HALF_A_DEVIATION = 0.079
"""Of `carrier_late_7d` before June 2013."""


def _kilometres(row: Row) -> Row:
    return {**row, "distance": str(round(int(row["distance"]) * KILOMETRES))}


def _no_plane(row: Row) -> Row:
    return {**row, "tailnum": "NA"}


FAULTS = (
    Fault(
        "shifted-feature",
        "carrier_late_7d half a standard deviation too high, for good",
        DATE,
        dt.date.max,
        spec=shifted("carrier_late_7d", HALF_A_DEVIATION, DATE),
    ),
    Fault("kilometres", "distance in kilometres for a week", DATE, DATE + WEEK, table="schedules", change=_kilometres),
    Fault("null-flood", "no tail number on one day", DATE, DATE, table="schedules", change=_no_plane),
    Fault("twice", "every file of one day delivered twice", DATE, DATE, copies=2, harmless=True),
    Fault("late", "every file of one day three days late", DATE, DATE, late_days=3),
    Fault(
        "flipped-labels",
        "labels turned round for a week",
        DATE,
        DATE + WEEK,
        spec=flipped(DATE, DATE + WEEK, "flight_date"),
    ),
)
