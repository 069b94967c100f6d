"""Rows on local disk answer what a table in memory does."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.specs import PROJECT
from include.evergreen.training import fit as training
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit, split
from include.evergreen.training.rows import Stored, batches, joined, only
from include.evergreen.training.scratch import PREFIX, scratch
from tests import examples

AS_OF = examples.FIRST + dt.timedelta(days=40)
SPEC = examples.model()
SMALL = examples.model(training={**SPEC.training.model_dump(), "memory_mb": 1})


@pytest.fixture(scope="module")
def table() -> pa.Table:
    lake = MemoryLake()
    examples.fill(lake, 60)
    since, until = examples.FIRST, AS_OF - dt.timedelta(days=1)
    return labelled(features(lake, SPEC, since, until), labels(lake, SPEC, since, until, cut=AS_OF), SPEC)


@pytest.fixture(scope="module")
def stored(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The table in three files of several row groups."""
    folder = tmp_path_factory.mktemp("rows")
    sizes = [0, 700, 701, table.num_rows]
    paths = [folder / f"{number}.parquet" for number in range(3)]
    for path, first, last in zip(paths, sizes[:-1], sizes[1:], strict=True):
        pq.write_table(table.slice(first, last - first), path, row_group_size=200)
    return Stored(paths)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 64, 701, 10_000])
def test_chosen_rows_are_those_of_the_table(table: pa.Table, stored: Stored, seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    mask = np.repeat(draw.random(40) < 0.5, 60)
    expected, found = only(table, pa.chunked_array([mask])), only(stored, pa.chunked_array([mask]))
    again = np.arange(expected.num_rows) % 7 != seed
    expected, found = only(expected, pa.chunked_array([again])), only(found, pa.chunked_array([again]))
    assert found.num_rows == expected.num_rows > 500
    assert found.table().equals(expected.combine_chunks())
    assert all(found[name].to_pylist() == expected[name].to_pylist() for name in table.column_names)
    columns = ["label", "region"]
    parts = list(batches(found, columns, size, coded=("region",)))
    assert [part.num_rows for part in parts] == [part.num_rows for part in batches(expected, columns, size)]
    assert [value for part in parts for value in part["region"].to_pylist()] == expected["region"].to_pylist()
    taken = np.sort(draw.choice(found.num_rows, 50, replace=False))
    assert found.take(taken).equals(expected.take(taken).combine_chunks())


def test_nothing_chosen_is_no_row(stored: Stored) -> None:
    none = only(stored, pa.chunked_array([np.zeros(stored.num_rows, dtype=bool)]))
    assert (none.num_rows, none.table().num_rows, list(none.batches(["label"], 10))) == (0, 0, [])
    assert len(none["label"]) == 0


def test_parts_of_files_are_joined_and_grow_a_column(table: pa.Table, stored: Stored) -> None:
    parts = split(stored, AS_OF, SPEC.training, SPEC.gate.frozen)
    expected = split(table, AS_OF, SPEC.training, SPEC.gate.frozen)
    whole = joined([parts.train, parts.validation, parts.holdout])
    assert whole.table().equals(joined([expected.train, expected.validation, expected.holdout]).combine_chunks())
    grown = whole.select(["region"]).append_column("rank", pa.array(range(whole.num_rows)))
    assert grown.column_names == ["region", "rank"]
    assert grown["rank"].to_pylist() == list(range(whole.num_rows))
    with pytest.raises(KeyError):
        grown["label"]


def test_what_a_killed_training_left_on_disk_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal\n"
        "from include.evergreen.training.scratch import scratch\n"
        "with scratch() as folder:\n"
        "    (folder / 'page').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    (tmp_path / f"{PREFIX}nobodys").mkdir()
    with scratch() as mine:
        assert not left.exists()
        with scratch():
            assert mine.exists(), "of a process that lives"
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}nobodys"]


@pytest.mark.parametrize("in_one_piece", [10**9, 100])
def test_a_model_has_the_same_bytes_from_disk_as_from_memory(
    table: pa.Table, stored: Stored, in_one_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "IN_ONE_PIECE", in_one_piece)
    monkeypatch.setattr(training, "BATCH_ROWS", 128)
    assert fit(SPEC, stored, AS_OF).files() == fit(SPEC, table, AS_OF).files()


def test_rows_that_were_read_once_are_read_from_a_file(
    table: pa.Table, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "IN_ONE_PIECE", 100)
    asked: list[int] = []
    inner = Stored.batches

    def counted(rows: Stored, columns: list[str], size: int, coded: tuple[str, ...] = ()) -> Iterator[pa.Table]:
        asked.append(rows.num_rows)
        return inner(rows, columns, size, coded)

    monkeypatch.setattr(Stored, "batches", counted)
    made = fit(SPEC, stored, AS_OF)
    rows = made.facts["rows"]
    assert sorted(asked) == sorted([rows["train"], rows["validation"], rows["holdout"]])


def test_the_frame_of_codes_is_the_matrix(table: pa.Table) -> None:
    """With values that the training has not seen, and nulls."""
    categories = {"region": ("north", "west")}
    bundle = ModelBundle(SPEC.name, AS_OF, b"", tuple(SPEC.features), categories)
    blank = pc.if_else(pc.greater(table["amount"], 50), pa.scalar(None, table["amount"].type), table["amount"])
    odd = table.set_column(table.column_names.index("amount"), "amount", blank)
    assert_frame_equal(bundle.frame(bundle.codes(odd)), bundle.matrix(odd))


def test_a_large_training_keeps_its_bins_on_disk_and_leaves_none(
    stored: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The same trees as with the bins in memory, where both see the same batches; the same bytes each time."""
    monkeypatch.setattr(training, "VALUE_BYTES", 10_000)
    monkeypatch.setattr(training, "IN_ONE_PIECE", 100)
    monkeypatch.setattr(training, "BATCH_ROWS", 256)
    monkeypatch.setattr(training, "PAGE_ROWS", 256)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[Path] = []
    inner = training._train

    def looked(*arguments: object) -> object:
        seen.extend(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "values")
        return inner(*arguments)

    monkeypatch.setattr(training, "_train", looked)
    inside = fit(SPEC, stored, AS_OF)
    assert seen == []
    first, second = fit(SMALL, stored, AS_OF), fit(SMALL, stored, AS_OF)
    assert {path.parent.name for path in seen if path.name.startswith("bins-")} == {"train", "validation"}
    assert list(tmp_path.iterdir()) == []
    assert first.files() == second.files()
    assert first.facts["compute"] == {"kind": "local", "external_memory": True}
    assert inside.facts["compute"] == {"kind": "local", "external_memory": False}
    assert first.facts["metrics"] == inside.facts["metrics"]
    assert not [warning for warning in recwarn if "cache file" in str(warning.message)]


def test_the_bins_on_disk_are_gone_after_a_failure(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "VALUE_BYTES", 10_000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Exception, match="max_depth"):
        fit(SMALL, stored, AS_OF, {"max_depth": "deep"})
    assert list(tmp_path.iterdir()) == []
