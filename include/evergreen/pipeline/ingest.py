"""The steps of `ingest__<source>`: land, validate, publish; and the replay of quarantined rows.

Each takes and returns small JSON-able dicts; rows are staged under `staging/ingest/` between steps.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from include.evergreen.ahead import ahead
from include.evergreen.alerts.cause import of_stopped_partition
from include.evergreen.errors import AccountingError, DataError, NotFound, PartitionStopped, Refused
from include.evergreen.pipeline import staging
from include.evergreen.platform import Platform
from include.evergreen.specs import SourceSpec, TableSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.quality.typed import Typed

THREADS = 8
LATE_DAYS = 28
"""How far back `publish` looks for deliveries that nobody took in."""
OWN = ("partition_date", "available_at", "source_file", "source_row")
PLACE = ["partition_date", "__delivery", "source_row"]
"""What tells the rows of a batch apart, and their order."""


def due(
    platform: Platform, table: TableSpec, as_of: dt.date, history_from: dt.date | None, source_start: dt.date
) -> list[dt.date]:
    """The partitions that run `as_of` lands: one, or a range from `history_from`.

    Of an `occasional` table: the newest delivery not after `as_of`, when it is not landed yet or has changed.
    """
    from include.evergreen.quality.deliveries import find, newest_date

    last = as_of - dt.timedelta(days=table.lag_days)
    if table.cadence == "occasional":
        newest = newest_date(platform.landing, table, last)
        if newest is None:
            return [last]
        landed = {
            row["partition_date"]: row for row in platform.mart.batches(table.name) if row["status"] == "published"
        }
        etags = [info.etag for info in find(platform.landing, table, newest)]
        known = landed.get(newest)
        return [] if known and [d["etag"] for d in known["deliveries"]] == etags else [newest]
    first = max(history_from or last, source_start)
    return [first + dt.timedelta(days=i) for i in range((last - first).days + 1)]


def arrived(platform: Platform, table: TableSpec, dates: Sequence[dt.date]) -> bool:
    """Whether the last of the partitions has a delivery; true when none is due."""
    from include.evergreen.quality.deliveries import find

    return not dates or bool(find(platform.landing, table, dates[-1]))


def late_deliveries(
    platform: Platform, source: SourceSpec, table: TableSpec, as_of: dt.date, days: int = LATE_DAYS
) -> list[str]:
    """Keys in the landing bucket, of published partitions of the last `days` before run `as_of`, that are not in the
    lake: new files, and files that changed. Running a partition again takes its files in."""
    from include.evergreen.quality.deliveries import dated, prefix

    last = as_of - dt.timedelta(days=table.lag_days)
    first = last - dt.timedelta(days=days)
    taken = {
        batch["partition_date"]: {(d["key"], d["etag"]) for d in batch["deliveries"]}
        for batch in platform.mart.batches(table.name)
        if batch["source"] == source.name
        and batch["status"] == "published"
        and first <= batch["partition_date"] <= last
    }
    if not taken:
        return []
    # keys share characters, not path parts
    under = os.path.commonprefix([prefix(table, min(taken)), prefix(table, max(taken))])  # noqa: RUF071
    return [
        info.key
        for day, info in dated(platform.landing, table, under)
        if day in taken and (info.key, info.etag) not in taken[day]
    ]


def _lock(table: TableSpec) -> str:
    """Publishing and replaying a table exclude each other."""
    return f"ingest-{table.name}"


def land(
    platform: Platform, source: SourceSpec, table: TableSpec, dates: Sequence[dt.date], run_id: str
) -> dict[str, Any]:
    """Keep every delivered file as it is under `raw/`, and stage its rows as text.

    Returns:
        {rows_key, parts, rows, first, last, deliveries_key, stopped: {date: reason}, seen: {date: digest}}; `parts`
        are the rows of each staged part under `rows_key`; `deliveries_key` holds [[date, key, etag, sha256, rows]];
        `seen` is what was published of the partitions before.

    Raises:
        DeliveryMissing: a partition has no file.
    """
    from include.evergreen.quality.deliveries import Reading, check, fetch

    seen = _published(platform, table, dates)
    deliveries = fetch(platform.landing, table, list(dates))
    root = f"raw/{source.name}/{table.name}/"
    shared = os.path.commonprefix([dates[0].isoformat(), dates[-1].isoformat()])  # noqa: RUF071
    known = {info.key for info in platform.objects.list(root + shared)}

    def keep(delivery: Any) -> None:
        name = delivery.key.rsplit("/", 1)[-1]
        key = f"{root}{delivery.date}/{delivery.sha256[:16]}-{name}"
        if key not in known:
            platform.objects.put(key, delivery.data)

    stage = f"staging/ingest/{table.name}/{run_id}"

    def put(reading: Reading) -> list[int]:
        return staging.put_parts(platform, f"{stage}/raw", staging.cut(reading.tables()))

    with ThreadPoolExecutor(THREADS) as pool:
        keeping = [pool.submit(keep, delivery) for delivery in deliveries]
        reading = check(deliveries, table, begin=True)
        try:
            parts = put(reading)
        except DataError:  # a large delivery is not to its end what it began as
            reading = check(deliveries, table)
            parts = put(reading)
        for kept in keeping:
            kept.result()
    listing = [
        [d.date.isoformat(), d.key, d.etag, d.sha256, rows]
        for d, rows in zip(reading.deliveries, reading.counts, strict=True)
    ]
    deliveries_key = f"{stage}/deliveries.json"
    platform.objects.put(deliveries_key, json.dumps(listing).encode(), "application/json")
    return {
        "rows_key": f"{stage}/raw",
        "parts": parts,
        "rows": sum(parts),
        "first": dates[0].isoformat(),
        "last": dates[-1].isoformat(),
        "deliveries_key": deliveries_key,
        "stopped": {day.isoformat(): reason for day, reason in reading.stopped.items()},
        "seen": {day.isoformat(): _contents(listed) for day, listed in seen.items()},
    }


def _published(platform: Platform, table: TableSpec, dates: Sequence[dt.date]) -> dict[dt.date, list[dict[str, Any]]]:
    """The deliveries of those of the partitions that the lake holds."""
    wanted = set(dates)
    return {
        batch["partition_date"]: batch["deliveries"]
        for batch in platform.mart.batches(table.name)
        if batch["partition_date"] in wanted and (batch["status"] == "published" or batch["snapshot_id"] is not None)
    }


def _contents(deliveries: Sequence[dict[str, Any]]) -> str:
    """Which files, with which bytes."""
    listed = sorted(f"{delivery['key']} {delivery['sha256']}" for delivery in deliveries)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


def _not_overtaken(
    platform: Platform, table: TableSpec, mine: dict[dt.date, list[dict[str, Any]]], seen: dict[str, str]
) -> None:
    """A body that was cut off and goes on late takes nothing back that another has published since it read its files.

    For the holder of the lock. Raises Refused: names the partitions.
    """
    late = []
    for day, there in _published(platform, table, list(mine)).items():
        have = {(delivery["key"], delivery["sha256"]) for delivery in mine[day]}
        more = any((delivery["key"], delivery["sha256"]) not in have for delivery in there)
        if more and _contents(there) != seen.get(day.isoformat()):
            late.append(day.isoformat())
    if late:
        raise Refused(
            f"{table.name}: expected nobody to publish {late} since their files were read, found other files published "
            "meanwhile: run the partition again"
        )


def _dates(staged: dict[str, Any]) -> list[dt.date]:
    first, last = dt.date.fromisoformat(staged["first"]), dt.date.fromisoformat(staged["last"])
    return [first + dt.timedelta(days=i) for i in range((last - first).days + 1)]


def validate(
    platform: Platform, source: SourceSpec, table: TableSpec, staged: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Type and validate the staged rows; keep the result as JSON and as a page; stage what is trusted and what is not.

    Returns:
        What `publish` needs, with `validation_uri`, the page. A broken rule raises nothing here.

    Raises:
        SpecError: a rule or a derived column that cannot be evaluated.
    """
    from include.evergreen.quality import validation as checks

    days = _dates(staged)
    recent = platform.mart.recent_counts(table.name, days[0], table.row_count.recent_partitions)
    unreadable = {dt.date.fromisoformat(day): reason for day, reason in staged["stopped"].items()}
    readable = [day for day in days if day not in unreadable]
    root = f"staging/ingest/{table.name}/{run_id}"
    span = staged["first"] if len(days) == 1 else f"{staged['first']}_{staged['last']}"
    facts = {"source": source.name, "table": table.name, "rows_in": sum(staged["parts"]), "run_id": run_id}
    with TemporaryDirectory(prefix="ingest-") as folder:
        typed = _typed(platform, table, staged, Path(folder))
        result = checks.validate(typed, table, recent, readable)
        split = _split_all(platform, table, staged, typed, result.bad, f"{root}/trusted")
    counts_key = f"{root}/counts.json"
    counts = {
        day.isoformat(): [part.get(day, 0) for part in (split.trusted, split.held, split.duplicates)]
        for day in sorted({*split.trusted, *split.held, *split.duplicates})
    }
    platform.objects.put(counts_key, json.dumps(counts).encode(), "application/json")
    document = checks.document(result, f"{source.name}.{table.name}, {span.replace('_', ' to ')}", facts, unreadable)
    page_key = f"validation/{table.name}/{span}.html"
    platform.objects.put(page_key, checks.page(document), "text/html; charset=utf-8")
    platform.objects.put(
        f"validation/{table.name}/{span}.json", json.dumps(document, default=str).encode(), "application/json"
    )
    return {
        **{k: staged[k] for k in ("first", "last", "deliveries_key", "seen")},
        "trusted_key": f"{root}/trusted",
        "trusted_parts": len(staged["parts"]),
        "quarantine_key": staging.put(platform, f"{root}/quarantine.parquet", split.quarantined),
        "counts_key": counts_key,
        "quarantined": split.quarantined.num_rows,
        "stopped": document["stopped"],
        "warnings": list(result.warnings),
        "validation_uri": platform.objects.uri(page_key),
    }


