"""What made a model, by reference: enough to make it again."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from include.evergreen.specs import PROJECT

if TYPE_CHECKING:
    import pyarrow as pa

LIBRARIES = ("apache-airflow", "duckdb", "evidently", "great-expectations", "mlflow", "numpy", "pandas", "pyarrow",
             "pyiceberg", "scikit-learn", "xgboost-cpu")  # fmt: skip


def library_versions() -> dict[str, str]:
    """Installed versions of what can change a model's bytes or numbers, and of Python."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def code_version(project: Path = PROJECT) -> str:
    """`EVERGREEN_CODE_VERSION` where a deployment sets it (a commit), else a hash of the engine's source."""
    if named := os.environ.get("EVERGREEN_CODE_VERSION"):
        return named
    digest = hashlib.sha256()
    for path in sorted((project / "include" / "evergreen").rglob("*.py")):
        digest.update(path.relative_to(project).as_posix().encode() + b"\0" + path.read_bytes())
    return f"source-sha256:{digest.hexdigest()[:16]}"


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of a table's columns (names, types, order) and values (in row order).

    What carries no meaning does not count: chunks, schema metadata, the way that nulls are laid out. Raises TypeError
    for a nested column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.sha256(f"{table.num_rows} rows".encode())
    for field in table.schema:
        column = table[field.name]
        digest.update(f"\0{field.name}\0{field.type}\0".encode())
        digest.update(pc.is_valid(column).to_numpy().tobytes())
        present = column.drop_null()
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            digest.update(pc.binary_length(present).to_numpy().astype("int64").tobytes())
            for chunk in present.cast(pa.large_string()).chunks:
                _, offsets, data = chunk.buffers()
                if len(chunk) and data is not None:
                    bounds = memoryview(offsets).cast("q")
                    digest.update(data[bounds[chunk.offset] : bounds[chunk.offset + len(chunk)]])
        elif pa.types.is_primitive(field.type):
            values = present.to_numpy()
            if pa.types.is_floating(field.type):
                values = values + values.dtype.type(0)  # -0.0 is 0.0
                values[values != values] = float("nan")  # of the many NaNs one
            digest.update(values.tobytes())
        else:
            raise TypeError(f"{field.name}: expected a column of plain values, found {field.type}")
    return digest.hexdigest()
