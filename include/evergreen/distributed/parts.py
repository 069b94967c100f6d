"""What workers read from the lake bucket: parts of rows, and a model under its checksum."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from include.evergreen.distributed.cluster import objects
from include.evergreen.errors import ChecksumMismatch
from include.evergreen.training.bundle import FILES, ModelBundle

if TYPE_CHECKING:
    import pyarrow as pa


def read(key: str) -> pa.Table:
    """A staged part. Raises NotFound, Unavailable."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(objects().get(key)))


def share(store: Any, bundle: ModelBundle, prefix: str) -> str:
    """Put a bundle where workers find it; hands the prefix back. Raises Unavailable."""
    for name, data in bundle.files().items():
        store.put(f"{prefix}/{name}", data)
    return prefix


@lru_cache(maxsize=4)
def bundle_at(prefix: str, sha256: str) -> ModelBundle:
    """The bundle under a prefix, once per worker. Raises ChecksumMismatch before a byte of it is loaded, NotFound,
    Unavailable."""
    store = objects()
    found = ModelBundle.from_files({name: store.get(f"{prefix}/{name}") for name in FILES})
    if found.sha256 != sha256:
        raise ChecksumMismatch(f"{prefix}/model.ubj: expected SHA-256 {sha256}, found {found.sha256}")
    return found