def _typed(platform: Platform, table: TableSpec, staged: dict[str, Any], folder: Path) -> Typed:
    """The staged rows in their types: one part in memory, more as files of `folder`.

    Raises:
        AccountingError: raw and typed rows are not the same rows in the same order.
    """
    from include.evergreen.quality.casting import cast
    from include.evergreen.quality.typed import Typed

    sizes = staged["parts"]

    def one(number: int) -> tuple[pa.Table | Path, Any]:
        raw = staging.get(platform, staging.part(staged["rows_key"], number))
        rows = cast(raw, table)
        _check_order(table, _in_order(raw) if len(sizes) == 1 else raw, rows)
        ends = rows.select(PLACE).take([0, rows.num_rows - 1]).to_pylist() if rows.num_rows else []
        part = rows if len(sizes) == 1 else Typed.keep(rows, sum(sizes[:number]), folder / f"{number:05}.parquet")
        return part, [tuple(row.values()) for row in ends]

    parts, last = [], None
    for part, ends in ahead((partial(one, number) for number in range(len(sizes))), staging.THREADS, "cast"):
        if ends and last is not None and not last < ends[0]:
            raise AccountingError(f"{table.name}: expected rows after {last}, found a part that starts at {ends[0]}")
        last = ends[-1] if ends else last
        parts.append(part)
    return Typed(parts)


