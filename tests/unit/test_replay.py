"""The time machine on the shop: history from files, faults of known date, lives under every policy."""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import functools
import gzip
import io
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pytest

from include.evergreen.errors import NotFound, Refused
from include.evergreen.features.build import features, labelled, labels
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.lake.objects import MemoryObjects
from include.evergreen.quality.deliveries import find
from include.evergreen.replay import __main__ as command
from include.evergreen.replay import cli, machine, world
from include.evergreen.replay.faults import Fault, flipped, shifted, spoil
from include.evergreen.replay.machine import Life, Scenario
from include.evergreen.replay.world import History
from include.evergreen.specs import PROJECT, ModelSpec, SourceSpec
from include.evergreen.training.metrics import score
from tests import examples
from tests.support import memory_platform

DAY = dt.timedelta(days=1)
DAYS = 64
LAST = examples.FIRST + (DAYS - 1) * DAY
FIRST = dt.date(2024, 2, 23)
"""A Friday: two Mondays and the first of March follow."""
SHOP = examples.source()
CALM: dict[str, Any] = {
    "sketch_rows": 300,
    "min_matured_rows": 100,
    "window_days": 3,
    "max_performance_drop": 0.3,
    "max_label_shift": 0.9,
    "max_misfit": 3.0,
}


def model(prediction: float = 2.0) -> ModelSpec:
    """Few columns to measure, and a threshold of the prediction that is never or always breached."""
    spec = examples.model(
        features={"region": {"type": "category", "drift": None}, "amount": {}, "late_before": {"drift": None}},
        monitoring={**CALM, "prediction": {"method": "wasserstein", "threshold": prediction}},
        retrain={"breaches": 2, "windows": 3, "cooldown_days": 7},
    )
    return spec.model_copy(update={"gate": spec.gate.model_copy(update={"resamples": 200})})


@functools.cache
def delivered() -> dict[str, bytes]:
    """Key -> CSV of every file of the shop."""
    found = {}
    for name, rows in zip(("orders", "outcomes"), examples.rows(DAYS), strict=True):
        rows = rows.select(list(SHOP.tables[name].columns))
        for day in examples.dates(DAYS):
            out = io.BytesIO()
            arrow_csv.write_csv(rows.filter(pc.equal(rows["day"], pa.scalar(day))), out)
            found[f"shop/{name}/{day}.csv"] = out.getvalue()
    return found


def publish(landing: Any, since: dt.date, until: dt.date) -> None:
    """As a source's `publish.py`: what the runs of these dates expect."""
    for table in SHOP.tables.values():
        day = max(since - table.lag_days * DAY, examples.FIRST)
        while day <= until - table.lag_days * DAY:
            key = table.path.format(date=day)
            landing.put(key, delivered()[key])
            day += DAY


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop has no folder of its own."""
    made = types.ModuleType("include.sources.shop.publish")
    made.publish = publish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)


@pytest.fixture(scope="module")
def taken_in(tmp_path_factory: pytest.TempPathFactory) -> History:
    """The shop's files, taken in by ingest in bulk."""
    folder = tmp_path_factory.mktemp("shop")
    platform = memory_platform(folder)
    publish(platform.landing, examples.FIRST, LAST)
    world.take_in(platform, SHOP, LAST, examples.FIRST, "history")
    platform.mart.engine.dispose()
    tables = {name: platform.lake.read(name) for name in platform.lake.tables()}
    return History(model(), SHOP, tables, examples.FIRST, LAST, folder / "mart.db")


def live(history: History, scenario: Scenario, folder: Path) -> Life:
    days: list[dt.date] = []
    life = machine.live(history, scenario, folder, days.append)
    assert days == scenario.days
    return life


def scenario(policy: Any, days: int, fault: Fault | None = None, first: dt.date = FIRST) -> Scenario:
    return Scenario(policy, policy, first, first + (days - 1) * DAY, fault)


def timeless(life: Life) -> dict[str, Any]:
    """A life without the clock, which the gate writes into its reasons."""
    found = asdict(life)
    for training in found["trainings"]:
        training["reasons"] = [reason for reason in training["reasons"] if not reason.startswith("scores 1,000 rows")]
    return found


