"""The page of the time machine, from lives made by hand."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from include.evergreen.replay import story
from include.evergreen.replay.faults import Fault
from include.evergreen.replay.machine import Life, Scenario
from include.evergreen.replay.story import Found
from include.evergreen.specs import ModelSpec
from tests import examples

FIRST, LAST, AT = dt.date(2024, 6, 3), dt.date(2024, 8, 4), dt.date(2024, 7, 1)
WEEKS = [f"2024-W{week}" for week in range(23, 32)]
NAMES = (
    "loss",
    "trainings",
    "no training",
    "no promotion",
    "shifts",
    "false alarms",
    "gate",
)


def training(as_of: str, version: int, promoted: bool, reason: str = "prediction_drift") -> dict[str, Any]:
    return {
        "as_of": as_of,
        "reason": reason,
        "version": version,
        "champion": None if version == 1 else 1,
        "outcome": "accepted" if promoted else "refused",
        "effective_from": str(dt.date.fromisoformat(as_of) + dt.timedelta(days=1)) if promoted else None,
        "reasons": ["300 fresh rows", f"auc gain over champion 1 is {'+' if promoted else '-'}0.0100 on 300 rows"],
    }


FIRST_CHAMPION = {**training(str(FIRST), 1, True, "the first champion"), "effective_from": str(FIRST)}


def life(name: str, level: float, trainings: tuple[dict[str, Any], ...] = (), **more: Any) -> Life:
    """AUC of `level` every week; version 2 is 0.01 better than version 1 from its week on."""
    auc: dict[str, float | None] = dict.fromkeys(WEEKS, level)
    versions: dict[str, dict[str, float | None]] = {"1": {**dict.fromkeys(WEEKS, 0.70), "all": 0.70}}
    versions |= {str(t["version"]): {**dict.fromkeys(WEEKS, 0.71), "all": 0.71} for t in trainings}
    return Life(name, [FIRST_CHAMPION, *trainings], auc={**auc, "all": level - 0.001}, versions=versions, **more)


def scenario(name: str, policy: Any, fault: Fault | None = None) -> Scenario:
    return Scenario(name, policy, FIRST, LAST, fault)


def verdict(kind: str, *guilty: str) -> dict[str, Any]:
    return {"verdict": kind, "guilty": list(guilty), "reasons": [f"{kind} was found"]}


def spec() -> ModelSpec:
    calibration = {"as_of": FIRST, "budget": 1.0, "false_alarms": 0.9, "alarm_days": 0.1, "by_kind": {},
                   "multiplier": 1.2, "months": 40, "seed": 0}  # fmt: skip
    return examples.model(calibration=calibration)


KILOMETRES = Fault("kilometres", "another unit", AT, AT, table="orders")
LATE = Fault("late", "three days late", AT, AT, late_days=3)
TWICE = Fault("twice", "delivered twice", AT, AT, copies=2, harmless=True)
SHIFT: dict[str, Any] = {"date": str(AT), "feature": "amount", "rank": 1, "amount": 0.5, "delay": 1, "named": True,
                         "verdict": "broken_data"}  # fmt: skip


def found(**changes: Any) -> Found:
    """Everything promised holds."""
    drift = {str(AT): verdict("ok"), "2024-07-02": verdict("broken_data", "amount", "region", "late_before", "x")}
    lives = {
        "policies": [
            (scenario("never", "never"), life("never", 0.68)),
            (scenario("monthly", "monthly"), life("monthly", 0.69, (training("2024-07-01", 2, False, "monthly"),))),
            (
                scenario("weekly", "weekly"),
                life("weekly", 0.7048, tuple(training(f"2024-06-{day}", v, v == 2, "weekly")
                                            for v, day in ((2, 10), (3, 17), (4, 24)))),
            ),
            (
                scenario("governed", "governed"),
                life("governed", 0.70, (training("2024-06-12", 2, True),),
                     verdicts={"2024-06-12": verdict("prediction_drift", "amount"), **drift}),
            ),
        ],
        "faults": [
            (scenario("no-fault", "governed"), life("no-fault", 0.7, (training("2024-07-20", 2, True),))),
            (
                scenario("kilometres", "governed", KILOMETRES),
                life("kilometres", 0.7, (training("2024-07-20", 2, True),), verdicts=drift),
            ),
            (
                scenario("late", "governed", LATE),
                life("late", 0.7, stopped={str(AT): "DeliveryMissing: orders: expected a file"}),
            ),
            (scenario("twice", "governed", TWICE), life("twice", 0.7, verdicts={str(AT): verdict("ok")})),
        ],
        "shifts": [SHIFT, {**SHIFT, "amount": -0.5, "delay": 2, "named": False}],
        "placebo": {"a_month": 1.0, "alarm_days": 0.12, "by_kind": {"label_drift": 1.0}, "months": 40},
        "selftest": {"false_accepts": 0.05, "false_rejects": 0.1, "smallest_gain": 0.011, "fresh_days": 7,
                     "frozen_days": 9, "trials": 200, "rows": [["twin", "0 of 200", "+0.0000"]]},
    }  # fmt: skip
    return Found(spec(), **{**lives, **changes})


def policies(**lives: Life) -> list[tuple[Scenario, Life]]:
    return [(chosen, lives.get(chosen.name, kept)) for chosen, kept in found().policies]


def faulty(*trainings: dict[str, Any]) -> list[tuple[Scenario, Life]]:
    clean, (chosen, kept), *rest = found().faults
    return [clean, (chosen, replace(kept, trainings=[*kept.trainings, *trainings])), *rest]


# --- bars ------------------------------------------------------------------------------------------------------------


def missed(given: Found) -> list[str]:
    return [name for name, (_, _, met) in zip(NAMES, story.bars(given), strict=True) if not met]


def test_every_bar_can_be_met() -> None:
    assert missed(found()) == []


BROKEN: dict[str, dict[str, Any]] = {
    "loss": {"policies": policies(governed=life("governed", 0.6997, (training("2024-06-12", 2, True),)))},
    "trainings": {
        "policies": policies(
            governed=life("governed", 0.70, tuple(training(f"2024-06-{day}", 2, False) for day in (12, 20)))
        )
    },
    "no training": {"faults": faulty(training("2024-07-02", 3, False))},
    "shifts": {"shifts": [SHIFT, {**SHIFT, "feature": "region", "delay": None, "verdict": "ok", "named": False}]},
    "false alarms": {"placebo": {**found().placebo, "a_month": 1.01}},
    "gate": {"selftest": {**found().selftest, "false_accepts": 0.051}},
}


@pytest.mark.parametrize(("bar", "changes"), BROKEN.items(), ids=BROKEN)
def test_every_bar_can_be_missed(bar: str, changes: dict[str, Any]) -> None:
    assert missed(found(**changes)) == [bar]


def test_a_promotion_on_a_fault_misses_two_bars() -> None:
    given = found(faults=faulty(training("2024-07-02", 3, True)))
    assert missed(given) == ["no training", "no promotion"]
    assert [measured for _, measured, met in story.bars(given) if not met] == ["kilometres: 2024-07-02"] * 2


def test_trainings_of_the_same_days_without_a_fault_or_before_it_are_no_answer_to_it() -> None:
    before = training("2024-06-30", 3, True)
    assert missed(found(faults=faulty(before))) == []


def test_bars_say_what_was_measured() -> None:
    says = dict(zip(NAMES, (measured for _, measured, _ in story.bars(found())), strict=True))
    assert says["loss"] == "+0.0048 (0.7000 against 0.7048)"
    assert says["trainings"] == "1 of 3", "the first champion is nobody's spending"
    assert says["no training"] == "none that the same days without a fault did not have"
    assert says["shifts"] == "2 of 2 (none missed)"
    assert says["false alarms"] == "1.00 on 40 months drawn anew; 0.90 at calibration"
    assert says["gate"] == "5.0% of 200 trials a rival (5% allowed)"
    says = dict(zip(NAMES, (measured for _, measured, _ in story.bars(found(**BROKEN["shifts"]))), strict=True))
    assert says["shifts"] == "1 of 2 (region)"


def test_bars_without_faults_are_judged() -> None:
    assert missed(found(faults=[])) == []


# --- hindsight and detection -----------------------------------------------------------------------------------------


def test_a_promotion_is_judged_by_the_weeks_after_it() -> None:
    """In force from a Tuesday of W24: the four weeks from W25 on, where both versions are known."""
    promoted = training("2024-06-10", 2, True)
    given = life("weekly", 0.7, (promoted,))
    (judged,) = story.hindsight(given)
    assert judged == {"as_of": "2024-06-10", "version": 2, "gain": pytest.approx(0.01), "weeks": 4}
    given.versions["2"] |= {"2024-W23": 0.1, "2024-W24": 0.1, "2024-W26": None, "2024-W28": 0.67, "2024-W30": 0.1}
    assert story.hindsight(given)[0]["gain"] == pytest.approx((0.01 + 0.01 - 0.03 + 0.01) / 4), "W25, W27, W28, W29"
    given.versions["1"] |= {"2024-W28": None}
    assert story.hindsight(given)[0] == {**judged, "weeks": 3}


def test_a_promotion_without_a_week_after_it_is_not_judged() -> None:
    (judged,) = story.hindsight(life("weekly", 0.7, (training("2024-07-30", 2, True),)))
    assert (judged["gain"], judged["weeks"]) == (None, 0)
    assert story.hindsight(life("never", 0.7)) == []


def test_wrong_promotions_are_counted() -> None:
    wrong = life("weekly", 0.705, tuple(training(f"2024-06-{d}", v, v != 3) for v, d in ((2, 10), (3, 17), (4, 24))))
    wrong.versions["4"] = dict.fromkeys(WEEKS, 0.69)
    row = next(line for line in page(found(policies=policies(weekly=wrong))).splitlines() if "| weekly |" in line)
    assert cells(row) == ["weekly", "0.7050", "0.7040", "3", "2", "1", "1 of 2", "+0.0000"]


@pytest.mark.parametrize(
    ("fault", "noticed", "what"),
    [
        (KILOMETRES, 1, "broken_data: amount; region; late_before"),
        (LATE, 0, "stopped: DeliveryMissing: orders: expected a file"),
        (TWICE, None, "nothing"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_first_sign_of_a_fault(fault: Fault, noticed: int | None, what: str) -> None:
    chosen, given = next((s, one) for s, one in found().faults if s.fault is fault)
    assert story.detection(chosen, given) == (noticed, what)
    early = {"2024-06-20": verdict("broken_data", "x")}
    stopped = {"2024-06-21": "DeliveryMissing: of another day"}
    both = replace(given, verdicts={**given.verdicts, **early}, stopped={**given.stopped, **stopped})
    assert story.detection(chosen, both) == (noticed, what)


def test_the_earlier_of_two_signs_is_the_first() -> None:
    chosen, given = found().faults[1]
    given = replace(given, stopped={"2024-07-03": "DeliveryMissing: x"})
    assert story.detection(chosen, given)[0] == 1
    assert story.detection(chosen, replace(given, stopped={str(AT): "PartitionStopped: y"})) == (
        0,
        "stopped: PartitionStopped: y",
    )
    nobody = {"2024-07-01": verdict("broken_data")}
    assert story.detection(chosen, replace(given, verdicts=nobody)) == (0, "broken_data: broken_data was found")


# --- the page --------------------------------------------------------------------------------------------------------


def page(given: Found) -> str:
    return story.text(given, "plot.svg")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def tables(text: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of its table, head first. A table that is not well-formed fails here."""
    read: dict[str, list[list[str]]] = {}
    heading = ""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("## "):
            heading = line[3:]
        if not line.startswith("|"):
            assert "|" not in line, f"a row broke in two: {line}"
            continue
        assert line.endswith("|")
        if not lines[at - 1].startswith("|"):
            assert heading not in read, "one table under a heading"
            read[heading] = []
            assert set(lines[at + 1]) == set("|-")
        if set(line) != set("|-"):
            read[heading].append(cells(line))
        assert line.count("|") == len(read[heading][0]) + 1, line
    return read


