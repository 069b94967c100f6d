"""What made a model, by reference: enough to make it again."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from include.evergreen.specs import PROJECT

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
