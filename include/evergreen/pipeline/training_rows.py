"""The labelled rows of a training between its steps: one staged table, or parts of what is too much for memory."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from include.evergreen.pipeline import staging
from include.evergreen.platform import Platform
from include.evergreen.specs import ModelSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.training.bundle import ModelBundle
    from include.evergreen.training.rows import Stored

PART_ROWS = 65_536
"""Rows of a part: what one read, and one task of a Dask cluster, takes."""
WINDOWS = 8
"""The features of a window take at most this part of `training.memory_mb`, unless they are of one day: the query needs
room too."""
Window = tuple[dt.date, dt.date]
"""First and last date."""


def windows(platform: Platform, spec: ModelSpec, since: dt.date, until: dt.date) -> list[Window]:
    """How the dates from `since` to `until` are built: in one go, or so many days at a time where the features are
    beyond `training.memory_mb`. The lake's manifests say how many entities there are."""
    from include.evergreen.training.fit import VALUE_BYTES, is_large

    counts = platform.lake.counts(f"trusted.{spec.entity.table}")
    counts = {day: rows for day, rows in counts.items() if since <= day <= until}
    if not is_large(spec, sum(counts.values())):
        return [(since, until)]
    most = spec.training.memory_mb * 1024 * 1024 / WINDOWS / (len(spec.features) * VALUE_BYTES)
    found, first, held = [], since, 0
    for day, rows in sorted(counts.items()):
        if held and held + rows > most:
            found.append((first, day - dt.timedelta(days=1)))
            first, held = day, 0
        held += rows
    return [*found, (first, until)]


def stage(
    platform: Platform,
    spec: ModelSpec,
    cut: dt.date,
    snapshots: dict[str, int],
    prefix: str,
    planned: Sequence[Window],
) -> dict[str, Any]:
    """Build the labelled rows from pinned snapshots, window by window, and stage them under `prefix`.

    Returns:
        {rows_key, rows, rows_sha256, windows}. One window of a local training: `rows_key` is a Parquet file, `windows`
        null, the digest the rows'. Else `rows_key` is a JSON list of parts, and the digest is of the windows' digests.
    """
    from include.evergreen.features.build import features, labelled, labels
    from include.evergreen.training.lineage import rows_digest

    in_parts = len(planned) > 1 or spec.compute == "dask"
    parts: list[dict[str, Any]] = []
    digests = []
    for first, last in planned:
        rows = labelled(
            features(platform.lake, spec, first, last, snapshots=snapshots),
            labels(platform.lake, spec, first, last, cut=cut, snapshots=snapshots),
            spec,
        )
        digests.append(rows_digest(rows))
        if not in_parts:
            key = staging.put(platform, f"{prefix}/rows.parquet", rows)
            return {"rows_key": key, "rows": rows.num_rows, "rows_sha256": digests[0], "windows": None}
        last_one = (first, last) == tuple(planned[-1])
        for start in range(0, rows.num_rows or int(last_one and not parts), PART_ROWS):  # at least one part, if empty
            part = rows.slice(start, PART_ROWS)
            key = staging.put(platform, f"{prefix}/rows/{len(parts):06}.parquet", part)
            parts.append({"key": key, "rows": part.num_rows})
    key = f"{prefix}/rows.json"
    platform.objects.put(key, json.dumps(parts).encode(), "application/json")
    return {
        "rows_key": key,
        "rows": sum(part["rows"] for part in parts),
        "rows_sha256": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        "windows": [[first.isoformat(), last.isoformat()] for first, last in planned],
    }


def part_keys(platform: Platform, rows_key: str) -> list[str]:
    """The Parquet objects of staged rows, in order. Raises NotFound, Unavailable."""
    if not rows_key.endswith(".json"):
        return [rows_key]
    return [part["key"] for part in json.loads(platform.objects.get(rows_key))]


@contextmanager
def local(platform: Platform, rows_key: str) -> Iterator[Stored]:
    """The staged rows on local disk, gone after the block. Raises NotFound, Unavailable."""
    with fetched(platform.objects, part_keys(platform, rows_key)) as rows:
        yield rows


@contextmanager
def fetched(objects: Any, keys: Sequence[str]) -> Iterator[Stored]:
    """Parquet objects on local disk, gone after the block. Raises NotFound, Unavailable."""
    from include.evergreen.training.rows import Stored
    from include.evergreen.training.scratch import scratch

    with scratch() as folder:
        paths = [folder / f"{number:06}.parquet" for number in range(len(keys))]
        for key, path in zip(keys, paths, strict=True):
            path.write_bytes(objects.get(key))
        yield Stored(paths)


def compared(
    platform: Platform, spec: ModelSpec, rows_key: str, trained_until: dt.date
) -> tuple[pa.Table, pa.Table | None]:
    """What `evaluate` needs: all rows and None; of rows in parts only those after `trained_until`, and of all rows what
    the baseline is made from."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not rows_key.endswith(".json"):
        return staging.get(platform, rows_key), None
    by = spec.gate.baseline_by
    with local(platform, rows_key) as rows:
        fresh = rows.only(pc.greater(rows["as_of"], pa.scalar(trained_until, pa.date32()))).table()
        return fresh, rows.table(["as_of", "label", *([by] if by else [])])


def fit(
    platform: Platform,
    spec: ModelSpec,
    rows_key: str,
    as_of: dt.date,
    overrides: dict[str, Any] | None,
    prefix: str,
) -> ModelBundle:
    """Train on staged rows, here or on the Dask cluster. `prefix`: where a cluster's workers find what they share.

    Raises:
        NotEnoughData, NotFound, Unavailable. SettingsError: `compute: dask` without an address.
    """
    if spec.compute == "dask":
        from include.evergreen.distributed.training import fit as on_cluster

        return on_cluster(platform, spec, part_keys(platform, rows_key), as_of, overrides, prefix)
    from include.evergreen.training.fit import fit as here

    with local(platform, rows_key) as rows:
        return here(spec, rows, as_of, overrides)