def test_the_page_has_every_table() -> None:
    read = tables(page(found()))
    assert list(read) == [
        "What was promised",
        "Policies",
        "What the governor did",
        "Faults of known date",
        "Shifts",
        "The gate",
    ]
    assert [row[0] for row in read["Policies"][1:]] == ["never", "monthly", "weekly", "governed"]
    assert read["Policies"][1][3:] == ["0", "0", "0", "0 of 0", ""]
    assert read["Policies"][3][3:6] == ["3", "1", "2"]
    assert read["What the governor did"][1] == [
        "2024-06-12",
        "prediction_drift",
        "version 2 promoted",
        "auc gain over champion 1 is +0.0100 on 300 rows",
    ]
    assert read["Faults of known date"][1:] == [
        ["kilometres: another unit", "1 days", "broken_data: amount; region; late_before", "2024-07-20", "2024-07-20",
         "broken_data on 1 days, ok on 1 days"],
        ["late: three days late", "0 days", "stopped: DeliveryMissing: orders: expected a file", "none", "2024-07-20",
         ""],
        ["twice: delivered twice", "harmless, nothing to notice", "nothing", "none", "2024-07-20", "ok on 1 days"],
    ]  # fmt: skip
    assert read["Shifts"][1] == ["`amount`", "2 of 2", "1.5", "1 of 2", "broken_data"]
    assert read["The gate"][1] == ["twin", "0 of 200", "+0.0000"]
    assert {row[2] for row in read["What was promised"][1:]} == {"yes"}
    assert "![AUC by week](plot.svg)" in page(found())


