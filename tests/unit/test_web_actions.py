"""What a person can do: asked once more, in their name, once, and from our own pages only."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from include.evergreen.alerts.inbox import Inbox
from tests.examples_health import SCRIPT
from tests.examples_web import ORIGIN, Pages, pages

DRIFTING, BROKEN, WAITING = "flight_delay", "missed_connection", "gate_hold"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return pages(tmp_path_factory.mktemp("site"), models=3, days=45)


@pytest.fixture(scope="module")
def oncall(site: Pages) -> TestClient:
    headers = {"authorization": "Bearer token-oncall", "origin": ORIGIN, "sec-fetch-site": "same-origin"}
    return TestClient(site.app, base_url=ORIGIN, headers=headers, follow_redirects=False)


def token(client: TestClient, path: str) -> str:
    page = client.get(path)
    assert page.status_code == 200, page.text[-400:]
    found = re.search(r'name="token" value="([^"]+)"', page.text)
    assert found is not None
    return found.group(1)


def test_retrain(site: Pages, oncall: TestClient) -> None:
    path = f"/models/{DRIFTING}/retrain"
    sent = {"token": token(oncall, path), "reason": f"storm season {SCRIPT}"}
    first, second = oncall.post(path, data=sent), oncall.post(path, data=sent)
    assert first.status_code == second.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    runs = [key for key in site.airflow.runs if key[0] == f"train__{DRIFTING}"]
    assert len(runs) == 1
    assert site.airflow.runs[runs[0]]["conf"] == {"reason": sent["reason"], "as_of": str(site.world.today)}
    assert {call[0] for call in site.airflow.calls if call[1] == "POST"} == {"oncall"}
    shown = oncall.get(first.headers["location"])
    assert shown.status_code == 200
    assert "Started by oncall" in shown.text and SCRIPT not in shown.text
    again = oncall.post(path, data={**sent, "token": token(oncall, path)})
    assert again.headers["location"] != first.headers["location"]


@pytest.mark.parametrize("reason", ["", " x ", "x" * 301])
def test_a_reason_is_asked_for(oncall: TestClient, reason: str) -> None:
    path = f"/models/{DRIFTING}/retrain"
    assert oncall.post(path, data={"token": token(oncall, path), "reason": reason}).status_code == 409


def test_a_form_of_another_page_user_or_site_is_refused(site: Pages, oncall: TestClient) -> None:
    path = f"/models/{DRIFTING}/retrain"
    good = {"token": token(oncall, path), "reason": "because"}
    before = len(site.airflow.runs)
    refused = [
        oncall.post(path, data={"reason": "because"}),
        oncall.post(path, data={**good, "token": token(oncall, f"/models/{BROKEN}/retrain")}),
        oncall.post(path, data=good, headers={"authorization": "Bearer token-admin"}),
        oncall.post(path, data=good, headers={"origin": "http://evil.test"}),
        oncall.post(path, data=good, headers={"sec-fetch-site": "cross-site"}),
        oncall.post(path, json=good),
        oncall.post(path, data={**good, "note": "x" * 20_000}),
        oncall.post(path, content=b"token=%ff", headers={"content-type": "application/x-www-form-urlencoded"}),
    ]
    assert {answer.status_code for answer in refused} == {409}
    assert len(site.airflow.runs) == before


def test_a_rollback_is_planned_then_done(site: Pages, oncall: TestClient) -> None:
    path = f"/models/{DRIFTING}/rollback"
    page = oncall.get(path).text
    assert 'name="version" value="1"' in page
    dry = oncall.post(path, data={"token": token(oncall, path), "version": "1", "reason": "worse at noon"})
    planned = dry.headers["location"]
    run = ("rollback", planned.rsplit("/", 1)[1])
    assert site.airflow.runs[run]["conf"] == {
        "model": DRIFTING,
        "version": 1,
        "reason": "worse at noon",
        "dry_run": True,
    }
    shown = oncall.get(planned).text
    assert "905\u00a0rows" in shown and "Roll back and score 1\u00a0date again" in shown and "worse at noon" in shown
    sent = {"token": token(oncall, planned)}
    first, second = oncall.post(planned, data=sent), oncall.post(planned, data=sent)
    assert first.headers["location"] == second.headers["location"]
    done = ("rollback", first.headers["location"].rsplit("/", 1)[1])
    assert done != run
    assert site.airflow.runs[done]["conf"] == {**site.airflow.runs[run]["conf"], "dry_run": False}
    decided = [row for row in site.mart.decisions(DRIFTING, "rollback") if row["run_id"] == done[1]]
    assert [(row["outcome"], row["actor"]) for row in decided] == [("rolled_back", "oncall")]
    assert "rolled back" in oncall.get(first.headers["location"]).text


def test_a_dry_run_of_another_model_is_not_done(site: Pages, oncall: TestClient) -> None:
    path = f"/models/{DRIFTING}/rollback"
    run = oncall.post(path, data={"token": token(oncall, path), "version": "1", "reason": "worse"}).headers["location"]
    assert oncall.get(run.replace(DRIFTING, BROKEN)).status_code == 404


def test_a_dry_run_that_is_not_done_looks_again(site: Pages, oncall: TestClient) -> None:
    run_id = "health__00000000000000aa"
    conf = {"model": DRIFTING, "version": 1, "reason": "worse", "dry_run": True}
    site.airflow.runs["rollback", run_id] = {"dag_run_id": run_id, "state": "queued", "conf": conf}
    site.airflow.paused = True
    try:
        page = oncall.get(f"/models/{DRIFTING}/rollback/{run_id}")
    finally:
        site.airflow.paused = False
    assert page.headers["refresh"] == "3"
    assert "is paused" in page.text and "<form" not in page.text
    site.airflow.runs["rollback", run_id]["state"] = "failed"
    page = oncall.get(f"/models/{DRIFTING}/rollback/{run_id}")
    assert "refresh" not in page.headers and "found no plan" in page.text


def test_a_person_approves_once(site: Pages, oncall: TestClient) -> None:
    path = f"/models/{WAITING}/approve/{quote(site.asked, safe='')}"
    assert path in oncall.get(f"/models/{WAITING}").text
    sent = {"token": token(oncall, path), "answer": "Approve"}
    assert oncall.post(path, data={**sent, "answer": "Perhaps"}).status_code == 409
    first = oncall.post(path, data=sent)
    assert first.status_code == 303
    asked = site.airflow.questions[site.asked]
    assert (asked["chosen_options"], asked["responded_by_user"]["name"]) == (["Approve"], "oncall")
    second = oncall.post(path, data={**sent, "answer": "Reject"})
    assert second.headers["location"] == first.headers["location"]
    assert asked["chosen_options"] == ["Approve"]
    assert "<strong>Approve</strong>, by oncall" in oncall.get(path).text
    assert path not in oncall.get(f"/models/{WAITING}").text


def test_the_quarantine_is_replayed(site: Pages, oncall: TestClient) -> None:
    day = next(row for row in site.mart.batches("schedules") if row["quarantined"])["partition_date"]
    page = f"/data/nyc_flights/schedules/{day}"
    assert f"{page}/release" in oncall.get(page).text
    sent = {"token": token(oncall, f"{page}/release")}
    first, second = (oncall.post(f"{page}/release", data=sent) for _ in range(2))
    assert first.headers["location"] == second.headers["location"]
    confs = [run["conf"] for (dag_id, _), run in site.airflow.runs.items() if dag_id == "replay_quarantine"]
    assert confs == [{"table": "nyc_flights.schedules", "since": str(day), "until": str(day)}]


def test_an_alert_is_taken_and_quieted(site: Pages, oncall: TestClient) -> None:
    inbox = Inbox(site.mart)
    alert = next(one for one in inbox.open() if one.subject == BROKEN)
    path = f"/alerts/{alert.id}/acknowledge"
    sent = {"token": token(oncall, path), "note": f"looking {SCRIPT}"}
    assert oncall.post(path, data={**sent, "note": ""}).status_code == 409
    before = len(site.mart.decisions(BROKEN, "acknowledgement"))
    for _ in range(2):
        assert oncall.post(path, data=sent).headers["location"] == "/alerts"
    assert inbox.get(alert.id).acknowledged_by == "oncall"
    path = f"/alerts/{alert.id}/snooze"
    sent = {"token": token(oncall, path), "hours": "4", "note": "until noon"}
    for _ in range(2):
        assert oncall.post(path, data=sent).status_code == 303
    decided = site.mart.decisions(BROKEN, "acknowledgement")
    assert len(decided) == before + 2
    assert {row["actor"] for row in decided[:2]} == {"oncall"}
    page = oncall.get("/alerts").text
    assert "snoozed until" in page and "until noon" in page and SCRIPT not in page
    assert oncall.post(path, data={**sent, "hours": "9999"}).status_code == 409
    assert oncall.get("/alerts/999999/snooze").status_code == 404


def test_what_airflow_refuses_is_said(site: Pages, oncall: TestClient) -> None:
    """The page lets nobody by whom Airflow does not: here the page's own check is late."""
    path = f"/models/{DRIFTING}/retrain"
    sent = {"token": token(oncall, path), "reason": "because"}
    may = site.airflow.call

    async def refuse(request, user, method, path, body=None):  # type: ignore[no-untyped-def]
        from include.evergreen.web.access import Answer

        return Answer(403, {"detail": "Forbidden by Airflow"})

    site.airflow.call = refuse  # type: ignore[method-assign]
    try:
        answer = oncall.post(path, data=sent)
    finally:
        site.airflow.call = may  # type: ignore[method-assign]
    assert answer.status_code == 403
    assert "Forbidden by Airflow" in answer.text