@dataclass(frozen=True)
class _Split:
    """Rows per partition of each kind; trusted rows are staged, quarantined ones are here."""

    quarantined: pa.Table
    trusted: dict[dt.date, int]
    held: dict[dt.date, int]
    duplicates: dict[dt.date, int]


def _split_all(
    platform: Platform,
    table: TableSpec,
    staged: dict[str, Any],
    typed: Typed,
    bad: dict[int, tuple[str, ...]],
    key: str,
) -> _Split:
    """Stage the trusted rows, part by part, under `key`; a part may hold other columns too. Raises AccountingError."""
    import numpy as np
    import pyarrow as pa

    from include.evergreen.lake.rows import per_partition
    from include.evergreen.quality.accounting import losers

    lost, at = losers(typed, table.key, bad), np.array(sorted(bad), dtype=np.int64)
    parts = range(len(typed.parts))
    nothing = _split(None, typed.take([]), table, {}, lost[:0])["quarantined"]

    def one(number: int) -> tuple[pa.Table, list[dict[dt.date, int]]]:
        start, end = typed.starts[number], typed.starts[number + 1]
        mine = {int(p - start): bad[int(p)] for p in at[np.searchsorted(at, start) : np.searchsorted(at, end)]}
        gone = lost[np.searchsorted(lost, start) : np.searchsorted(lost, end)] - start
        file = typed.parts[number]
        if isinstance(file, Path) and not mine and not gone.size:
            # all of it is trusted: the file as it is
            platform.objects.put(staging.part(key, number), file.read_bytes(), "application/vnd.apache.parquet")
            return nothing, [per_partition(typed.part(number, ["partition_date"])), {}, {}]
        raw = staging.get(platform, staging.part(staged["rows_key"], number)) if mine else None
        found = _split(raw, typed.part(number), table, mine, gone)
        staging.put(platform, staging.part(key, number), found["trusted"])
        return found["quarantined"], [per_partition(found[name]) for name in ("trusted", "quarantined", "duplicates")]

    quarantined, totals = [], [Counter[dt.date](), Counter[dt.date](), Counter[dt.date]()]
    for held, counts in ahead((partial(one, number) for number in parts), staging.THREADS, "split"):
        quarantined.append(held)
        for total, count in zip(totals, counts, strict=True):
            total.update(count)
    return _Split(pa.concat_tables(quarantined), *(dict(total) for total in totals))