# --- history ---------------------------------------------------------------------------------------------------------


def test_a_platform_holds_the_history_and_nothing_else(taken_in: History, tmp_path: Path) -> None:
    assert set(taken_in.tables) == {"trusted.orders", "trusted.outcomes"}
    platform = taken_in.platform(tmp_path / "one")
    assert platform.lake.counts("trusted.orders") == dict.fromkeys(examples.dates(DAYS), 60)
    assert platform.lake.counts("trusted.outcomes") == dict.fromkeys(examples.dates(DAYS - 1), 60), "known a day later"
    assert len(platform.mart.batches()) == 2 * DAYS - 1
    platform.lake.write("trusted.orders", platform.lake.read("trusted.orders").slice(0, 0), examples.dates(DAYS))
    assert taken_in.platform(tmp_path / "two").lake.counts("trusted.orders")[FIRST] == 60, "a copy of its own"


def test_bulk_and_daily_history_are_the_same_rows(taken_in: History, tmp_path: Path) -> None:
    daily = memory_platform(tmp_path)
    publish(daily.landing, examples.FIRST, examples.FIRST + 3 * DAY)
    for day in examples.dates(4):
        world.take_in(daily, SHOP, day, None, f"ingest-{day}")
    for name, days in (("trusted.orders", 4), ("trusted.outcomes", 3)):
        bulk = taken_in.tables[name]
        until = pa.scalar(examples.FIRST + days * DAY)
        assert daily.lake.read(name).equals(bulk.filter(pc.less(bulk["partition_date"], until)))


def test_a_history_is_kept_and_read_again(tmp_path: Path) -> None:
    until = dt.date(2013, 1, 1)
    first = world.history("flight_delay", tmp_path, until)
    assert (first.first, first.last) == (until, until)
    assert first.tables["trusted.schedules"].num_rows == 842
    (folder,) = tmp_path.iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = world.history("flight_delay", tmp_path, until)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert again.tables.keys() == first.tables.keys()
    assert all(again.tables[name].equals(rows) for name, rows in first.tables.items())

    (folder / "complete").unlink()  # it broke off
    (folder / "trusted.schedules.parquet").write_bytes(b"half")
    (folder / "trusted.of_old.parquet").write_bytes(b"half")
    mended = world.history("flight_delay", tmp_path, until)
    assert mended.tables.keys() == first.tables.keys()
    assert mended.tables["trusted.schedules"].equals(first.tables["trusted.schedules"])


def test_an_unknown_model_has_no_history(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"model: expected one of \['flight_delay'\], found 'nobody'"):
        world.history("nobody", tmp_path)


# --- faults ----------------------------------------------------------------------------------------------------------

AT = examples.FIRST + 10 * DAY


def landed(source: SourceSpec = SHOP) -> MemoryObjects:
    store = MemoryObjects("landing")
    publish(store, examples.FIRST, LAST)
    if any(table.path.endswith(".gz") for table in source.tables.values()):
        for info in store.list():
            store.put(f"{info.key}.gz", gzip.compress(store.get(info.key), 6, mtime=0))
            store.delete([info.key])
    return store


def zipped() -> SourceSpec:
    spec = SHOP.model_dump()
    for table in spec["tables"].values():
        table["path"] += ".gz"
    return SourceSpec.model_validate(spec)


def objects(store: MemoryObjects) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list()}


def parsed(data: bytes) -> list[dict[str, str]]:
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    return list(csv.DictReader(io.StringIO(text)))


def doubled(row: dict[str, str]) -> dict[str, str]:
    return {**row, "amount": str(float(row["amount"]) * 2)}


