"""Rows between two steps of a run: Parquet under `staging/`, which `maintain_lake` clears."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from include.evergreen.platform import Platform


def put(platform: Platform, key: str, rows: pa.Table) -> str:
    """Stage rows under `key`, and hand the key back. Raises Unavailable."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    platform.objects.put(key, buffer.getvalue(), "application/vnd.apache.parquet")
    return key


def get(platform: Platform, key: str) -> pa.Table:
    """The rows staged under `key`. Raises NotFound, Unavailable."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(platform.objects.get(key)))
