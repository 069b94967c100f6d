"""The helpers that tasks are made of."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string
from airflow.triggers.base import TriggerEvent

from include.evergreen.errors import DeliveryMissing, EvergreenError, Refused, SettingsError, Unavailable
from include.evergreen.orchestration import assets, defaults, runs
from include.evergreen.orchestration.sensors import DeliverySensor, DeliveryTrigger

DAY = dt.date(2013, 7, 1)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_retrain_key_names_the_model_and_the_date() -> None:
    key = assets.retrain_key("flight_delay", DAY)
    assert key == "flight_delay|2013-07-01"
    assert assets.date_of(key) == assets.date_of("2013-07-01") == DAY


@pytest.mark.parametrize("key", ["", "flight_delay", "2013-07-01|flight_delay", "flight_delay|2013-02-30", "1 July"])
def test_a_key_without_a_date_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|day is out of range"):
        assets.date_of(key)


def test_no_two_assets_share_a_name_or_an_address() -> None:
    made = [make(name) for name in ("a", "b") for make in (assets.trusted, assets.predictions)]
    made += [make(name) for name in ("a", "b") for make in (assets.retrain_requested, assets.champion)]
    made += [assets.approval_requested(name) for name in ("a", "b")]
    assert len({asset.name for asset in made}) == len({asset.uri for asset in made}) == 10


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """What a task sees of its run."""

    def __init__(self, partition_key: str | None = None, run_id: str = "manual", **params: Any) -> None:
        self.partition_key = partition_key
        self.context: dict[str, Any] = {"dag_run": self, "params": params, "run_id": run_id}


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Any:
    def enter(run: Run) -> None:
        monkeypatch.setattr(runs, "get_current_context", lambda: run.context)

    return enter


@pytest.mark.parametrize(
    "run",
    [
        Run("2013-07-01"),
        Run("flight_delay|2013-07-01"),
        Run(None, as_of="2013-07-01"),
        Run("2013-07-01", as_of="2013-01-01"),
    ],
)
def test_the_as_of_date_is_the_partition_key_else_the_param(run: Run, within: Any) -> None:
    within(run)
    assert runs.as_of() == DAY


@pytest.mark.parametrize("run", [Run(), Run(None, as_of=None), Run("tomorrow"), Run(None, as_of="2013-13-01")])
def test_a_run_without_a_date_is_refused_with_what_it_had(run: Run, within: Any) -> None:
    within(run)
    with pytest.raises(Refused, match=r"YYYY-MM-DD.*found"):
        runs.as_of()


@pytest.mark.parametrize(
    ("run_id", "key"),
    [
        ("scheduled__2013-07-01T00:00:00+00:00", "scheduled__2013-07-01T00-00-00-00-00"),
        ("manual/../../x", "manual-..-..-x"),
        ("it's `this`\n", "it-s--this--"),
        ("plain_1.2-3", "plain_1.2-3"),
    ],
)
def test_a_run_key_is_safe_in_keys_tags_and_sql(run_id: str, key: str, within: Any) -> None:
    within(Run(run_id=run_id))
    assert runs.run_key() == key


@pytest.mark.parametrize(("user", "named"), [("ada", "ada"), (None, "airflow"), ("", "airflow"), ("x" * 80, "x" * 64)])
def test_a_run_by_hand_names_its_user(user: str | None, named: str, within: Any) -> None:
    run = Run()
    run.triggering_user_name = user  # type: ignore[attr-defined]
    within(run)
    assert runs.actor() == named


def test_airflow_tells_a_task_who_started_its_run() -> None:
    from airflow.sdk.api.datamodels._generated import DagRun

    assert "triggering_user_name" in DagRun.model_fields


class Event:
    def __init__(self, *reasons: str) -> None:
        self.extra = {"reasons": list(reasons)}


def test_a_training_says_why_by_its_param_or_its_events(within: Any) -> None:
    asset = assets.retrain_requested("flight_delay")
    run = Run("flight_delay|2013-07-01", reason=None)
    run.context["triggering_asset_events"] = {asset: [Event("drift", "no cooldown"), Event("on schedule", "drift")]}
    within(run)
    assert runs.reason(asset) == "drift; no cooldown; on schedule"
    run.context["params"] = {"reason": "new features"}
    assert runs.reason(asset) == "new features"


def test_a_training_by_hand_without_a_reason_is_refused(within: Any) -> None:
    run = Run(None, as_of="2013-07-01", reason=None)
    run.context["triggering_asset_events"] = {}
    within(run)
    with pytest.raises(Refused, match="expected the param reason"):
        runs.reason(assets.retrain_requested("flight_delay"))


def test_payloads_are_what_the_events_carry(within: Any) -> None:
    asset, run = assets.approval_requested("flight_delay"), Run("flight_delay|2013-07-01")
    events = [SimpleNamespace(extra={"version": 3}), SimpleNamespace(extra={"version": 4})]
    run.context["triggering_asset_events"] = {asset: events}
    within(run)
    assert runs.payloads(asset) == [{"version": 3}, {"version": 4}]
    run.context["triggering_asset_events"] = {}
    assert runs.payloads(asset) == []


def test_a_parse_for_one_dag_wants_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.wanted("score__flight_delay")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "score__flight_delay")
    assert runs.wanted("score__flight_delay")
    assert not runs.wanted("monitor__flight_delay")


def test_every_verb_has_a_runbook(bag: Any) -> None:
    verbs = {*bag.dag_ids, "approve__late_order"}  # no model of ours asks a person
    assert {defaults.runbook(dag_id) for dag_id in verbs} == set(defaults.RUNBOOKS.values())
    assert defaults.runbook("score__other_model") == defaults.runbook("score__flight_delay")


# --- waiting for a delivery ------------------------------------------------------------------------------------------


def test_a_trigger_survives_the_way_to_the_triggerer() -> None:
    trigger = DeliveryTrigger("nyc_flights", "actuals", ["2013-07-01"], 5.0, 1_700_000_000.0)
    path, arguments = trigger.serialize()
    again = import_string(path)(**arguments)
    assert isinstance(again, DeliveryTrigger)
    assert again.serialize() == trigger.serialize()
    assert vars(again).items() >= arguments.items()
    assert arguments["dates"] == ["2013-07-01"]


class Scripted(DeliveryTrigger):
    """Finds what it is told to, look by look; the last answer stays."""

    def __init__(self, *answers: bool | EvergreenError, until: float | None = None) -> None:
        super().__init__("shop", "orders", ["2013-07-01"], 0.01, until)
        self.answers, self.looks = list(answers), 0

    def arrived(self) -> bool:
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if isinstance(answer, EvergreenError):
            raise answer
        return answer


def fired(trigger: DeliveryTrigger) -> TriggerEvent:
    async def first() -> TriggerEvent:
        return await anext(trigger.run())

    return asyncio.run(asyncio.wait_for(first(), timeout=10))


def test_a_trigger_fires_when_the_delivery_is_there() -> None:
    trigger = Scripted(False, False, True)
    assert fired(trigger) == TriggerEvent("arrived")
    assert trigger.looks == 3


def test_a_trigger_gives_up_at_its_deadline() -> None:
    assert fired(Scripted(False, until=time.time() + 0.05)) == TriggerEvent("timeout")
    late = Scripted(True, until=time.time() - 60)
    assert fired(late) == TriggerEvent("arrived"), "a triggerer that was down still looks once"


@pytest.mark.parametrize("error", [Unavailable("no answer"), SettingsError("no connection lake_s3")], ids=str)
def test_who_does_not_answer_is_asked_again_and_fails_only_at_the_deadline(error: EvergreenError) -> None:
    assert fired(Scripted(error, error, True, until=time.time() + 60)) == TriggerEvent("arrived")
    with pytest.raises(type(error), match=str(error)):
        fired(Scripted(error, until=time.time() + 0.05))


@pytest.fixture
def sensor() -> Iterator[DeliverySensor]:
    from airflow.sdk import DAG

    with DAG("waiting", schedule=None):
        yield DeliverySensor(task_id="wait", source="nyc_flights", table="actuals", wait_minutes=720, poke_seconds=60)


def test_a_delivery_that_came_hands_on_its_dates(sensor: DeliverySensor) -> None:
    assert sensor.resume({}, event="arrived", dates=["2013-06-30"]) == ["2013-06-30"]


@pytest.mark.parametrize("event", ["timeout", None])
def test_a_delivery_that_never_came_is_a_data_error(sensor: DeliverySensor, event: str | None) -> None:
    with pytest.raises(DeliveryMissing, match=r"nyc_flights.actuals: expected files for \['2013-06-30'\] within 720"):
        sensor.resume({}, event=event, dates=["2013-06-30"])


def test_a_sensor_defers_until_its_own_deadline(sensor: DeliverySensor, within: Any, tmp_path: Any) -> None:
    from include.evergreen.orchestration import connections
    from tests.support import memory_platform

    within(Run("2013-07-01", history_from=None))
    platform = memory_platform(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "platform", lambda: platform)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute({})
        platform.landing.put("nyc_flights/actuals/2013-06-30.csv.gz", b"delivered")
        assert sensor.execute({}) == ["2013-06-30"]
    trigger = deferred.value.trigger
    assert isinstance(trigger, DeliveryTrigger)
    assert trigger.dates == ["2013-06-30"], "actuals come a day later"
    assert trigger.until == pytest.approx(time.time() + 720 * 60, abs=60)
    assert deferred.value.kwargs == {"dates": ["2013-06-30"]}
    assert deferred.value.timeout > dt.timedelta(minutes=720)