def _split(
    raw: pa.Table | None, typed: pa.Table, table: TableSpec, bad: dict[int, tuple[str, ...]], lost: Any = None
) -> dict[str, pa.Table]:
    """Typed rows as trusted (declared and derived columns), quarantined (raw text and reasons), duplicates.

    Args:
        raw: the text of the rows; needed where one is bad.
        lost: positions of the valid rows that another one of their key replaces; found here unless given.

    Raises:
        AccountingError: raw and typed rows are not the same rows in the same order.
    """
    import numpy as np
    import pyarrow as pa

    from include.evergreen.quality.accounting import losers
    from include.evergreen.quality.deliveries import ORDER
    from include.evergreen.quality.typed import Typed

    lost = losers(Typed([typed]), table.key, bad) if lost is None else lost
    columns = [*table.columns, *table.derive, *OWN]
    at = np.array(sorted(bad), dtype=np.int64)
    taken = typed.select([*OWN, ORDER]).take(pa.array(at))
    originals: list[dict[str, Any]] = []
    if raw is not None:
        texts = _in_order(raw)
        _check_order(table, texts, typed)
        originals = texts.select(list(table.columns)).take(pa.array(at)).to_pylist()
    quarantined = pa.table(
        {
            **{name: taken[name] for name in OWN},
            "delivery": taken[ORDER],
            "row": pa.array([json.dumps(row, ensure_ascii=False) for row in originals], pa.string()),
            "reasons": pa.array([list(bad[i]) for i in at.tolist()], pa.list_(pa.string())),
        }
    )
    kept = np.ones(typed.num_rows, dtype=bool)
    kept[at] = kept[lost] = False
    fit = typed.select(columns)
    return {
        "trusted": fit if kept.all() else fit.filter(pa.array(kept)),
        "quarantined": quarantined,
        "duplicates": fit.take(pa.array(lost, pa.int64())),
    }


def _check_order(table: TableSpec, texts: pa.Table, typed: pa.Table) -> None:
    if not texts.select(PLACE).equals(typed.select(PLACE)):
        raise AccountingError(f"{table.name}: expected typed rows in the order of their text, found another order")