@pytest.mark.parametrize("source", [SHOP, zipped()], ids=["plain", "gz"])
def test_rows_of_exactly_the_dates_change(source: SourceSpec) -> None:
    fault = Fault("double", "amounts doubled", AT, AT + DAY, table="orders", change=doubled)
    store, before = landed(source), objects(landed(source))
    assert spoil(store, source, fault) == {}
    after = objects(store)
    paths = [source.tables["orders"].path.format(date=day) for day in (AT, AT + DAY)]
    assert sorted(key for key in after if after[key] != before.get(key)) == paths
    assert after.keys() == before.keys()
    for path in paths:
        assert parsed(after[path]) == [doubled(row) for row in parsed(before[path])]
    assert (after[paths[0]][:2] == b"\x1f\x8b") is paths[0].endswith(".gz")
    other = landed(source)
    spoil(other, source, fault)
    assert objects(other) == after, "the same bytes every time"


def test_a_second_delivery_is_one_of_that_partition() -> None:
    store = landed()
    spoil(store, SHOP, Fault("three", "three times", AT, AT, copies=3))
    for table in SHOP.tables.values():
        found = find(store, table, AT)
        assert found[0].key == table.path.format(date=AT)
        assert [store.get(info.key) for info in found] == [delivered()[table.path.format(date=AT)]] * 3
        assert [len(find(store, table, day)) for day in (AT - DAY, AT + DAY)] == [1, 1]


@pytest.mark.parametrize(("table", "held"), [(None, 2), ("outcomes", 1)])
def test_a_late_file_is_held_back_until_it_comes(table: str | None, held: int) -> None:
    store = landed()
    late = spoil(store, SHOP, Fault("late", "late", AT, AT + DAY, table=table, late_days=3))
    assert {day: len(files) for day, files in late.items()} == {AT + 3 * DAY: held, AT + 4 * DAY: held}
    for day, files in late.items():
        assert all(key.endswith(f"{day - 3 * DAY}.csv") and data == delivered()[key] for key, data in files.items())
        assert not any(store.exists(key) for key in files)
    assert len(objects(store)) == 2 * DAYS - 1 - 2 * held


@functools.cache
def lake() -> MemoryLake:
    made = MemoryLake()
    examples.fill(made, 20, per_day=20)
    return made


@pytest.mark.parametrize("name", ["amount", "late_before", "pieces"])
def test_a_shifted_feature_is_higher_from_its_date_on(name: str) -> None:
    """Also a whole number, by less than one."""
    spec = examples.model(
        features={"region": {"type": "category"}, "amount": {}, "late_before": {}, "pieces": {}},
        sql=examples.SQL.replace("o.amount,", "o.amount, hash(o.order_id) % 5 as pieces,"),
    )
    last = examples.FIRST + 19 * DAY
    plain = features(lake(), spec, examples.FIRST, last)
    moved = features(lake(), shifted(name, -0.0791234567890123, AT)(spec), examples.FIRST, last)
    others = [column for column in plain.column_names if column != name]
    assert moved.select(others).equals(plain.select(others))
    for day in examples.dates(20):
        was, now = ((t.filter(pc.equal(t["as_of"], pa.scalar(day))))[name].to_pylist() for t in (plain, moved))
        by = -0.0791234567890123 if day >= AT else 0.0
        expected = [None if value is None else pytest.approx(value + by, rel=1e-5, abs=1e-6) for value in was]
        assert now == expected, day


def test_flipped_labels_are_turned_round_on_their_dates_alone() -> None:
    last, until = examples.FIRST + 18 * DAY, AT + 2 * DAY
    spec = examples.model()
    plain = labels(lake(), spec, examples.FIRST, last)
    turned = labels(lake(), flipped(AT, until, "day")(spec), examples.FIRST, last)
    keys = [name for name in plain.column_names if name != "label"]
    assert turned.select(keys).equals(plain.select(keys))
    differs = pc.not_equal(turned["label"], plain["label"])
    inside = pc.and_(pc.greater_equal(plain["as_of"], pa.scalar(AT)), pc.less_equal(plain["as_of"], pa.scalar(until)))
    assert differs.equals(inside)
    assert pc.sum(differs).as_py() == 3 * 20


# --- lives -----------------------------------------------------------------------------------------------------------


