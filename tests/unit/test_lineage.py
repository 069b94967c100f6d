"""What a model's lineage says of the code and the libraries that made it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from include.evergreen.training.lineage import code_version, library_versions


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EVERGREEN_CODE_VERSION", raising=False)
    for name in ("specs.py", "training/fit.py"):
        path = tmp_path / "include/evergreen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    return tmp_path


def test_the_code_version_names_the_engines_source(project: Path) -> None:
    assert re.fullmatch(r"source-sha256:[0-9a-f]{16}", code_version(project))
    assert code_version(project) == code_version(project)
    assert code_version() != code_version(project)


def test_it_changes_with_a_file_its_name_or_one_more(project: Path) -> None:
    fit = project / "include/evergreen/training/fit.py"
    seen = {code_version(project)}
    fit.write_text("# another line\n", encoding="utf-8")
    seen.add(code_version(project))
    fit.rename(fit.with_name("train.py"))
    seen.add(code_version(project))
    fit.with_name("more.py").write_text("", encoding="utf-8")
    seen.add(code_version(project))
    assert len(seen) == 4


def test_what_is_not_source_does_not_count(project: Path) -> None:
    before = code_version(project)
    (project / "include/evergreen/notes.md").write_text("x", encoding="utf-8")
    (project / "include/models").mkdir()
    (project / "include/models/x.py").write_text("x = 1", encoding="utf-8")
    assert code_version(project) == before


def test_a_deployments_own_version_wins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CODE_VERSION", "3f1c2d9")
    assert code_version(project) == code_version() == "3f1c2d9"
    monkeypatch.setenv("EVERGREEN_CODE_VERSION", "")
    assert code_version(project).startswith("source-sha256:")


def test_the_installed_libraries_are_named() -> None:
    found = library_versions()
    assert found["pandas"] == version("pandas")
    assert {"python", "duckdb", "numpy", "pyarrow"} <= set(found)
    assert any(name.startswith("xgboost") for name in found)
    assert all(found.values())
