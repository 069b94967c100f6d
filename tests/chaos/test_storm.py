"""A storm of verdicts: a hundred within moments, out of order, repeated, from eight processes, on real flights.

What may be asked and told is computed here from the rows alone, read by sqlite3 or psycopg.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.drift import report
from include.evergreen.drift.sketch import sketch
from include.evergreen.features.build import features
from include.evergreen.pipeline import monitoring, retraining
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import PREDICTION
from tests.chaos.flights import DAY, SOURCE, TRAINED, Outside, opened, postgres_server, quick, score, together, world
from tests.chaos.tally import Tally

SPEC = quick()
SCORED = TRAINED + 8 * DAY
DATES = [SCORED + i * DAY for i in range(50)]
PROCESSES = 8
Verdicts = list[tuple[str, str, dict[str, Any]]]


@dataclass(frozen=True)
class Measured:
    """What monitoring found on a real date, and the store that all of this file uses."""

    store: ObjectStoreSettings
    platform: Platform
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def measured(s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    platform = world(s3_store, tmp_path_factory.mktemp("storm"), SPEC)
    score(platform, SPEC, SCORED, "score")
    facts = monitoring.measure(platform, SPEC, SOURCE, SCORED, "monitor")
    yield Measured(s3_store, platform, json.loads(json.dumps(facts)))
    platform.mart.engine.dispose()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def mart(request: pytest.FixtureRequest, measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """A platform whose mart knows the model and nothing else."""
    url = request.getfixturevalue("postgres") if request.param == "postgres" else None
    platform = opened(measured.store, tmp_path_factory.mktemp("mart"), url)
    platform.mart.ensure_model(SPEC, SOURCE)
    return platform


def verdict(facts: dict[str, Any], as_of: dt.date, kind: str) -> dict[str, Any]:
    """The measured facts as of another date, with what makes them a verdict of this kind."""
    found: dict[str, Any] = json.loads(json.dumps(facts))
    found.pop("seen", None)  # said of the date that was measured
    found |= {"as_of": as_of.isoformat(), "stopped": [], "misfits": {}, "recent_rows": [found["scored_rows"]] * 7}
    for name, column in found["columns"].items():
        drifted = kind == "covariate_drift" and name != PREDICTION
        column |= {"breached": drifted, "score": column["threshold"] * (2 if drifted else 0.5), "note": ""}
    for health in found["health"].values():
        health |= {"null_share": 0.0, "reference_null_share": 0.0, "distinct": 9, "reference_distinct": 9}
        health["only_value_share"] = None
    figures = {"auc": 0.7, "auc_low": 0.68, "auc_high": 0.72, "reference_auc": 0.7, "reference_auc_low": 0.68}
    figures |= {"reference_auc_high": 0.72, "label_rate": 0.2, "reference_rate": 0.2, "revised": [], "newest_auc": 0.7}
    found["performance"] |= {**figures, "newest_auc_high": 0.8}
    if kind == "broken_data":
        found["stopped"] = [f"schedules of {as_of}: expected a published partition, found none"]
    return found


def tell(settings: Settings, spec: ModelSpec, verdicts: Verdicts) -> list[bool]:
    """As `monitor__<model>`, one verdict after another: conclude, then ask for a retrain."""
    platform = Platform(settings)
    answers = []
    for as_of, run_id, facts in verdicts:
        day = dt.date.fromisoformat(as_of)
        monitoring.conclude(platform, spec, SOURCE, day, facts, run_id)
        answers.append(retraining.ask(platform, spec, day, run_id).decision.accepted)
    return answers


def storm(platform: Platform, told: list[tuple[dt.date, str, dict[str, Any]]]) -> list[bool]:
    """All of them at once, dealt to the processes."""
    plain = [(day.isoformat(), run_id, facts) for day, run_id, facts in told]
    work = [(tell, (platform.settings, SPEC, plain[i::PROCESSES])) for i in range(PROCESSES)]
    answers = together(*work)
    assert [kind for kind, _ in answers] == ["answer"] * PROCESSES, answers
    return [answer for _, some in answers for answer in some]


def day_of(value: Any) -> dt.date:
    return dt.date.fromisoformat(str(value)[:10])


def asked_for(outside: Outside) -> list[dt.date]:
    rows = outside.mart("select as_of from ledger where kind = 'retrain' and outcome = 'allowed'")
    return sorted(day_of(row["as_of"]) for row in rows)


def within_policy(days: list[dt.date]) -> None:
    """No two requests too near, never more than the budget in any window."""
    policy = SPEC.retrain
    assert len(set(days)) == len(days), days
    assert all((b - a).days >= policy.cooldown_days for a, b in itertools.pairwise(days)), days
    for start in days:
        spent = [day for day in days if start <= day < start + policy.budget_days * DAY]
        assert len(spent) <= policy.budget, (start, spent)


def test_a_storm_of_drift_asks_what_the_policy_allows_and_calls_once(
    measured: Measured, mart: Platform, tally: Tally, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fifty dates, each told by two runs, in any order: few requests, one alert; the same storm again adds nothing."""
    told = [
        (day, f"monitor-{day}-{twice}", verdict(measured.facts, day, "covariate_drift"))
        for day in DATES
        for twice in (1, 2)
    ]
    random.Random(1).shuffle(told)
    outside = Outside(mart.settings, tmp_path_factory.mktemp("outside"))
    with tally.fault("drift storm", f"{len(told)} verdicts, {mart.mart.engine.dialect.name}") as fault:
        answers = storm(mart, told)
        days = asked_for(outside)
        within_policy(days)
        assert days and sum(answers) >= len(days)
        monitored = outside.mart("select as_of, verdict from monitorings")
        fault.rows(
            [(day, "covariate_drift") for day in DATES],
            [(day_of(row["as_of"]), row["verdict"]) for row in monitored],
        )
        verdicts = outside.mart("select as_of from ledger where kind = 'verdict'")
        assert Counter(day_of(row["as_of"]) for row in verdicts) == dict.fromkeys(DATES, 1)
        alerts = outside.mart("select cause, resolved_at, as_of from alerts")
        assert [(row["cause"], row["resolved_at"]) for row in alerts] == [(f"{SPEC.name}|drift", None)]
        assert day_of(alerts[0]["as_of"]) == DATES[-1]
        due = together(*[(claim, (mart.settings,))] * 4)
        assert sorted(found for _, found in due) == [0, 0, 0, 1]

        before = standing(outside)
        random.Random(11).shuffle(told)
        assert storm(mart, told)
        assert standing(outside) == before


