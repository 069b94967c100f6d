"""Making a registered version again: equal bytes, or the input that changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from include.evergreen.errors import ChecksumMismatch, NotFound
from include.evergreen.features.build import features, input_tables, labelled, labels
from include.evergreen.pipeline import rebuild as steps
from include.evergreen.promotion.ports import TrainingRecord
from include.evergreen.training.fit import fit
from include.evergreen.training.lineage import code_version, library_versions, rows_digest
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC = examples.model()
DAYS = 40
UNTIL = examples.dates(DAYS)[-1]
AS_OF = examples.dates(DAYS + 1)[-1]
OVERRIDES = {"max_depth": 2}


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    """The shop with 40 days, and one registered version trained on them."""
    made = memory_platform(tmp_path)
    examples.fill(made.lake, DAYS)
    register(made)
    return made


def register(platform: MemoryPlatform, **changes: Any) -> int:
    """Train and register as `train__` does; `changes` falsify the lineage, None takes a key out."""
    snapshots = {}
    for table in input_tables(SPEC):
        found = platform.lake.snapshot(table)
        assert found is not None
        snapshots[table] = found
        platform.lake.tag(table, found, "train-run")
    rows = labelled(
        features(platform.lake, SPEC, examples.FIRST, UNTIL, snapshots=snapshots),
        labels(platform.lake, SPEC, examples.FIRST, UNTIL, cut=AS_OF, snapshots=snapshots),
        SPEC,
    )
    lineage = {
        "as_of": AS_OF.isoformat(),
        "since": examples.FIRST.isoformat(),
        "until": UNTIL.isoformat(),
        "snapshots": {table: str(snapshot) for table, snapshot in snapshots.items()},
        "overrides": OVERRIDES,
        "rows_sha256": rows_digest(rows),
        "spec": SPEC.model_dump(mode="json"),
        "spec_sha256": SPEC.hash,
        "code": code_version(),
        "libraries": library_versions(),
        **changes,
    }
    kept = {name: value for name, value in lineage.items() if value is not None}
    key = f"run-{len(platform.registry.records)}"
    return platform.registry.register(fit(SPEC, rows, AS_OF, OVERRIDES), TrainingRecord(key, {}, {}, kept, {})).number


def rebuild(platform: MemoryPlatform, version: int = 1, key: str = "rebuild-1") -> dict[str, Any]:
    report: dict[str, Any] = json.loads(json.dumps(steps.rebuild(platform, SPEC.name, version, key, "ada")))
    return report


def differs(platform: MemoryPlatform, version: int = 1) -> dict[str, Any]:
    """The report in the ledger of a rebuild that fails."""
    with pytest.raises(ChecksumMismatch, match=f"{SPEC.name} version {version}, model.ubj: expected") as error:
        rebuild(platform, version)
    (row,) = platform.mart.decisions(SPEC.name, "rebuild")
    assert (row["outcome"], row["as_of"], row["actor"]) == ("different", AS_OF, "ada")
    report: dict[str, Any] = row["evidence"]
    assert not report["equal"]
    assert row["reasons"] == report["changed"] != []
    assert all(sentence in str(error.value) for sentence in report["changed"])
    return report


# --- equal -----------------------------------------------------------------------------------------------------------


def test_the_same_inputs_make_the_same_bytes(platform: MemoryPlatform) -> None:
    report = rebuild(platform)
    sha256 = platform.registry.versions(SPEC.name)[0].sha256
    assert report == {
        "model": SPEC.name,
        "version": 1,
        "equal": True,
        "expected_sha256": sha256,
        "found_sha256": sha256,
        "changed": [],
    }
    (row,) = platform.mart.decisions(SPEC.name)
    assert (row["kind"], row["outcome"], row["as_of"], row["actor"]) == ("rebuild", "equal", AS_OF, "ada")
    assert row["evidence"] == report
    assert len(platform.registry.versions(SPEC.name)) == 1, "nothing is registered"


def test_later_rows_change_nothing(platform: MemoryPlatform) -> None:
    examples.fill(platform.lake, DAYS, seed=9)
    for table in platform.lake.tables():
        platform.lake.maintain(table, keep_snapshots=1)
    assert rebuild(platform)["changed"] == []


def test_code_and_libraries_are_notes_when_the_bytes_are_equal(platform: MemoryPlatform) -> None:
    libraries = {**library_versions(), "xgboost-cpu": "3.1.9", "extinct": "1.0"}
    report = rebuild(platform, register(platform, code="3f1c2d9", libraries=libraries))
    assert report["equal"]
    assert report["changed"] == [
        f"code: expected 3f1c2d9, found {code_version()}",
        "library extinct: 1.0 -> none",
        f"library xgboost-cpu: 3.1.9 -> {library_versions()['xgboost-cpu']}",
    ]


def test_a_field_that_specs_gained_since_is_no_change(platform: MemoryPlatform) -> None:
    """The recorded spec is compared as it was written, not as today's code reads it."""
    import hashlib

    older = {name: value for name, value in SPEC.model_dump(mode="json").items() if name != "retrain"}
    digest = hashlib.sha256(json.dumps(older, sort_keys=True).encode()).hexdigest()
    assert rebuild(platform, register(platform, spec=older, spec_sha256=digest))["changed"] == []