def _in_order(rows: pa.Table) -> pa.Table:
    """Rows as `cast` orders them."""
    return rows.sort_by([(name, "ascending") for name in PLACE])


def publish(
    platform: Platform, source: SourceSpec, table: TableSpec, validated: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Publish the partitions that may be: one commit of trusted rows, one of quarantined ones, then the counts.

    Returns:
        {partitions, in, trusted, quarantined, duplicates, snapshot_id, validation_uri, late}; `late` are deliveries of
        recent partitions that came after their run: run those partitions again.

    Raises:
        PartitionStopped: at least one partition was stopped; the others are published.
        Refused: other files of a partition were published since these were read; nothing is published.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.lake.rows import per_partition
    from include.evergreen.quality.accounting import Count

    stopped = {dt.date.fromisoformat(day): reasons for day, reasons in validated["stopped"].items()}
    days = [day for day in _dates(validated) if day not in stopped]
    keep = pa.array(days, pa.date32())

    # read before the rows, which a run that is cleared replaces: rows may be newer than this, never older
    listing: dict[str, list[dict[str, Any]]] = {}
    for day, key, etag, sha256, rows in json.loads(platform.objects.get(validated["deliveries_key"])):
        listing.setdefault(day, []).append({"key": key, "etag": etag, "sha256": sha256, "rows": rows})

    def good(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows["partition_date"], keep)) if stopped else rows

    quarantined = good(staging.get(platform, validated["quarantine_key"]))
    split = json.loads(platform.objects.get(validated["counts_key"]))
    held = per_partition(quarantined)
    counts: dict[dt.date, Count] = {}
    for day in days:
        rows_in = sum(delivery["rows"] for delivery in listing.get(day.isoformat(), []))
        fit, _, again = split.get(day.isoformat(), (0, 0, 0))
        counts[day] = Count(rows_in, fit, held.get(day, 0), again)

    def trusted() -> Iterator[pa.Table]:
        """The trusted rows, counted on their way."""
        seen: Counter[dt.date] = Counter()
        parts = (staging.part(validated["trusted_key"], number) for number in range(validated["trusted_parts"]))
        columns = [*table.columns, *table.derive, *OWN]
        for rows in ahead((partial(staging.get, platform, key, columns) for key in parts), 1, "publish"):
            fit = good(rows)
            seen.update(per_partition(fit))
            yield fit
        if any(seen[day] != count.trusted for day, count in counts.items()):
            raise AccountingError(f"{table.name}: expected the trusted rows of {counts}, found {dict(seen)}")

    def batch(day: dt.date, count: Count, status: str, reasons: list[str]) -> dict[str, Any]:
        return {
            "table_name": table.name,
            "partition_date": day,
            "source": source.name,
            "status": status,
            "rows_in": count.rows_in,
            "trusted": count.trusted,
            "quarantined": count.quarantined,
            "duplicates": count.duplicates,
            "deliveries": listing.get(day.isoformat(), []),
            "reasons": reasons,
            "validation_uri": validated["validation_uri"],
            "snapshot_id": snapshot if status == "published" else None,
            "run_id": run_id,
        }

    nothing = Count(0, 0, 0, 0)
    with platform.mart.lock(_lock(table)):
        mine = {day: listing.get(day.isoformat(), []) for day in _dates(validated)}
        _not_overtaken(platform, table, mine, validated["seen"])
        snapshot = platform.lake.write(f"trusted.{table.name}", trusted(), days) if days else None
        if days and (quarantined.num_rows or _holds(platform, f"quarantine.{table.name}", days)):
            platform.lake.write(f"quarantine.{table.name}", quarantined, days)
        platform.mart.record_batches(
            [batch(day, count, "published", validated["warnings"]) for day, count in counts.items()]
            + [batch(day, nothing, "stopped", reasons) for day, reasons in stopped.items()]
        )
    _alert(platform, source, table, days, stopped, run_id)
    if stopped:
        said = "\n".join(f"  {day}: {'; '.join(reasons)}" for day, reasons in sorted(stopped.items()))
        raise PartitionStopped(
            f"{source.name}.{table.name}: {len(stopped)} partition(s) stopped, nothing of them is published:\n{said}\n"
            f"The full result: {validated['validation_uri']}"
        )
    return {
        "partitions": len(days),
        "in": sum(c.rows_in for c in counts.values()),
        "trusted": sum(c.trusted for c in counts.values()),
        "quarantined": sum(c.quarantined for c in counts.values()),
        "duplicates": sum(c.duplicates for c in counts.values()),
        "snapshot_id": str(snapshot),
        "validation_uri": validated["validation_uri"],
        "late": late_deliveries(platform, source, table, _dates(validated)[-1] + dt.timedelta(days=table.lag_days)),
    }


