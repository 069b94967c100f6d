"""The steps of `ingest__<source>`: land, validate, publish; and the replay of quarantined rows.

Each takes and returns small JSON-able dicts; rows are staged under `staging/ingest/` between steps.
"""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from include.evergreen.errors import NotFound, PartitionStopped
from include.evergreen.platform import Platform
from include.evergreen.specs import SourceSpec, TableSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.quality.validation import Validation

THREADS = 8
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


def _put(platform: Platform, key: str, rows: pa.Table) -> str:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    platform.objects.put(key, buffer.getvalue())
    return key


def _get(platform: Platform, key: str) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(platform.objects.get(key)))


def land(
    platform: Platform, source: SourceSpec, table: TableSpec, dates: Sequence[dt.date], run_id: str
) -> dict[str, Any]:
    """Keep every delivered file as it is under `raw/`, and stage its rows as text.

    Returns:
        {rows_key, rows, dates, deliveries: [[date, key, etag, sha256, rows]], stopped: {date: reason}}.

    Raises:
        DeliveryMissing: a partition has no file.
    """
    from include.evergreen.quality.deliveries import fetch, read

    deliveries = fetch(platform.landing, table, list(dates))
    known = {info.key for info in platform.objects.list(f"raw/{source.name}/{table.name}/")}

    def keep(delivery: Any) -> None:
        name = delivery.key.rsplit("/", 1)[-1]
        key = f"raw/{source.name}/{table.name}/{delivery.date}/{delivery.sha256[:16]}-{name}"
        if key not in known:
            platform.objects.put(key, delivery.data)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(keep, deliveries))
    rows, stopped = read(deliveries, table)
    per_file = rows["source_file"].combine_chunks().value_counts().to_pylist()
    counted = {item["values"]: item["counts"] for item in per_file}
    listing = [[d.date.isoformat(), d.key, d.etag, d.sha256, counted.get(d.key, 0)] for d in deliveries]
    root = f"staging/ingest/{table.name}/{run_id}"
    deliveries_key = f"{root}/deliveries.json"
    platform.objects.put(deliveries_key, json.dumps(listing).encode(), "application/json")
    return {
        "rows_key": _put(platform, f"{root}/raw.parquet", rows),
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
    """
    from include.evergreen.quality import validation as checks
    from include.evergreen.quality.casting import cast

    days = _dates(staged)
    raw = _get(platform, staged["rows_key"])
    typed = cast(raw, table)
    recent = {days[0]: platform.mart.recent_counts(table.name, days[0], table.row_count.recent_partitions)}
    unreadable = {dt.date.fromisoformat(day): reason for day, reason in staged["stopped"].items()}
    readable = [day for day in days if day not in unreadable]
    result = checks.validate(typed, table, recent, readable)
    parts = _split(raw, typed, table, result)
    root = f"staging/ingest/{table.name}/{run_id}"
    span = staged["first"] if len(days) == 1 else f"{staged['first']}_{staged['last']}"
    facts = {"source": source.name, "table": table.name, "rows_in": raw.num_rows, "run_id": run_id}
    document = checks.document(result, f"{source.name}.{table.name}, {span.replace('_', ' to ')}", facts)
    document["stopped"] |= {day.isoformat(): [reason] for day, reason in unreadable.items()}
    page_key = f"validation/{table.name}/{span}.html"
    platform.objects.put(page_key, checks.page(document), "text/html; charset=utf-8")
    platform.objects.put(
        f"validation/{table.name}/{span}.json", json.dumps(document, default=str).encode(), "application/json"
    )
    return {
        **{k: staged[k] for k in ("first", "last", "deliveries_key", "rows_key")},
        "trusted_key": _put(platform, f"{root}/trusted.parquet", parts["trusted"]),
        "quarantine_key": _put(platform, f"{root}/quarantine.parquet", parts["quarantined"]),
        "duplicates_key": _put(platform, f"{root}/duplicates.parquet", parts["duplicates"].select(["partition_date"])),
        "quarantined": parts["quarantined"].num_rows,
        "stopped": document["stopped"],
        "warnings": list(result.warnings),
        "validation_uri": platform.objects.uri(page_key),
    }


def _split(raw: pa.Table, typed: pa.Table, table: TableSpec, result: Validation) -> dict[str, pa.Table]:
    """Typed rows as trusted (declared and derived columns), quarantined (raw text and reasons), duplicates."""
    import numpy as np
    import pyarrow as pa

    from include.evergreen.quality.accounting import winners

    bad = np.zeros(typed.num_rows, dtype=bool)
    bad[list(result.bad)] = True
    valid = typed.filter(pa.array(~bad))
    won = winners(valid, table.key)
    columns = [*table.columns, *table.derive, *OWN]
    positions = pa.array(np.flatnonzero(bad))
    taken = typed.take(positions)
    # `cast` orders rows by partition, delivery and row: the raw text is put in the same order
    texts = raw.sort_by([("partition_date", "ascending"), ("delivery", "ascending"), ("source_row", "ascending")])
    originals = texts.take(positions).select(list(table.columns)).to_pylist()
    quarantined = pa.table(
        {
            **{name: taken[name] for name in OWN},
            "delivery": taken["delivery"],
            "row": pa.array([json.dumps(row, ensure_ascii=False) for row in originals], pa.string()),
            "reasons": pa.array([list(result.bad[i]) for i in positions.to_pylist()], pa.list_(pa.string())),
        }
    )
    return {
        "trusted": valid.filter(won).select(columns),
        "quarantined": quarantined,
        "duplicates": valid.filter(_not(won)).select(columns),
    }


def _not(mask: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.invert(mask)


def publish(
    platform: Platform, source: SourceSpec, table: TableSpec, validated: dict[str, Any], run_id: str
) -> dict[str, Any]:
    """Publish the partitions that may be: one commit of trusted rows, one of quarantined ones, then the counts.

    Returns:
        {partitions, in, trusted, quarantined, duplicates, snapshot_id, validation_uri}.

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
        rows = _get(platform, validated[key])
        return rows.filter(pc.is_in(rows["partition_date"], keep)) if stopped else rows

    trusted, quarantined, duplicates = (good(key) for key in ("trusted_key", "quarantine_key", "duplicates_key"))
    raw = per_partition(_get(platform, validated["rows_key"]))
    parts = [per_partition(part) for part in (trusted, quarantined, duplicates)]
    counts = {day: Count(raw.get(day, 0), *(part.get(day, 0) for part in parts)) for day in days}
    snapshot = platform.lake.write(f"trusted.{table.name}", trusted, days) if days else None
    if days and (quarantined.num_rows or _holds(platform, f"quarantine.{table.name}", days)):
        platform.lake.write(f"quarantine.{table.name}", quarantined, days)
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
            "snapshot_id": snapshot,
            "run_id": run_id,
        }

    nothing = Count(0, 0, 0, 0)
    platform.mart.record_batches(
        [batch(day, count, "published", validated["warnings"]) for day, count in counts.items()]
        + [batch(day, nothing, "stopped", reasons) for day, reasons in stopped.items()]
    )
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
    }


