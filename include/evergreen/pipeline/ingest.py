"""The steps of `ingest__<source>`: land, validate, publish; and the replay of quarantined rows.

Each takes and returns small JSON-able dicts; rows are staged under `staging/ingest/` between steps.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from include.evergreen.alerts.cause import of_stopped_partition
from include.evergreen.errors import AccountingError, NotFound, PartitionStopped, Refused
from include.evergreen.pipeline import staging
from include.evergreen.platform import Platform
from include.evergreen.specs import SourceSpec, TableSpec

if TYPE_CHECKING:
    import pyarrow as pa

THREADS = 8
LATE_DAYS = 28
"""How far back `publish` looks for deliveries that nobody took in."""
OWN = ("partition_date", "available_at", "source_file", "source_row")


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
        {rows_key, rows, first, last, deliveries_key, stopped: {date: reason}}; `deliveries_key` holds
        [[date, key, etag, sha256, rows]].

    Raises:
        DeliveryMissing: a partition has no file.
    """
    from include.evergreen.quality.deliveries import fetch, read

    deliveries = fetch(platform.landing, table, list(dates))
    root = f"raw/{source.name}/{table.name}/"
    shared = os.path.commonprefix([dates[0].isoformat(), dates[-1].isoformat()])  # noqa: RUF071
    known = {info.key for info in platform.objects.list(root + shared)}

    def keep(delivery: Any) -> None:
        name = delivery.key.rsplit("/", 1)[-1]
        key = f"{root}{delivery.date}/{delivery.sha256[:16]}-{name}"
        if key not in known:
            platform.objects.put(key, delivery.data)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(keep, deliveries))
    rows, stopped = read(deliveries, table)
    per_file = rows["source_file"].combine_chunks().value_counts().to_pylist()
    counted = {item["values"]: item["counts"] for item in per_file}
    listing = [[d.date.isoformat(), d.key, d.etag, d.sha256, counted.get(d.key, 0)] for d in deliveries]
    stage = f"staging/ingest/{table.name}/{run_id}"
    deliveries_key = f"{stage}/deliveries.json"
    platform.objects.put(deliveries_key, json.dumps(listing).encode(), "application/json")
    return {
        "rows_key": staging.put(platform, f"{stage}/raw.parquet", rows),
        "rows": rows.num_rows,
        "first": dates[0].isoformat(),
        "last": dates[-1].isoformat(),
        "deliveries_key": deliveries_key,
        "stopped": {day.isoformat(): reason for day, reason in stopped.items()},
    }


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
    from include.evergreen.quality.casting import cast

    days = _dates(staged)
    raw = staging.get(platform, staged["rows_key"])
    typed = cast(raw, table)
    recent = platform.mart.recent_counts(table.name, days[0], table.row_count.recent_partitions)
    unreadable = {dt.date.fromisoformat(day): reason for day, reason in staged["stopped"].items()}
    readable = [day for day in days if day not in unreadable]
    result = checks.validate(typed, table, recent, readable)
    parts = _split(raw, typed, table, result.bad)
    root = f"staging/ingest/{table.name}/{run_id}"
    span = staged["first"] if len(days) == 1 else f"{staged['first']}_{staged['last']}"
    facts = {"source": source.name, "table": table.name, "rows_in": raw.num_rows, "run_id": run_id}
    document = checks.document(result, f"{source.name}.{table.name}, {span.replace('_', ' to ')}", facts, unreadable)
    page_key = f"validation/{table.name}/{span}.html"
    platform.objects.put(page_key, checks.page(document), "text/html; charset=utf-8")
    platform.objects.put(
        f"validation/{table.name}/{span}.json", json.dumps(document, default=str).encode(), "application/json"
    )
    return {
        **{k: staged[k] for k in ("first", "last", "deliveries_key", "rows_key")},
        "trusted_key": staging.put(platform, f"{root}/trusted.parquet", parts["trusted"]),
        "quarantine_key": staging.put(platform, f"{root}/quarantine.parquet", parts["quarantined"]),
        "duplicates_key": staging.put(
            platform, f"{root}/duplicates.parquet", parts["duplicates"].select(["partition_date"])
        ),
        "quarantined": parts["quarantined"].num_rows,
        "stopped": document["stopped"],
        "warnings": list(result.warnings),
        "validation_uri": platform.objects.uri(page_key),
    }