def test_a_retry_answers_what_was_recorded(platform: MemoryPlatform) -> None:
    first = rebuild(platform)
    platform.registry._files[SPEC.name, 1].pop("lineage.json")
    assert rebuild(platform) == first
    assert len(platform.mart.decisions(kind="rebuild")) == 1


# --- different -------------------------------------------------------------------------------------------------------


def test_a_changed_spec_is_named(platform: MemoryPlatform) -> None:
    spec = SPEC.model_dump(mode="json")
    spec["training"]["params"]["eta"] = 0.31
    report = differs(platform, register(platform, spec=spec))
    (sentence,) = report["changed"]
    assert sentence.startswith(f"spec: expected SHA-256 {SPEC.hash}, found ")
    assert report["found_sha256"] not in (None, report["expected_sha256"])


def test_a_spec_that_cannot_be_read_is_named(platform: MemoryPlatform) -> None:
    report = differs(platform, register(platform, spec={**SPEC.model_dump(mode="json"), "lookback_days": -1}))
    assert any("spec: expected one that this code can read, found lookback_days" in text for text in report["changed"])


@pytest.mark.parametrize("sql", ["select * from nowhere", "select e.nothing from entities e", "not sql"])
def test_a_query_that_cannot_run_is_named(platform: MemoryPlatform, sql: str) -> None:
    report = differs(platform, register(platform, spec={**SPEC.model_dump(mode="json"), "sql": sql}))
    assert report["found_sha256"] is None
    assert len(report["changed"]) == 2
    assert report["changed"][1].startswith(("rows: expected them", "snapshot of trusted.nowhere: expected one"))


def test_other_overrides_are_another_model(platform: MemoryPlatform) -> None:
    report = differs(platform, register(platform, overrides={"max_depth": 3}))
    assert report["changed"] == ["no recorded input differs: look at the machine (processor, threads)"]


def test_a_snapshot_that_is_gone_is_named(platform: MemoryPlatform) -> None:
    gone = platform.lake.snapshot("trusted.orders")
    platform.lake._tables["trusted.orders"].tags.clear()
    examples.fill(platform.lake, DAYS)
    platform.lake.maintain("trusted.orders", keep_snapshots=1)
    report = differs(platform)
    assert report["changed"] == [f"snapshot {gone} of trusted.orders is gone from the lake"]
    assert report["found_sha256"] is None


def test_a_table_that_is_gone_is_named(platform: MemoryPlatform) -> None:
    del platform.lake._tables["trusted.outcomes"]
    assert "of trusted.outcomes is gone" in differs(platform)["changed"][0]


def test_changed_rows_are_named(platform: MemoryPlatform) -> None:
    examples.fill(platform.lake, DAYS, seed=9)
    record = platform.registry.lineage(SPEC.name, 1)
    record["snapshots"] = {table: str(platform.lake.snapshot(table)) for table in platform.lake.tables()}
    platform.registry._files[SPEC.name, 1]["lineage.json"] = json.dumps(record).encode()
    report = differs(platform)
    (sentence,) = report["changed"]
    assert sentence.startswith(f"rows differ: expected SHA-256 {record['rows_sha256']}, found ")