def test_verdicts_are_counted_the_most_frequent_first() -> None:
    """And of the same number by name: the order of a set is another one in every process."""
    kinds = ["ok", "ok", "performance_drop", "label_drift", "prediction_drift", "covariate_drift", "broken_data"]
    days = {f"2024-06-{at + 10}": verdict(kind) for at, kind in enumerate(kinds)}
    given = page(found(policies=policies(governed=life("governed", 0.7, verdicts=days))))
    rest = [f"{kind} on 1 days" for kind in sorted(kinds[2:])]
    assert f"Verdicts: ok on 2 days, {', '.join(rest)}." in given


def test_a_missed_bar_is_on_the_page() -> None:
    given = page(found(**BROKEN["false alarms"]))
    assert [row[1] for row in tables(given)["What was promised"] if row[2] == "**no**"] == [
        "1.01 on 40 months drawn anew; 0.90 at calibration"
    ]


def test_a_fault_that_nobody_noticed_is_said() -> None:
    clean, (chosen, kept), *rest = found().faults
    given = found(faults=[clean, (chosen, replace(kept, verdicts={str(AT): verdict("ok")})), *rest])
    assert tables(page(given))["Faults of known date"][1][1:3] == ["never", "nothing"]


def test_a_shift_that_nobody_noticed_is_said() -> None:
    nothing = {**SHIFT, "delay": None, "named": False, "verdict": "ok"}
    read = tables(page(found(shifts=[nothing])))
    assert read["Shifts"][1] == ["`amount`", "0 of 1", "", "0 of 0", ""]