def _holds(platform: Platform, name: str, days: Sequence[dt.date]) -> bool:
    counts = platform.lake.counts(name)
    return any(counts.get(day) for day in days)


def replay_quarantine(
    platform: Platform, source: SourceSpec, table: TableSpec, since: dt.date, until: dt.date, run_id: str
) -> dict[str, Any]:
    """Validate quarantined rows with today's spec; publish what passes beside the partition's trusted rows.

    Returns:
        {released, kept, duplicates, partitions}. Only row rules are asked: the partition was published already.

    Raises:
        NotFound: the table has no quarantine.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from include.evergreen.lake.ports import PARTITION
    from include.evergreen.quality import validation as checks
    from include.evergreen.quality.accounting import per_partition
    from include.evergreen.quality.casting import cast

    name = f"quarantine.{table.name}"
    held = platform.lake.read(name, since, until)
    totals = {"released": 0, "kept": 0, "duplicates": 0, "partitions": 0}
    for day in sorted(per_partition(held)):
        mine = held.filter(pc.equal(held[PARTITION], pa.scalar(day, pa.date32())))
        originals = [json.loads(row) for row in mine["row"].to_pylist()]
        raw = pa.table(
            {
                **{c: pa.array([row.get(c) for row in originals], pa.string()) for c in table.columns},
                **{c: mine[c] for c in ("source_row", "partition_date", "source_file", "delivery")},
                "delivered_at": mine["available_at"],
            }
        )
        parts = _split(raw, cast(raw, table), table, checks.validate(cast(raw, table), table))
        batch = next((b for b in platform.mart.batches(table.name) if b["partition_date"] == day), None)
        if batch is None:
            raise NotFound(f"{table.name} of {day}: expected a published partition to release rows into, found none")
        passed = pa.concat_tables([parts["trusted"], parts["duplicates"]])
        if not passed.num_rows:
            totals["kept"] += mine.num_rows
            continue
        there = platform.lake.read(f"trusted.{table.name}", day, day)
        keys = {tuple(row.values()) for row in there.select(list(table.key)).to_pylist()}
        fresh = parts["trusted"].filter(
            pa.array(
                [tuple(r.values()) not in keys for r in parts["trusted"].select(list(table.key)).to_pylist()],
                pa.bool_(),
            )
        )
        merged = pa.concat_tables(
            [there.select(fresh.column_names), fresh.cast(there.select(fresh.column_names).schema)]
        )
        snapshot = platform.lake.write(f"trusted.{table.name}", merged, [day])
        platform.lake.write(name, parts["quarantined"], [day])
        repeated = passed.num_rows - fresh.num_rows
        platform.mart.record_batches(
            [
                {
                    **{k: v for k, v in batch.items() if k != "recorded_at"},
                    "trusted": batch["trusted"] + fresh.num_rows,
                    "quarantined": parts["quarantined"].num_rows,
                    "duplicates": batch["duplicates"] + repeated,
                    "snapshot_id": snapshot,
                    "run_id": run_id,
                }
            ]
        )
        platform.mart.append_decision(
            kind="quarantine_release",
            subject=f"{source.name}.{table.name}",
            as_of=day,
            outcome="released",
            reasons=[f"{fresh.num_rows} rows pass today's rules, {parts['quarantined'].num_rows} do not"],
            evidence={"released": fresh.num_rows, "duplicates": repeated, "kept": parts["quarantined"].num_rows},
            actor="replay_quarantine",
            run_id=run_id,
        )
        totals["released"] += fresh.num_rows
        totals["kept"] += parts["quarantined"].num_rows
        totals["duplicates"] += repeated
        totals["partitions"] += 1
    return totals