def test_without_retraining_the_first_champion_scores_every_day(taken_in: History, tmp_path: Path) -> None:
    life = live(taken_in, scenario("never", 5), tmp_path / "run")
    assert [t["as_of"] for t in life.trainings] == [str(FIRST)]
    assert life.trainings[0]["effective_from"] == str(FIRST)
    assert not any([life.verdicts, life.requests, life.stopped])
    assert list(life.auc) == ["2024-W08", "2024-W09", "all"]
    assert list(life.versions) == ["1"]
    assert not (tmp_path / "run").exists()

    # by hand: the same training, its predictions of the five days, the labels as they came
    platform, by_hand = taken_in.platform(tmp_path / "hand"), Life("by hand")
    machine.train(platform, machine._timeless(taken_in.model), FIRST, "first", "by hand", by_hand)
    spec, last = taken_in.model, FIRST + 4 * DAY
    rows = labelled(features(platform.lake, spec, FIRST, last), labels(platform.lake, spec, FIRST, last), spec)
    probability = platform.registry.load(spec.name, 1).predict(rows)
    label = rows["label"].to_numpy().astype("int8")
    assert rows.num_rows == 5 * 60
    assert life.auc["all"] == pytest.approx(score(label, probability)["auc"], abs=1e-6)
    first_week = pc.less(rows["as_of"], pa.scalar(dt.date(2024, 2, 26))).to_numpy(zero_copy_only=False)
    assert life.auc["2024-W08"] == pytest.approx(score(label[first_week], probability[first_week])["auc"], abs=1e-6)
    assert life.versions["1"]["2024-W09"] == life.auc["2024-W09"], "in force all week"


@pytest.mark.parametrize(
    ("policy", "first", "last", "days"),
    [
        ("weekly", "2024-02-26", "2024-03-04", ["2024-03-04"]),  # on the first Monday the first champion is trained
        ("weekly", "2024-02-25", "2024-02-26", ["2024-02-26"]),
        ("monthly", "2024-02-28", "2024-03-02", ["2024-03-01"]),
    ],
    ids=str,
)
def test_scheduled_policies_train_on_their_days(
    taken_in: History, tmp_path: Path, policy: Any, first: str, last: str, days: list[str]
) -> None:
    chosen = Scenario(policy, policy, dt.date.fromisoformat(first), dt.date.fromisoformat(last))
    life = live(taken_in, chosen, tmp_path)
    assert [t["as_of"] for t in life.trainings] == [first, *days]
    assert {t["reason"] for t in life.trainings[1:]} == {policy}
    assert [t["version"] for t in life.trainings] == list(range(1, len(days) + 2))
    assert all(t["outcome"] in ("accepted", "refused", "cannot_decide") for t in life.trainings)
    assert all(bool(t["effective_from"]) == (t["outcome"] == "accepted") for t in life.trainings)


@pytest.fixture(scope="module")
def twitchy(taken_in: History) -> History:
    """Every day is drift."""
    return replace(taken_in, model=model(prediction=1e-6))


def test_governed_asks_when_the_rules_allow(twitchy: History, tmp_path: Path) -> None:
    """And days taken in one by one, one of them delivered twice, are no other days."""
    life = live(twitchy, scenario("governed", 2), tmp_path / "one")
    days = [str(FIRST), str(FIRST + DAY)]
    assert {day: found["verdict"] for day, found in life.verdicts.items()} == dict.fromkeys(days, "prediction_drift")
    assert [life.requests[day]["outcome"] for day in days] == ["refused", "allowed"]
    assert [(t["as_of"], t["reason"]) for t in life.trainings[1:]] == [(days[1], "prediction_drift")]

    again = live(twitchy, scenario("governed", 2, delivered_times(2)), tmp_path / "two")
    assert again.stopped == {}
    for part in ("trainings", "verdicts", "requests"):
        assert timeless(again)[part] == timeless(life)[part]


def delivered_times(copies: int) -> Fault:
    return Fault("twice", f"{copies} times", FIRST, FIRST, copies=copies, harmless=True)


def test_a_day_delivered_twice_changes_nothing(taken_in: History, tmp_path: Path) -> None:
    once, twice = (
        live(taken_in, scenario("never", 3, delivered_times(copies)), tmp_path / f"{copies}") for copies in (1, 2)
    )
    assert timeless(twice) == timeless(once)
    assert once.auc["all"] is not None


