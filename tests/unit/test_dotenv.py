from __future__ import annotations

import base64
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from include.evergreen.errors import Refused
from include.evergreen.local import dotenv
from include.evergreen.local.layout import PROJECT

NEEDED = set(re.findall(r"\$\{([A-Z0-9_]+):\?", (PROJECT / "docker-compose.yaml").read_text()))
"""What compose refuses to start without."""


def test_every_secret_that_compose_needs_is_filled_in_and_nothing_else_changes(tmp_path: Path) -> None:
    dotenv.create(tmp_path / ".env")
    made, example = dotenv.read(tmp_path / ".env"), dotenv.read(dotenv.EXAMPLE)
    assert len(NEEDED) > 10
    assert made.keys() == example.keys()
    assert {name for name in made if made[name] != example[name]} == NEEDED
    assert all(len(made[name]) >= 44 for name in NEEDED)


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    dotenv.create(tmp_path / ".env")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


def test_no_two_secrets_are_alike_nor_those_of_two_files(tmp_path: Path) -> None:
    values = []
    for name in ("one", "two"):
        dotenv.create(tmp_path / name)
        values += [dotenv.read(tmp_path / name)[secret] for secret in NEEDED]
    assert len(set(values)) == len(values) == 2 * len(NEEDED)


def test_secrets_need_no_quoting_and_the_fernet_key_is_one(tmp_path: Path) -> None:
    dotenv.create(tmp_path / ".env")
    made = dotenv.read(tmp_path / ".env")
    fernet = made["AIRFLOW_FERNET_KEY"]
    assert len(base64.urlsafe_b64decode(fernet)) == 32
    assert len(made["AIRFLOW_JWT_SECRET"]) >= 64
    assert all(re.fullmatch("[0-9a-f]+", made[name]) for name in NEEDED - {"AIRFLOW_FERNET_KEY"})


def test_a_file_that_is_there_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("POSTGRES_PASSWORD=mine\n")
    with pytest.raises(Refused, match="expected no file"):
        dotenv.create(path)
    assert path.read_text() == "POSTGRES_PASSWORD=mine\n"


def test_the_command_says_where_it_wrote_and_prints_no_secret(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    command = [sys.executable, "-m", "include.evergreen.local.dotenv", str(path)]
    first, second = (subprocess.run(command, cwd=PROJECT, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 1)
    assert str(path) in first.stdout
    assert "Refused" in second.stderr
    said = first.stdout + first.stderr + second.stdout + second.stderr
    assert not [name for name, value in dotenv.read(path).items() if name in NEEDED and value in said]
