"""Parsing a DAG file is light: no heavy library, no other DAG, no Airflow in the domain."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted((PROJECT / "dags").glob("*.py"))
HEAVY = {
    "pandas",
    "xgboost",
    "great_expectations",
    "evidently",
    "mlflow",
    "boto3",
    "botocore",
    "duckdb",
    "pyiceberg",
    "sklearn",
    "scipy",
    "pyarrow",
    "numpy",
    "optuna",
}
PARSE = """
import importlib.util, json, sys
import airflow.sdk
before = set(sys.modules)
made, opened = [], []
sys.addaudithook(lambda event, of: opened.append(str(of[0])) if event == "open" else None)
for number, path in enumerate(sys.argv[1:]):
    spec = importlib.util.spec_from_file_location(f"parsed_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made += [value.dag_id for value in vars(module).values() if isinstance(value, airflow.sdk.DAG)]
print(json.dumps({"before": sorted(before), "after": sorted(sys.modules), "dags": sorted(made)} | {"opened": opened}))
"""


def parse(paths: list[Path], home: Path, project: Path = PROJECT, only: str | None = None) -> dict[str, list[str]]:
    """Import files in a fresh process, as a DAG processor does, or as the process of one DAG's task."""
    done = process(paths, home, project, only)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def parse_error(path: Path, home: Path, project: Path, only: str | None = None) -> str:
    """What a file raises."""
    done = process([path], home, project, only)
    assert done.returncode != 0
    return done.stderr


def process(paths: list[Path], home: Path, project: Path, only: str | None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(project), "AIRFLOW_HOME": str(home)}
    env.pop("_AIRFLOW_PARSING_CONTEXT_DAG_ID", None)
    if only:
        env["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = only
    argv = [sys.executable, "-c", PARSE, *map(str, paths)]
    return subprocess.run(argv, env=env, cwd=home, capture_output=True, text=True, timeout=300, check=False)


def heavy(found: dict[str, list[str]]) -> set[str]:
    """Heavy libraries that parsing brought in, beyond those that Airflow itself did."""
    return HEAVY & (set(found["after"]) - set(found["before"]))


def test_parsing_every_dag_file_loads_nothing_heavy(tmp_path: Path) -> None:
    found = parse(FILES, tmp_path)
    assert len(found["dags"]) >= len(FILES) - 1, "dags/specs.py makes none"
    assert heavy(found) == set()


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("import duckdb\n")
    assert "duckdb" in heavy(parse([tmp_path / "heavy.py"], tmp_path))


# --- many models -----------------------------------------------------------------------------------------------------

MODELS = 300


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 300 models on the source of the example."""
    root = tmp_path_factory.mktemp("many")
    pycache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "dags", root / "dags", ignore=pycache)
    shutil.copytree(PROJECT / "include", root / "include", ignore=pycache)
    example = root / "include/models/flight_delay"
    spec = yaml.safe_load((example / "model.yaml").read_text(encoding="utf-8"))
    for number in range(MODELS - 1):
        folder = example.with_name(f"model_{number:03d}")
        shutil.copytree(example, folder)
        (folder / "model.yaml").write_text(yaml.safe_dump({**spec, "name": folder.name}), encoding="utf-8")
    return root


def test_300_models_parse(many: Path, tmp_path: Path) -> None:
    found = parse(sorted((many / "dags").glob("*.py")), tmp_path, many)
    verbs = {
        verb: sum(name.startswith(f"{verb}__") for name in found["dags"]) for verb in ("score", "monitor", "train")
    }
    assert verbs == dict.fromkeys(verbs, MODELS)


@pytest.mark.parametrize("verb", ["score", "monitor", "train"])
def test_the_process_of_a_task_makes_its_dag_alone(many: Path, tmp_path: Path, verb: str) -> None:
    wanted = f"{verb}__model_123"
    assert parse([many / f"dags/{verb}.py"], tmp_path, many, only=wanted)["dags"] == [wanted]


def test_a_wrong_spec_is_an_import_error_and_takes_no_other_model_down(many: Path, tmp_path: Path) -> None:
    path = many / "include/models/model_007/model.yaml"
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace("confidence: 0.95", "confidence: 95"), encoding="utf-8")
    try:
        files = [file for file in sorted((many / "dags").glob("*.py")) if file.stem != "specs"]
        made = parse(files, tmp_path, many)["dags"]
        told = parse_error(many / "dags/specs.py", tmp_path, many)
        own = parse_error(many / "dags/score.py", tmp_path, many, only="score__model_007")
        assert parse([many / "dags/score.py"], tmp_path, many, only="score__model_008")["dags"] == ["score__model_008"]
    finally:
        path.write_text(sound, encoding="utf-8")
    assert sum(name.startswith("score__") for name in made) == MODELS - 1
    assert "score__model_007" not in made
    for error in (told, own):
        assert [part for part in (str(path), "gate.confidence", "found 95") if part not in error] == []
    assert parse([many / "dags/specs.py"], tmp_path, many)["dags"] == []


def test_a_task_reads_no_spec_but_its_own(many: Path, tmp_path: Path) -> None:
    def specs(opened: list[str]) -> set[str]:
        return {Path(path).parent.name for path in opened if "/include/models/" in path}

    file = many / "dags/monitor.py"
    assert specs(parse([file], tmp_path, many, only="monitor__model_123")["opened"]) == {"model_123"}
    assert len(specs(parse([file], tmp_path, many)["opened"])) == MODELS, "and this test would see others"


# --- the domain ------------------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def of_airflow(root: Path, exempt: frozenset[str] = frozenset()) -> list[str]:
    """Files below `root` that import Airflow, or the part of the engine that does."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in exempt:
            continue
        modules = [module for module in imports(path) if module.split(".")[0] == "airflow"]
        found += [f"{name}: {module}" for module in modules]
    return found


def test_the_domain_never_imports_airflow() -> None:
    engine = PROJECT / "include/evergreen"
    assert len(list(engine.rglob("*.py"))) > 40
    assert of_airflow(engine, frozenset({"orchestration"})) == []
    assert of_airflow(PROJECT / "include/sources") == []
    assert of_airflow(engine) != [], "the orchestration does, and this test would see it"


def test_the_domain_does_not_lean_on_the_orchestration() -> None:
    engine = PROJECT / "include/evergreen"
    found = [
        path.relative_to(engine).as_posix()
        for path in sorted(engine.rglob("*.py"))
        if path.relative_to(engine).parts[0] not in ("orchestration", "local")
        and any(module.startswith("include.evergreen.orchestration") for module in imports(path))
    ]
    assert found == []