def test_rows_too_few_to_train_on_are_named(platform: MemoryPlatform) -> None:
    changed = differs(platform, register(platform, until=examples.FIRST.isoformat()))["changed"]
    assert changed[0].startswith("rows differ: ")
    assert changed[1].startswith("fit: expected a model, found NotEnoughData: ")


@pytest.mark.parametrize("name", steps.NEEDED)
def test_a_version_without_its_lineage_says_so(platform: MemoryPlatform, name: str) -> None:
    report = differs(platform, register(platform, **{name: None}))
    assert report["changed"] == [f"lineage: expected {name}, found none recorded"]


def test_a_version_that_is_not_there(platform: MemoryPlatform) -> None:
    with pytest.raises(NotFound, match="expected version 7"):
        rebuild(platform, 7)
    assert platform.mart.decisions() == []


def test_changed_stored_bytes_are_no_rebuild(platform: MemoryPlatform) -> None:
    platform.registry._files[SPEC.name, 1]["model.ubj"] += b"x"
    with pytest.raises(ChecksumMismatch, match=r"model\.ubj"):
        rebuild(platform)
    assert platform.mart.decisions() == []


# --- the digest of rows ----------------------------------------------------------------------------------------------


TABLE = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "day": pa.array([AS_OF, None, UNTIL], pa.date32()),
        "word": pa.array(["ab", None, "c"]),
        "number": pa.array([0.5, float("nan"), None], pa.float32()),
        "flag": pa.array([True, False, None]),
    }
)


def test_how_rows_are_laid_out_does_not_count(tmp_path: Path) -> None:
    expected = rows_digest(TABLE)
    pq.write_table(TABLE, tmp_path / "rows.parquet")
    sliced = pa.concat_tables([TABLE, TABLE]).slice(3)
    full = pa.table({"word": ["ab", "c"]})
    masked = pa.table({"word": pa.array(["ab", "x", "c"])}).filter(pa.array([True, False, True]))
    assert rows_digest(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 0), TABLE.slice(1)])) == expected
    assert rows_digest(sliced) == expected
    assert rows_digest(TABLE.replace_schema_metadata({"a": "b"})) == expected
    assert rows_digest(pq.read_table(tmp_path / "rows.parquet")) == expected
    assert rows_digest(masked) == rows_digest(full)
    assert rows_digest(TABLE.slice(0, 0)) == rows_digest(TABLE.schema.empty_table())


def test_what_lies_under_a_null_does_not_count() -> None:
    values = pa.array([1, 2, 3], pa.int64())
    nulled = pc.if_else(pa.array([True, False, True]), values, pa.scalar(None, pa.int64()))
    assert rows_digest(pa.table({"id": nulled})) == rows_digest(pa.table({"id": pa.array([1, None, 3], pa.int64())}))


def changed(name: str, values: list[Any]) -> pa.Table:
    index = TABLE.schema.get_field_index(name)
    return TABLE.set_column(index, name, pa.array(values, TABLE.schema.field(name).type))


@pytest.mark.parametrize(
    "other",
    [
        changed("id", [1, 2, 4]),
        changed("day", [AS_OF, UNTIL, None]),
        changed("word", ["a", None, "bc"]),
        changed("word", ["ab", "", "c"]),
        changed("number", [0.5, None, None]),
        changed("flag", [True, False, False]),
        TABLE.rename_columns(["id", "day", "word", "number", "other"]),
        TABLE.select(["day", "id", "word", "number", "flag"]),
        TABLE.take([0, 2, 1]),
        TABLE.slice(0, 2),
        TABLE.set_column(0, "id", TABLE["id"].cast(pa.int32())),
        TABLE.set_column(3, "number", TABLE["number"].cast(pa.float64())),
    ],
)
def test_what_rows_say_counts(other: pa.Table) -> None:
    assert rows_digest(other) != rows_digest(TABLE)


def test_the_digest_stays_the_same_for_good() -> None:
    """It is recorded with every version: another one here would make every rebuild differ."""
    assert rows_digest(TABLE) == "8da511d49bf82cc28c199f09a7788a914bd148f45757989533c8960377651007"


def test_a_nested_column_is_no_row_of_a_training() -> None:
    with pytest.raises(TypeError, match="lists"):
        rows_digest(pa.table({"lists": [[1], [2]]}))