def test_what_a_gate_or_an_upstream_says_breaks_no_table() -> None:
    odd = "expected a | b\nfound the champion of\n| c |"
    failed = {**training("2024-06-12", 2, False), "outcome": "failed", "version": None, "reasons": [odd]}
    clean, (chosen, kept), *rest = found().faults
    given = found(
        policies=policies(governed=life("governed", 0.7, (failed,))),
        faults=[clean, (chosen, replace(kept, stopped={str(AT): odd})), *rest],
    )
    read = tables(page(given))
    assert "expected a / b found the champion of / c /" in " ".join(read["What the governor did"][1])
    assert "expected a / b" in read["Faults of known date"][1][2]


def test_a_source_without_faults_has_no_such_table() -> None:
    assert "Faults of known date" not in page(found(faults=[]))


def test_the_same_lives_give_the_same_bytes(tmp_path: Path) -> None:
    assert page(found()) == page(found())
    written = []
    for name in ("one.svg", "two.svg"):
        story.plot(found(), tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert not [year for year in ("2025", "2026", "2027") if f">{year}" in written[0].decode()], "no date of today"


def test_the_plot_has_a_line_per_policy_and_a_dot_per_promotion(tmp_path: Path) -> None:
    gap = life("never", 0.68)
    gap.auc["2024-W25"] = None
    given = found(policies=policies(never=gap))
    story.plot(given, tmp_path / "plot.svg")
    svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"never", "monthly", "weekly", "governed", "AUC of the week"} <= set(texts)
    assert all(colour in svg for colour in story.COLOURS.values())
    dots = [node for node in root.iter() if node.get("id", "").startswith("PathCollection")]
    assert [sum(1 for use in node.iter("{http://www.w3.org/2000/svg}use")) for node in dots] == [0, 0, 1, 1]
