"""The DAG folder in a fresh process: all files, and the file of one task alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.side import Side

PROJECT = Path(__file__).resolve().parents[2]
PARSE = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
start = time.perf_counter()
bag = DagBag(dag_folder=sys.argv[1])
spent = time.perf_counter() - start
print(json.dumps({"seconds": spent, "dags": len(bag.dags), "errors": bag.import_errors}))
"""
SERIALISE = PARSE.replace(
    "spent =",
    "from airflow.serialization.serialized_objects import DagSerialization\n"
    "kept = [DagSerialization.to_dict(dag) for dag in bag.dags.values()]\nspent =",
)
"""As a DAG processor does with a file, up to the database."""
MODEL = "model_000"


def project(root: Path, models: int) -> Path:
    """A copy of the project with that many models on the source of the example."""
    import yaml

    pycache = shutil.ignore_patterns("__pycache__")
    for name in ("dags", "include"):
        shutil.copytree(PROJECT / name, root / name, ignore=pycache)
    example = root / "include/models/flight_delay"
    spec = yaml.safe_load((example / "model.yaml").read_text(encoding="utf-8"))
    for number in range(models):
        folder = example.with_name(f"model_{number:03d}")
        shutil.copytree(example, folder)
        (folder / "model.yaml").write_text(yaml.safe_dump({**spec, "name": folder.name}), encoding="utf-8")
    shutil.rmtree(example)
    return root


def _parse(root: Path, what: Path, only: str | None = None, program: str = PARSE) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(root), "AIRFLOW_HOME": str(root / "home")}
    # the bound is the row's: a file that takes too long is measured, not given up
    env |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "0", "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600"}
    if only:
        env["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = only
    argv = [sys.executable, "-c", program, str(what)]
    done = subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise RuntimeError(str(found["errors"]))
    return found


def every(side: Side) -> dict[str, Any]:
    """All files, `scale` models."""
    root = project(side.folder / "project", side.scale)
    _parse(root, root / "dags")  # compiles the bytecode, makes Airflow's files
    return _timed(side, lambda: _parse(root, root / "dags"))


def _timed(side: Side, parse: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a process says of itself is the time; the load is that of its life."""
    with side.timed():
        found = parse()
    side.seconds, side.peak_mib = found["seconds"], 0
    return {"dags": found["dags"]}


def files(side: Side) -> dict[str, Any]:
    """File by file, each in a process of its own, parsed and serialised: a loop of the DAG processor."""
    root = project(side.folder / "project", side.scale)
    paths = sorted((root / "dags").glob("*.py"))
    _parse(root, root / "dags", program=SERIALISE)
    with side.timed():
        found = {path.name: _parse(root, path, program=SERIALISE) for path in paths}
    side.seconds, side.peak_mib = sum(one["seconds"] for one in found.values()), 0
    return {
        "dags": sum(one["dags"] for one in found.values()),
        "files": {name: round(one["seconds"], 2) for name, one in found.items()},
    }


def task(side: Side) -> dict[str, Any]:
    """The file of a scoring task, as its process parses it."""
    root = project(side.folder / "project", side.scale)
    _parse(root, root / "dags/score.py", only=f"score__{MODEL}")
    return _timed(side, lambda: _parse(root, root / "dags/score.py", only=f"score__{MODEL}"))


SIDES = {"every": every, "task": task, "files": files}