def test_a_flood_of_nulls_is_noticed_and_trains_nothing(taken_in: History, tmp_path: Path) -> None:
    flood = Fault(
        "flood", "no amount", FIRST + DAY, FIRST + DAY, table="orders", change=lambda row: {**row, "amount": ""}
    )
    life = live(taken_in, scenario("governed", 3, flood), tmp_path)
    found = [life.verdicts[str(FIRST + at * DAY)] for at in range(3)]
    assert [verdict["verdict"] for verdict in found][:2] == ["ok", "broken_data"]
    assert found[1]["guilty"] == ["amount"]
    assert life.requests[str(FIRST + DAY)]["outcome"] == "refused"
    assert len(life.trainings) == 1


def test_a_late_day_is_scored_after_its_files_came(taken_in: History, tmp_path: Path) -> None:
    """Run D waits for the files of D, and run D + 1 for the outcomes of D."""
    day = FIRST + DAY
    late = Fault("late", "three days late", day, day, late_days=3)
    spec = machine._timeless(taken_in.model)
    run, life = machine._Run(taken_in, spec, scenario("never", 6, late), tmp_path), Life("late")
    assert max(run.platform.lake.counts("trusted.orders")) == FIRST
    machine.train(run.platform, spec, FIRST, "first", "a champion", life)
    scored: dict[dt.date, list[int]] = {}
    for at in range(6):
        run.day(FIRST + at * DAY, life)
        scored[FIRST + at * DAY] = [
            back for back in range(6) if run.platform.mart.scoring(spec.name, FIRST + back * DAY) is not None
        ]
    assert list(scored.values()) == [[0], [0], [0], [0, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert list(life.stopped) == [str(day), str(day + DAY)]
    assert all(why.startswith("DeliveryMissing: ") for why in life.stopped.values())
    assert run.platform.lake.counts("trusted.orders")[day] == 60
    assert run.pending == []


def test_a_fault_in_the_spec_is_deployed_on_its_date(taken_in: History, tmp_path: Path) -> None:
    day = FIRST + DAY
    fault = Fault("shift", "higher", day, dt.date.max, spec=shifted("amount", 500.0, day))
    run = machine._Run(taken_in, taken_in.model, scenario("never", 3, fault), tmp_path)
    assert run.spec_of(FIRST) == taken_in.model
    assert run.spec_of(day) == run.spec_of(dt.date(2030, 1, 1)) == shifted("amount", 500.0, day)(taken_in.model)
    assert run.platform.lake.counts("trusted.orders").keys() == set(examples.dates(DAYS)), "files are left alone"


def test_without_a_first_champion_there_is_no_life(taken_in: History, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"never: expected a first champion, found: .*expected"):
        live(taken_in, scenario("never", 3, first=examples.FIRST + 3 * DAY), tmp_path)


# --- the journal -----------------------------------------------------------------------------------------------------


def test_what_was_lived_is_not_lived_again(taken_in: History, tmp_path: Path) -> None:
    chosen = scenario("weekly", 2, first=dt.date(2024, 2, 25))
    (tmp_path / "weekly.run").mkdir()
    (tmp_path / "weekly.run" / "mart.db").write_bytes(b"of a run that broke off")
    days: list[dt.date] = []
    life = machine.lived(taken_in, chosen, tmp_path, days.append)
    assert days == chosen.days
    assert [path.name for path in tmp_path.iterdir()] == ["weekly.json"]
    again = machine.lived(taken_in, chosen, tmp_path, days.append)
    assert len(days) == 2
    assert again == life

    fresh = machine.lived(taken_in, chosen, tmp_path / "elsewhere", days.append)
    assert len(days) == 4
    assert timeless(fresh) == timeless(life)


def test_half_a_journal_is_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine.journal(tmp_path, "a") as (kept, keep):
        assert kept is None
        with pytest.raises(TypeError):
            keep({"x": object()})
    with machine.journal(tmp_path, "a") as (kept, keep):
        assert kept is None
        keep({"b": 1, "a": [2]})

    def dies(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched, machine.journal(tmp_path, "a") as (kept, keep):
        assert kept == {"a": [2], "b": 1}
        patched.setattr(Path, "replace", dies)
        with pytest.raises(OSError, match="the disk is full"):
            keep({"b": 2})
    with machine.journal(tmp_path, "a") as (kept, _):
        assert kept == {"a": [2], "b": 1}


def test_another_engine_or_fault_is_another_journal(
    taken_in: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "include/evergreen/gate.py": True,
        "include/sources/shop/faults.py": True,
        "include/evergreen/replay/story.py": False,
        "include/evergreen/local/stack.py": False,
        "include/sources/zoo/faults.py": False,
    }
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before", encoding="utf-8")
    monkeypatch.setattr(cli, "PROJECT", tmp_path)
    known = cli.inputs(taken_in)
    assert cli.inputs(taken_in) == known
    for name, matters in files.items():
        (tmp_path / name).write_text("after", encoding="utf-8")
        assert (cli.inputs(taken_in) != known) is matters, name
        (tmp_path / name).write_text("before", encoding="utf-8")
    assert cli.inputs(replace(taken_in, model=model(prediction=1.0))) != known
    assert cli.inputs(replace(taken_in, last=LAST - DAY)) != known


# --- what is run -----------------------------------------------------------------------------------------------------


def test_policies_live_on_what_calibration_has_not_seen(taken_in: History) -> None:
    calibration = {"as_of": FIRST, "budget": 1, "false_alarms": 1, "alarm_days": 0, "by_kind": {}, "multiplier": 1,
                   "months": 5, "seed": 0}  # fmt: skip
    spec = ModelSpec.model_validate({**taken_in.model.model_dump(), "calibration": calibration})
    for past, first in ((replace(taken_in, model=spec), FIRST), (taken_in, examples.FIRST)):
        found = machine.policies(past)
        assert [s.policy for s in found] == ["never", "monthly", "weekly", "governed"]
        assert {(s.first, s.last, s.fault) for s in found} == {(first, LAST - DAY, None)}, "labels mature in a day"


def test_faults_are_lived_beside_a_life_without(taken_in: History, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.faults(taken_in) == [], "a source without faults.py"
    made = types.ModuleType("include.sources.shop.faults")
    made.FAULTS = (Fault("x", "x", AT, AT), Fault("y", "y", AT, AT))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    past = taken_in
    clean, *lives = machine.faults(past)
    assert clean.fault is None
    assert [s.name for s in (clean, *lives)] == ["no-fault", "x", "y"]
    assert {(s.first, s.last) for s in (clean, *lives)} == {(machine.policies(past)[0].first, AT + machine.AFTER * DAY)}


def test_placebo_alarms_need_a_calibration(taken_in: History, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="run make calibrate MODEL=late_order"):
        machine.placebo_alarms(taken_in, tmp_path, lambda *_: None)


def test_the_week_of_a_day_is_its_iso_week() -> None:
    assert [machine.week_of(dt.date(2024, 12, day)) for day in (29, 30)] == ["2024-W52", "2025-W01"]


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["calibrate"], {"as_of": None, "budget": 1.0, "months": 40, "seed": 0}),
        (["calibrate", "--as-of", "2013-06-01", "--budget", "2"], {"as_of": dt.date(2013, 6, 1), "budget": 2.0}),
        (["gate-selftest", "--resamples", "5"], {"as_of": None, "resamples": 5}),
        (["time-machine", "--model", "other"], {"model": "other", "docs": PROJECT / "docs"}),
    ],
    ids=str,
)
def test_the_command_line_reaches_its_part(
    argv: list[str], found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from include.evergreen.replay import calibration, selftest

    parts = {"calibrate": calibration, "gate-selftest": selftest, "time-machine": cli}
    called: list[argparse.Namespace] = []

    def part(arguments: argparse.Namespace) -> int:
        called.append(arguments)
        return 7

    monkeypatch.setattr(parts[argv[0]], "main", part)
    assert command.main(argv) == 7
    assert {name: getattr(called[0], name) for name in found} == found