def standing(outside: Outside) -> dict[str, list[str]]:
    """What a repetition must leave as it is. A run that asks again is refused anew: that is a row of the ledger."""
    queries = {
        "decisions": "select * from ledger where kind <> 'retrain' or outcome = 'allowed' order by id",
        "alerts": "select * from alerts order by id",
        "occurrences": "select * from alert_occurrences order by cause, run_id, dated",
    }
    return {name: [repr(row) for row in outside.mart(query)] for name, query in queries.items()}


def claim(settings: Settings) -> int:
    """How many alerts a sender is to tell of."""
    return len(Inbox(Platform(settings).mart).claim("mail", dt.timedelta(hours=24)))


def test_a_mixed_storm_never_retrains_on_broken_data(
    measured: Measured, mart: Platform, tally: Tally, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Drift, broken data and calm, shuffled: no broken or calm date asks; every cause has at most one open alert."""
    kinds = ["covariate_drift", "covariate_drift", "broken_data", "covariate_drift", "ok"]
    of = {day: kinds[i % len(kinds)] for i, day in enumerate(DATES)}
    told = [(day, f"run-{day}-{twice}", verdict(measured.facts, day, of[day])) for day in DATES for twice in (1, 2)]
    random.Random(3).shuffle(told)
    outside = Outside(mart.settings, tmp_path_factory.mktemp("outside"))
    with tally.fault("drift storm", f"{len(told)} mixed verdicts, {mart.mart.engine.dialect.name}") as fault:
        storm(mart, told)
        days = asked_for(outside)
        within_policy(days)
        assert {of[day] for day in days} <= {"covariate_drift"}
        monitored = outside.mart("select as_of, verdict from monitorings")
        fault.rows(of.items(), [(day_of(row["as_of"]), row["verdict"]) for row in monitored])
        alerts = outside.mart("select cause, resolved_at from alerts")
        opened_now = Counter(row["cause"] for row in alerts if row["resolved_at"] is None)
        assert all(count == 1 for count in opened_now.values()), alerts
        assert {row["cause"] for row in alerts} <= {f"{SPEC.name}|drift", f"{SPEC.name}|broken_data"}
        assert not opened_now, "the newest date is calm: nothing stays open"


MARKUP = [
    "<script>parent.hacked=1</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "<!-- verdict -->",
    "`${alert(1)}`",
    "</td></table><iframe src=javascript:alert(1)>",
]


def test_markup_in_the_data_stays_text_on_every_page(measured: Measured, tally: Tally) -> None:
    """Category values of real rows replaced by markup: it reaches neither the drift report nor its JSON as markup."""
    platform = measured.platform
    seen = features(platform.lake, SPEC, SCORED, SCORED, cut=SCORED)
    bundle = platform.registry.load(SPEC.name, 2)
    seen = seen.append_column(PREDICTION, pa.array(bundle.predict(seen).astype("float64")))
    kinds = report.kinds(SPEC)
    clean = sketch(seen, kinds, SPEC.monitoring.sketch_rows)
    for name in SPEC.categories:
        hostile = pa.array([MARKUP[i % len(MARKUP)] for i in range(seen.num_rows)])
        seen = seen.set_column(seen.column_names.index(name), name, hostile)
    with tally.fault("markup in the data", "drift report"):
        dirty = sketch(seen, kinds, SPEC.monitoring.sketch_rows)
        scripts = []
        for current in (clean, dirty):
            page = report.build(clean, current, SPEC, {"model": MARKUP[0]}).html.decode()
            scripts.append((page.count("<script"), page.count("<iframe"), page.count("<img")))
            assert not [text for text in MARKUP[:5] if text in page]
        assert scripts[0] == scripts[1]
