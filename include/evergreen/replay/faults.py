"""Faults of known date, as an upstream or a deployment would bring them: in delivered files, or in the model's spec."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.evergreen.specs import ModelSpec, SourceSpec, TableSpec

if TYPE_CHECKING:
    from include.evergreen.lake.ports import ObjectStore

Row = dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What goes wrong from `first` to `last`.

    Attributes:
        says: one sentence.
        table, change: how each row of that table's files of these dates is changed; None leaves the files alone.
        copies: how often a file is delivered. late_days: how many days after its date; the dates are partitions.
        spec: the spec as it is from `first` on; None leaves it alone.
        harmless: the pipeline absorbs it: nothing is to be detected.
    """

    name: str
    says: str
    first: dt.date
    last: dt.date
    table: str | None = None
    change: Callable[[Row], Row] | None = None
    copies: int = 1
    late_days: int = 0
    spec: Callable[[ModelSpec], ModelSpec] | None = None
    harmless: bool = False

    def covers(self, day: dt.date) -> bool:
        return self.first <= day <= self.last


def spoil(landing: ObjectStore, source: SourceSpec, fault: Fault) -> dict[dt.date, dict[str, bytes]]:
    """Change the landed files that the fault is about. Returns what is held back: arrival date -> {key: bytes}."""
    held: dict[dt.date, dict[str, bytes]] = {}
    for table in source.tables.values():
        if table.cadence != "daily" or fault.table not in (None, table.name):
            continue
        day = fault.first
        while day <= fault.last:
            key = table.path.format(date=day)
            data = landing.get(key)
            if fault.change is not None:
                data = _changed(data, table, fault.change)
                landing.put(key, data)
            for copy in range(1, fault.copies):
                landing.put(key.replace(f"{day}", f"{day}-again-{copy}", 1), data)
            if fault.late_days:
                landing.delete([key])
                held.setdefault(day + dt.timedelta(days=fault.late_days), {})[key] = data
            day += dt.timedelta(days=1)
    return held


def _changed(data: bytes, table: TableSpec, change: Callable[[Row], Row]) -> bytes:
    text = gzip.decompress(data).decode() if table.path.endswith(".gz") else data.decode()
    rows = list(csv.DictReader(io.StringIO(text), delimiter=table.delimiter))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=table.delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(change, rows))
    encoded = out.getvalue().encode()
    return gzip.compress(encoded, 6, mtime=0) if table.path.endswith(".gz") else encoded


def shifted(name: str, amount: float, first: dt.date) -> Callable[[ModelSpec], ModelSpec]:
    """A spec whose feature `name` is `amount` higher for as-of dates from `first` on."""

    def change(spec: ModelSpec) -> ModelSpec:
        moved = f"case when as_of >= timestamp '{first}' then {name} + {amount!r} else {name} end as {name}"
        return spec.model_copy(update={"sql": f"select * replace ({moved}) from ({spec.sql})"})

    return change


def flipped(first: dt.date, last: dt.date, day: str) -> Callable[[ModelSpec], ModelSpec]:
    """A spec whose label is turned round for the dates `first` to `last` of the column `day`."""

    def change(spec: ModelSpec) -> ModelSpec:
        turned = f"(({spec.label.expression}) != ({day} between date '{first}' and date '{last}'))"
        return spec.model_copy(update={"label": spec.label.model_copy(update={"expression": turned})})

    return change