def _alert(
    platform: Platform,
    source: SourceSpec,
    table: TableSpec,
    published: Sequence[dt.date],
    stopped: dict[dt.date, list[str]],
    run_id: str,
) -> None:
    """A stopped partition opens the alert about its table; the last one that is published after all ends it."""
    from include.evergreen.alerts.inbox import Inbox

    inbox = Inbox(platform.mart)
    if published and not any(batch["status"] == "stopped" for batch in platform.mart.batches(table.name)):
        by = f"{table.name} of {max(published)} is published, no partition stands stopped"
        inbox.recover(source.name, ["partition_stopped"], None, by, table.name)
    for day, reasons in sorted(stopped.items()):
        inbox.raise_(of_stopped_partition(source.name, table.name, day, reasons, run_id))


def _holds(platform: Platform, name: str, days: Sequence[dt.date]) -> bool:
    counts = platform.lake.counts(name)
    return any(counts.get(day) for day in days)


def replay_quarantine(
    platform: Platform,
    source: SourceSpec,
    table: TableSpec,
    since: dt.date,
    until: dt.date,
    run_id: str,
    actor: str = "replay_quarantine",
) -> dict[str, Any]:
    """Validate quarantined rows with today's spec; publish what passes beside the partition's trusted rows.

    Only row rules are asked: the partition was published already. Of a released and a trusted row with one key the
    later delivery wins, as in a clean run; the other is a duplicate.

    Returns:
        {released, kept, duplicates, partitions}.

    Raises:
        NotFound: the table has no quarantine, or rows are held of a partition that was never published.
        Refused: a partition is stopped; nothing is moved.
    """
    name = f"quarantine.{table.name}"
    with platform.mart.lock(_lock(table)):
        held = platform.lake.read(name, since, until)
        batches = {b["partition_date"]: b for b in platform.mart.batches(table.name)}
        days = sorted(set(held["partition_date"].to_pylist()))
        if unknown := [day.isoformat() for day in days if day not in batches]:
            raise NotFound(f"{table.name}: expected published partitions to release rows into, found none of {unknown}")
        if stopped := [day.isoformat() for day in days if batches[day]["status"] != "published"]:
            raise Refused(f"{table.name}: expected published partitions, found {stopped} stopped: run them again first")
        if days:
            _release(platform, table, held, batches)
        wanted = [batch for day, batch in sorted(batches.items()) if since <= day <= until]
        return _settle(platform, source, table, wanted, run_id, actor)