def _split(raw: pa.Table, typed: pa.Table, table: TableSpec, bad: dict[int, tuple[str, ...]]) -> dict[str, pa.Table]:
    """Typed rows as trusted (declared and derived columns), quarantined (raw text and reasons), duplicates.

    Raises:
        AccountingError: raw and typed rows are not the same rows in the same order.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.quality.accounting import winners
    from include.evergreen.quality.deliveries import ORDER

    mask = np.zeros(typed.num_rows, dtype=bool)
    mask[list(bad)] = True
    valid = typed.filter(pa.array(~mask))
    won = winners(valid, table.key)
    columns = [*table.columns, *table.derive, *OWN]
    positions = pa.array(np.flatnonzero(mask))
    taken = typed.take(positions)
    texts = _in_order(raw)
    _check_order(table, texts, typed)
    originals = texts.take(positions).select(list(table.columns)).to_pylist()
    quarantined = pa.table(
        {
            **{name: taken[name] for name in OWN},
            "delivery": taken[ORDER],
            "row": pa.array([json.dumps(row, ensure_ascii=False) for row in originals], pa.string()),
            "reasons": pa.array([list(bad[i]) for i in positions.to_pylist()], pa.list_(pa.string())),
        }
    )
    return {
        "trusted": valid.filter(won).select(columns),
        "quarantined": quarantined,
        "duplicates": valid.filter(pc.invert(won)).select(columns),
    }


def _check_order(table: TableSpec, texts: pa.Table, typed: pa.Table) -> None:
    from include.evergreen.quality.deliveries import ORDER

    place = ["partition_date", ORDER, "source_row"]
    if not texts.select(place).equals(typed.select(place)):
        raise AccountingError(f"{table.name}: expected typed rows in the order of their text, found another order")


def _in_order(rows: pa.Table) -> pa.Table:
    """Rows as `cast` orders them."""
    from include.evergreen.quality.deliveries import ORDER

    return rows.sort_by([("partition_date", "ascending"), (ORDER, "ascending"), ("source_row", "ascending")])


def publish(
    platform: Platform, source: SourceSpec, table: TableSpec, validated: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Publish the partitions that may be: one commit of trusted rows, one of quarantined ones, then the counts.

    Returns:
        {partitions, in, trusted, quarantined, duplicates, snapshot_id, validation_uri, late}; `late` are deliveries of
        recent partitions that came after their run: run those partitions again.

    Raises:
        PartitionStopped: at least one partition was stopped; the others are published.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.quality.accounting import Count, per_partition

    stopped = {dt.date.fromisoformat(day): reasons for day, reasons in validated["stopped"].items()}
    days = [day for day in _dates(validated) if day not in stopped]
    keep = pa.array(days, pa.date32())

    def good(key: str) -> pa.Table:
        rows = staging.get(platform, validated[key])
        return rows.filter(pc.is_in(rows["partition_date"], keep)) if stopped else rows

    trusted, quarantined, duplicates = (good(key) for key in ("trusted_key", "quarantine_key", "duplicates_key"))
    raw = per_partition(staging.get(platform, validated["rows_key"]))
    parts = [per_partition(part) for part in (trusted, quarantined, duplicates)]
    counts = {day: Count(raw.get(day, 0), *(part.get(day, 0) for part in parts)) for day in days}
    listing: dict[str, list[dict[str, Any]]] = {}
    for day, key, etag, sha256, rows in json.loads(platform.objects.get(validated["deliveries_key"])):
        listing.setdefault(day, []).append({"key": key, "etag": etag, "sha256": sha256, "rows": rows})

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
        snapshot = platform.lake.write(f"trusted.{table.name}", trusted, days) if days else None
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
