"""Score one partition on a Dask cluster: its rows in parts, mapped over the workers. Nothing is committed there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.evergreen.distributed.cluster import connected, watched, workers
from include.evergreen.distributed.parts import bundle_at, read, share
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.platform import Platform

PARTS_A_WORKER = 4
"""At least: a slow worker then holds up less."""


def _scored(spec: ModelSpec, key: str, prefix: str, sha256: str, version: int) -> pa.Table:
    import pyarrow as pa

    from include.evergreen.scoring.score import score_batches

    return pa.Table.from_batches(score_batches(bundle_at(prefix, sha256), read(key).to_batches(), spec, version))


def score(
    platform: Platform, bundle: ModelBundle, rows: pa.Table, spec: ModelSpec, version: int, prefix: str
) -> pa.Table:
    """`score_batches` of all rows, in their order. A part whose worker dies is scored by another one.

    Args:
        prefix: where rows and model are shared with the workers.

    Raises:
        SchemaMismatch, DataError, ChecksumMismatch. Unavailable: no scheduler, or no worker. SettingsError.
    """
    import pyarrow as pa

    from include.evergreen.pipeline import staging

    with connected(platform.settings.dask) as client:
        most = -(-rows.num_rows // (PARTS_A_WORKER * len(workers(client))))
        size = max(1, min(spec.scoring.batch_rows, most))
        shared = share(platform.objects, bundle, f"{prefix}/model")
        keys = [
            staging.put(platform, f"{prefix}/rows/{number:06}.parquet", rows.slice(start, size))
            for number, start in enumerate(range(0, rows.num_rows, size))
        ]

        def scored() -> list[pa.Table]:
            tasks = [client.submit(_scored, spec, key, shared, bundle.sha256, version, pure=False) for key in keys]
            found: list[pa.Table] = client.gather(tasks)
            return found

        return pa.concat_tables(watched(client, scored))