def _release(platform: Platform, table: TableSpec, held: pa.Table, batches: dict[dt.date, dict[str, Any]]) -> None:
    """Move the quarantined rows that pass today's rules; renew the reasons of the others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.quality.accounting import winners
    from include.evergreen.quality.casting import cast
    from include.evergreen.quality.deliveries import DELIVERED, ORDER
    from include.evergreen.quality.validation import bad_rows

    held = _in_order(held.rename_columns([ORDER if n == "delivery" else n for n in held.column_names]))
    originals = [json.loads(row) for row in held["row"].to_pylist()]
    raw = pa.table(
        {
            **{c: pa.array([row.get(c) for row in originals], pa.string()) for c in table.columns},
            **{c: held[c] for c in ("source_row", "partition_date", "source_file", ORDER)},
            DELIVERED: held["available_at"],
        }
    )
    days = sorted(set(held["partition_date"].to_pylist()))
    there = platform.lake.read(f"trusted.{table.name}", days[0], days[-1])
    there = there.filter(pc.is_in(there["partition_date"], pa.array(days, pa.date32())))
    order = {(day, d["key"]): at for day in days for at, d in enumerate(batches[day]["deliveries"])}
    files = zip(there["partition_date"].to_pylist(), there["source_file"].to_pylist(), strict=True)
    there = there.append_column(ORDER, pa.array([order.get(file, -1) for file in files], pa.int32()))

    typed = cast(raw, table)
    _check_order(table, raw, typed)
    bad = bad_rows(typed, table, there)
    passed = typed.filter(pa.array([i not in bad for i in range(typed.num_rows)], pa.bool_()))
    kept = held.take(pa.array(list(bad), pa.int64()))
    reasons = pa.array([list(found) for found in bad.values()], pa.list_(pa.string()))
    renewed = kept.set_column(kept.column_names.index("reasons"), "reasons", reasons)
    changed = set(passed["partition_date"].to_pylist()) | {
        day
        for day, was, now in zip(
            kept["partition_date"].to_pylist(), kept["reasons"].to_pylist(), reasons.to_pylist(), strict=True
        )
        if was != now
    }
    if not changed:
        return
    wanted = pa.array(sorted(changed), pa.date32())
    columns = [*table.columns, *table.derive, *OWN, ORDER]
    # a row that a run which died had moved already meets itself here, and one of the two wins
    both = pa.concat_tables([there, passed.select(columns)], promote_options="permissive")
    both = _in_order(both.filter(pc.is_in(both["partition_date"], wanted)))
    if passed.num_rows:
        merged = both.filter(winners(both, table.key)).drop_columns([ORDER])
        platform.lake.write(f"trusted.{table.name}", merged, sorted(changed))
    renewed = renewed.filter(pc.is_in(renewed["partition_date"], wanted))
    names = ["delivery" if n == ORDER else n for n in renewed.column_names]
    platform.lake.write(f"quarantine.{table.name}", renewed.rename_columns(names), sorted(changed))


def _settle(
    platform: Platform, source: SourceSpec, table: TableSpec, batches: Sequence[dict[str, Any]], run_id: str, actor: str
) -> dict[str, Any]:
    """Bring counts and ledger to what the lake holds: also what a run that died had moved."""
    from include.evergreen.quality.accounting import Count

    trusted = platform.lake.counts(f"trusted.{table.name}")
    quarantined = platform.lake.counts(f"quarantine.{table.name}")
    totals = {"released": 0, "kept": 0, "duplicates": 0, "partitions": 0}
    for batch in batches:
        day = batch["partition_date"]
        good, left = trusted.get(day, 0), quarantined.get(day, 0)
        totals["kept"] += left
        if batch["status"] != "published" or left >= batch["quarantined"]:
            continue
        count = Count(batch["rows_in"], good, left, batch["rows_in"] - good - left)
        released, repeated = good - batch["trusted"], count.duplicates - batch["duplicates"]
        if released < 0 or repeated < 0:
            raise AccountingError(f"{table.name} of {day}: expected released rows beside {batch}, found {count}")
        platform.mart.append_decision(
            kind="quarantine_release",
            subject=f"{source.name}.{table.name}",
            as_of=day,
            outcome="released",
            reasons=[f"{released + repeated} rows pass today's rules, {left} do not"],
            evidence={"released": released, "duplicates": repeated, "kept": left},
            actor=actor,
            run_id=run_id,
        )
        platform.mart.record_batches(
            [
                {
                    **{k: v for k, v in batch.items() if k != "recorded_at"},
                    "trusted": count.trusted,
                    "quarantined": count.quarantined,
                    "duplicates": count.duplicates,
                    "snapshot_id": platform.lake.snapshot(f"trusted.{table.name}"),
                    "run_id": run_id,
                }
            ]
        )
        totals["released"] += released
        totals["duplicates"] += repeated
        totals["partitions"] += 1
    return totals
