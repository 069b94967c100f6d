"""Without an engine the tests fail and say why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.compose.engine import STORAGE_DRIVERS, NoEngine, engine

FAILING = '#!/bin/sh\necho "no such driver: $1" >&2\nexit 1\n'


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole path of programs; no engine answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_no_program_is_said(alone: Path) -> None:
    with pytest.raises(NoEngine, match="found n"), engine(alone, alone):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts an engine")
def test_what_each_storage_driver_said_is_said(alone: Path) -> None:
    program(alone, "docker", "#!/bin/sh\nexit 1\n")
    program(alone, "dockerd", FAILING)
    with pytest.raises(NoEngine) as said, engine(alone, alone):
        pass
    assert all(f"no such driver: --storage-driver={driver}" in str(said.value) for driver in STORAGE_DRIVERS)
