"""A training beyond `training.memory_mb`: built by windows of days, staged in parts, never in memory whole."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from include.evergreen.errors import NotFound, SettingsError
from include.evergreen.pipeline import rebuild, staging, training_rows
from include.evergreen.pipeline import training as steps
from include.evergreen.training import fit as training
from include.evergreen.training.lineage import rows_digest
from include.evergreen.training.rows import Stored
from tests import examples
from tests.support import MemoryPlatform, memory_platform
from tests.unit.test_training_steps import run

SPEC = examples.model()
SMALL = examples.model(training={**SPEC.training.model_dump(), "memory_mb": 1})
DAYS = 40
AS_OF = examples.FIRST + dt.timedelta(days=DAYS)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryPlatform:
    """The shop, of whose days two are a window of a training with `memory_mb: 1`."""
    made = memory_platform(tmp_path)
    examples.fill(made.lake, DAYS)
    monkeypatch.setattr(training, "VALUE_BYTES", 1024 * 1024 / (8 * 60 * 2.5 * len(SPEC.features)))
    monkeypatch.setattr(training_rows, "PART_ROWS", 100)
    return made


def test_days_are_built_together_only_as_far_as_they_fit(platform: MemoryPlatform) -> None:
    first, last = examples.FIRST, AS_OF - dt.timedelta(days=1)
    assert training_rows.windows(platform, examples.model(), first, last) == [(first, last)]
    found = training_rows.windows(platform, SMALL, first, last)
    assert [(until - since).days + 1 for since, until in found] == [2] * 20
    days = [since + dt.timedelta(days=i) for since, until in found for i in range((until - since).days + 1)]
    assert days == examples.dates(DAYS), "each day once, in order"


def test_the_parts_hold_the_rows_of_one_build(platform: MemoryPlatform) -> None:
    whole = staging.get(platform, steps.build(platform, SPEC, AS_OF, "whole", "a test")["rows_key"])
    built = steps.build(platform, SMALL, AS_OF, "parts", "a test")
    keys = training_rows.part_keys(platform, built["rows_key"])
    parts = [staging.get(platform, key) for key in keys]
    assert rows_digest(pa.concat_tables(parts)) == rows_digest(whole)
    assert max(part.num_rows for part in parts) == 100
    assert built["rows"] == whole.num_rows
    assert len(built["windows"]) == 20
    with training_rows.local(platform, built["rows_key"]) as rows:
        assert rows_digest(rows.table()) == rows_digest(whole)
        paths = rows.paths
    assert not [path for path in paths if path.exists()]


def test_all_steps_go_on_without_all_rows_in_memory(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer of the gate as in memory, and the same bytes in a rebuild."""
    whole = run(platform, SPEC, key="whole")
    read: list[tuple[int, int]] = []
    inner = Stored.table

    def counted(rows: Stored, columns: list[str] | None = None) -> pa.Table:
        found = inner(rows, columns)
        read.append(found.shape)
        return found

    monkeypatch.setattr(Stored, "table", counted)
    monkeypatch.setattr(training, "IN_ONE_PIECE", 100)
    platform.registry.set_alias(SPEC.name, 1, "kept")
    done = run(platform, SMALL, key="parts")
    assert read and all(columns <= 3 for rows, columns in read if rows == done["built"]["rows"])
    version = done["registered"]["version"]
    assert version == 2
    mine, theirs = done["decided"]["evidence"], whole["decided"]["evidence"]
    assert mine["fresh"]["baseline"] == theirs["fresh"]["baseline"]
    assert mine["fresh"]["challenger"]["auc"]["value"] == pytest.approx(
        theirs["fresh"]["challenger"]["auc"]["value"], abs=0.03
    )
    lineage = platform.registry.lineage(SPEC.name, version)
    assert lineage["compute"] == {"kind": "local", "external_memory": True}
    assert lineage["windows"] == done["built"]["windows"]
    report = rebuild.rebuild(platform, SPEC.name, version, "again", "ada")
    assert report["equal"] and report["found_sha256"] == report["expected_sha256"]


def test_a_part_that_was_cleared_away_is_not_found(platform: MemoryPlatform) -> None:
    built = steps.build(platform, SMALL, AS_OF, "parts", "a test")
    platform.objects.delete([training_rows.part_keys(platform, built["rows_key"])[3]])
    with pytest.raises(NotFound, match=r"rows/000003\.parquet"):
        steps.fit(platform, SMALL, AS_OF, "parts", built)


def test_a_model_for_dask_without_a_scheduler_says_what_is_missing(platform: MemoryPlatform) -> None:
    """Its rows are staged in parts whatever their size: one read of a worker each."""
    far = examples.model(compute="dask")
    built = steps.build(platform, far, AS_OF, "far", "a test")
    assert len(training_rows.part_keys(platform, built["rows_key"])) == DAYS * 60 // 100
    with pytest.raises(SettingsError, match="connection evergreen_dask"):
        steps.fit(platform, far, AS_OF, "far", built)
