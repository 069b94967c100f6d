"""Approval by a person: what is asked, what each answer does, and what a late one must not do."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from include.evergreen.errors import NotFound, Refused
from include.evergreen.pipeline import approval as steps
from include.evergreen.pipeline import rollback, training
from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.promotion.card import card, escaped
from include.evergreen.promotion.gate import Bin, Calibration, Evaluation, Holdout, gate
from include.evergreen.promotion.ports import TrainingRecord
from include.evergreen.training.bundle import ModelBundle
from tests import examples
from tests.support import MemoryPlatform, memory_platform

SPEC = examples.model(approval="human", approvers=["oncall"], approval_hours=48)
AS_OF = dt.date(2024, 3, 1)
WHEN = dt.datetime(2024, 3, 4, 9, 30, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
FRESH = Holdout(
    rows=1200,
    days=6,
    first="2024-02-24",
    last="2024-02-29",
    challenger={"auc": Estimate(0.74, 0.71, 0.77), "log_loss": Estimate(0.5, 0.45, 0.55)},
    baseline={"auc": Estimate(0.6, 0.58, 0.62), "log_loss": Estimate(0.6, 0.55, math.nan)},
    champion={"auc": Estimate(0.7, 0.67, 0.73), "log_loss": Estimate(math.nan, math.nan, math.nan)},
    over_baseline=Estimate(0.14, 0.1, 0.18),
    over_champion=Estimate(0.04, 0.02, 0.06),
)
FACTS = Evaluation(
    metric="auc",
    confidence=0.95,
    fresh=FRESH,
    frozen=None,
    pooled=FRESH,
    slices=(),
    calibration=Calibration(Estimate(0.01, 0.005, 0.02), (Bin(600, 0.2, 0.21),)),
    champion_version=None,
    identical=False,
    obstacles=(),
    model_mb=0.2,
    ms_per_1k=3.0,
    leak_rows=900,
)


@pytest.fixture
def platform(tmp_path: Path) -> MemoryPlatform:
    return memory_platform(tmp_path)


def trained(
    platform: MemoryPlatform,
    as_of: dt.date = AS_OF,
    key: str = "train-1",
    facts: Evaluation = FACTS,
    outcome: str | None = None,
    reasons: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A training up to the request: the gate's decision in the ledger, the version registered. Returns the payload."""
    champion = platform.registry.champion(SPEC.name)
    one = facts.fresh if champion else replace(facts.fresh, champion=None, over_champion=None)
    frozen = facts.frozen if champion or facts.frozen is None else replace(facts.frozen, champion=None)
    facts = replace(facts, fresh=one, pooled=one, frozen=frozen, champion_version=champion.number if champion else None)
    decision = gate(facts, SPEC.gate)
    facts_of_fit = {
        "train_from": "2024-01-01",
        "trained_until": "2024-02-20",
        "rows": {"train": 900, "validation": 100, "holdout": 100},
        "trees": 7,
        "params": {},
        "categories": {},
    }
    bundle = ModelBundle(SPEC.name, as_of, key.encode(), ("amount",), {}, facts=facts_of_fit)
    platform.mart.append_decision(
        kind="gate",
        subject=SPEC.name,
        as_of=as_of,
        outcome=outcome or decision.outcome,
        reasons=[*decision.reasons, *reasons],
        evidence={**decision.evidence, "challenger_sha256": bundle.sha256},
        actor="gate",
        run_id=key,
    )
    version = platform.registry.register(bundle, TrainingRecord(key, {}, {}, {}, {}))
    (row,) = (one for one in platform.mart.decisions(subject=SPEC.name, kind="gate") if one["run_id"] == key)
    found = card(SPEC, version.number, bundle, row, {}, {})
    platform.registry.attach(SPEC.name, version.number, "card.json", json.dumps(found).encode(), "application/json")
    return {"version": version.number, "run_key": key, "as_of": as_of.isoformat()}


def answer(option: str = "Approve", user: str | None = "oncall") -> dict[str, Any]:
    """What the operator hands on, as Airflow stores it between tasks."""
    who = {"id": user, "name": user} if user else None
    return {"chosen_options": [option], "params_input": {}, "responded_at": WHEN, "responded_by_user": who}


TIMEOUT = answer("Reject", None)


def ask(platform: MemoryPlatform, *payloads: dict[str, Any], run_id: str = "approve-1") -> dict[str, Any]:
    asked = steps.prepare(platform, SPEC, list(payloads), None, run_id)
    return dict(json.loads(json.dumps(asked, allow_nan=False)))


def decide(
    platform: MemoryPlatform, payload: dict[str, Any], response: dict[str, Any], run_id: str = "approve-1"
) -> dict[str, Any]:
    done = steps.conclude(platform, SPEC, ask(platform, payload, run_id=run_id), response, run_id)
    return dict(json.loads(json.dumps(done, allow_nan=False)))


def approvals(platform: MemoryPlatform) -> list[dict[str, Any]]:
    return platform.mart.decisions(subject=SPEC.name, kind="approval")


def champion(platform: MemoryPlatform) -> int | None:
    found = platform.registry.champion(SPEC.name)
    return found.number if found else None


def score(platform: MemoryPlatform, as_of: dt.date, version: int) -> None:
    """A current scoring of a date."""
    import pyarrow as pa

    platform.mart.ensure_model(SPEC, examples.source())
    rows = pa.table(
        {
            "order_id": [1],
            "as_of": pa.array([as_of], pa.date32()),
            "probability": [0.5],
            "decision": [True],
            **{f"reason_{rank}": ["amount"] for rank in range(1, SPEC.scoring.reasons + 1)},
            "model_version": [version],
        }
    )
    platform.mart.publish_scoring(SPEC, as_of, version, rows, None, "score")


def withdraw(platform: MemoryPlatform, version: int, withdrawn: int) -> None:
    """A rollback, without a date to re-score."""
    since = platform.mart.champion_history(SPEC.name)[-1]["effective_from"].isoformat()
    plan = {"model": SPEC.name, "version": version, "withdrawn": withdrawn, "effective_from": since, "rows": 0}
    rollback.withdraw(
        platform, SPEC, {**plan, "partitions": []}, f"rollback-{withdrawn}", "oncall", "worse", dry_run=False
    )


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_the_request_has_the_numbers_with_their_intervals(platform: MemoryPlatform) -> None:
    decide(platform, trained(platform), answer())
    later = replace(FACTS, frozen=replace(FRESH, rows=777, days=7))
    request = ask(platform, trained(platform, AS_OF + 9 * DAY, "train-2", later), run_id="approve-2")
    assert request["subject"] == "Promote late_order version 2, trained as of 2024-03-10?"
    body = request["body"]
    assert "late\\_order, version 2, trained as of 2024-03-10." in body
    assert "| 1,200 rows held out | version 2 | champion 1 | baseline |" in body
    assert "| AUC | 0.7400 [0.7100, 0.7700] | 0.7000 [0.6700, 0.7300] | 0.6000 [0.5800, 0.6200] |" in body
    assert "| unknown bounds unknown | 0.6000 [0.5500, unknown] |" in body, "NaN is null in the card"
    assert "frozen 777 rows" in body
    assert r"beats champion 1 by 0.0400 \[0.0200, 0.0600\]" in body
    assert f"[The whole card]({platform.settings.ui_url}/evergreen/cards/late_order/2)" in body
    assert "Reject: version 1 stays champion. No answer within 48 hours counts as no." in body
    (row, _) = platform.mart.decisions(subject=SPEC.name, kind="gate")
    assert row["reasons"]
    assert all(f"- {escaped(reason)}" in body for reason in row["reasons"])


def test_the_first_request_knows_no_champion(platform: MemoryPlatform) -> None:
    body = ask(platform, trained(platform))["body"]
    assert "| version 1 | baseline |" in body
    assert "champion 1" not in body
    assert "Reject: there is no champion yet." in body


HOSTILE = (
    "region = <script>alert(1)</script>: falls",
    "region = [click](javascript:alert(1)) ![x](//evil.example/x.png): falls",
    "region = `a` | **b** | ~~c~~ &lt; \\: falls",
    "region = a\n\n# Approve\n\n```\n- b\u202e\x00: falls",
    "region = " + "x" * 10_000,
)


@pytest.mark.parametrize("reason", HOSTILE, ids=range(len(HOSTILE)))
def test_a_value_of_the_data_is_text_in_the_request(platform: MemoryPlatform, reason: str) -> None:
    """Rendered with HTML allowed: one heading, image, link or tag more would show."""
    payload = trained(platform, reasons=(reason,))
    body = ask(platform, payload)["body"]
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    inline = [child for token in tokens for child in token.children or []]
    assert [child.attrGet("href") for child in inline if child.type == "link_open"] == [
        f"{platform.settings.ui_url}/evergreen/cards/late_order/1"
    ]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"html_block", "html_inline", "image", "heading_open", "fence", "code_inline"}
    assert "s_open" not in kinds
    lists = [token for token in tokens if token.type == "list_item_open"]
    (row,) = platform.mart.decisions(subject=SPEC.name, kind="gate")
    shown = body.count("\n- Trained on") + body.count("\n- Leans most on")
    assert len(lists) == len(row["reasons"]) + shown
    assert sum(child.type == "strong_open" for child in inline) == 1, "the verdict"
    assert body.count("\u202e") == body.count("\x00") == 0
    assert max(map(len, body.splitlines())) < 1200


def test_what_was_escaped_reads_as_it_was() -> None:
    text = r"a_b*c [d](e) <f> `g` | h # i ~ j & k \ l ! $"
    (paragraph,) = [token for token in MarkdownIt().parse(escaped(text)) if token.type == "inline"]
    assert "".join(child.content for child in paragraph.children or []) == text


def test_two_requests_in_one_run_ask_for_the_newer(platform: MemoryPlatform) -> None:
    first, second = trained(platform), trained(platform, key="train-2")
    request = ask(platform, second, first)
    assert (request["version"], request["run_key"], request["set_aside"]) == (2, "train-2", [1])
    done = steps.conclude(platform, SPEC, request, answer(), "approve-1")
    assert "version 1 of the same request was set aside" in done["reasons"]


def test_a_run_by_hand_names_its_version(platform: MemoryPlatform) -> None:
    trained(platform)
    trained(platform, AS_OF + DAY, "train-2")
    assert steps.prepare(platform, SPEC, [], 1, "by-hand")["run_key"] == "train-1"
    with pytest.raises(Refused, match="expected the param version"):
        steps.prepare(platform, SPEC, [], None, "by-hand")
    with pytest.raises(NotFound, match=r"expected version 9, found 2 version\(s\)"):
        steps.prepare(platform, SPEC, [], 9, "by-hand")


@pytest.mark.parametrize("outcome", ["refused", "cannot_decide"])
def test_what_the_gate_did_not_accept_cannot_be_asked_for(platform: MemoryPlatform, outcome: str) -> None:
    payload = trained(platform, outcome=outcome)
    for asked, version in (([payload], None), ([], 1)):
        with pytest.raises(Refused, match="version 1: expected a decision of the gate that accepted it"):
            steps.prepare(platform, SPEC, asked, version, "approve-1")
    request = {**payload, "set_aside": [], "subject": "", "body": ""}
    with pytest.raises(Refused, match="gate"):
        steps.conclude(platform, SPEC, request, answer(), "approve-1")
    assert champion(platform) is None
    assert approvals(platform) == []


def test_a_decision_on_other_bytes_does_not_count(platform: MemoryPlatform) -> None:
    trained(platform)
    other = ModelBundle(SPEC.name, AS_OF, b"other bytes", ("amount",), {})
    version = platform.registry.register(other, TrainingRecord("train-2", {}, {}, {}, {}))
    with pytest.raises(Refused, match="version 2: expected a decision of the gate"):
        steps.prepare(platform, SPEC, [], version.number, "by-hand")
    with pytest.raises(Refused, match="version 2: expected a decision of the gate"):
        steps.request_body(platform, SPEC, version.number, "train-1")


def test_a_former_champion_is_rollbacks_business(platform: MemoryPlatform) -> None:
    payload = trained(platform)
    decide(platform, payload, answer())
    with pytest.raises(Refused, match="version 1: it was champion already; `rollback`"):
        steps.prepare(platform, SPEC, [], 1, "by-hand")
    assert ask(platform, payload)["version"] == 1, "the run that promoted it can be cleared"


# --- the answers -----------------------------------------------------------------------------------------------------


def test_a_yes_promotes_and_says_who_and_when(platform: MemoryPlatform) -> None:
    done = decide(platform, trained(platform), answer())
    assert (done["outcome"], done["actor"], done["effective_from"]) == ("approved", "oncall", AS_OF.isoformat())
    assert champion(platform) == 1
    (row,) = approvals(platform)
    assert (row["outcome"], row["actor"], row["as_of"], row["run_id"]) == ("approved", "oncall", AS_OF, "approve-1")
    assert row["reasons"] == ["approved by oncall at 2024-03-04T09:30:00+00:00"]
    assert row["evidence"]["responded_by"] == {"id": "oncall", "name": "oncall"}
    assert row["evidence"]["responded_at"] == WHEN.isoformat()
    assert (row["evidence"]["version"], row["evidence"]["gate_run"]) == (1, "train-1")
    (promotion,) = platform.mart.decisions(subject=SPEC.name, kind="promotion")
    assert (promotion["actor"], promotion["run_id"]) == ("oncall", "train-1")
    assert promotion["reasons"][0] == row["reasons"][0]
    assert len(promotion["reasons"]) > 1, "the gate's reasons too"


@pytest.mark.parametrize(
    ("response", "outcome", "actor", "reason"),
    [
        (answer("Reject"), "rejected", "oncall", "rejected by oncall at 2024-03-04T09:30:00+00:00"),
        (TIMEOUT, "expired", "timeout", "no answer within 48 hours, until 2024-03-04T09:30:00+00:00"),
        (answer("Approve", None), "expired", "timeout", "no answer within 48 hours"),
        ({**answer(), "chosen_options": []}, "rejected", "oncall", "rejected by oncall"),
        ({**answer(), "chosen_options": ["Approve", "Reject"]}, "rejected", "oncall", "rejected by oncall"),
    ],
)
def test_anything_but_a_persons_yes_keeps_the_champion(
    platform: MemoryPlatform, response: dict[str, Any], outcome: str, actor: str, reason: str
) -> None:
    decide(platform, trained(platform), answer())
    done = decide(platform, trained(platform, AS_OF + 5 * DAY, "train-2"), response, "approve-2")
    assert (done["outcome"], done["actor"], done["effective_from"]) == (outcome, actor, None)
    assert done["reasons"][0].startswith(reason)
    assert champion(platform) == 1
    assert [row["version"] for row in platform.mart.champion_history(SPEC.name)] == [1]
    assert approvals(platform)[0]["outcome"] == outcome


def test_a_long_name_fits_the_ledger(platform: MemoryPlatform) -> None:
    name = "a" * 80
    done = decide(platform, trained(platform), answer(user=name))
    assert done["actor"] == "a" * 64
    assert approvals(platform)[0]["evidence"]["responded_by"]["name"] == name


# --- a late answer ---------------------------------------------------------------------------------------------------


def test_a_late_yes_leaves_scored_dates_alone(platform: MemoryPlatform) -> None:
    decide(platform, trained(platform), answer())
    payload = trained(platform, AS_OF + 5 * DAY, "train-2")
    for offset in range(9):
        score(platform, AS_OF + offset * DAY, 1)
    done = decide(platform, payload, answer(), "approve-2")
    assert done["effective_from"] == (AS_OF + 9 * DAY).isoformat()
    assert platform.mart.champion_at(SPEC.name, AS_OF + 8 * DAY) == (1, AS_OF)
    assert platform.mart.champion_at(SPEC.name, AS_OF + 9 * DAY) == (2, AS_OF + 9 * DAY)
    assert champion(platform) == 2


def test_a_quick_yes_is_in_force_from_the_day_after(platform: MemoryPlatform) -> None:
    decide(platform, trained(platform), answer())
    score(platform, AS_OF, 1)
    done = decide(platform, trained(platform, AS_OF + 5 * DAY, "train-2"), answer(), "approve-2")
    assert done["effective_from"] == (AS_OF + 6 * DAY).isoformat()


def test_an_older_candidate_does_not_follow_a_newer_champion(platform: MemoryPlatform) -> None:
    decide(platform, trained(platform), answer())
    older = trained(platform, AS_OF + 5 * DAY, "train-2")
    newer = trained(platform, AS_OF + 8 * DAY, "train-3")
    assert decide(platform, newer, answer(), "approve-3")["outcome"] == "approved"
    done = decide(platform, older, answer(), "approve-2")
    assert (done["outcome"], done["actor"], done["effective_from"]) == ("rejected", "oncall", None)
    assert any("no going backwards: version 3 as of 2024-03-09" in reason for reason in done["reasons"])
    assert champion(platform) == 3
    assert [row["version"] for row in platform.mart.champion_history(SPEC.name)] == [1, 3]


def test_both_candidates_can_be_approved_in_order(platform: MemoryPlatform) -> None:
    """The second was compared with another champion than it meets: the ledger says so."""
    decide(platform, trained(platform), answer())
    older = trained(platform, AS_OF + 5 * DAY, "train-2")
    newer = trained(platform, AS_OF + 8 * DAY, "train-3")
    for offset in range(12):
        score(platform, AS_OF + offset * DAY, 1)
    for payload, run_id in ((older, "approve-2"), (newer, "approve-3")):
        assert decide(platform, payload, answer(), run_id)["outcome"] == "approved"
    assert champion(platform) == 3
    assert platform.mart.champion_at(SPEC.name, AS_OF + 12 * DAY) == (3, AS_OF + 12 * DAY)
    row = approvals(platform)[0]
    assert "the gate compared it with champion 1; the answer found champion 2" in row["reasons"]
    assert (row["evidence"]["compared_with"], row["evidence"]["champion"]) == (1, 2)
    promotion = platform.mart.decisions(subject=SPEC.name, kind="promotion")[0]
    assert promotion["evidence"]["former_version"] == 2


def test_a_champion_by_rollback_does_not_outlive_a_later_yes(platform: MemoryPlatform) -> None:
    """It is in force from the withdrawn version's date on, which is later than the candidate's own."""
    decide(platform, trained(platform), answer())
    candidate = trained(platform, AS_OF + 5 * DAY, "train-2")
    decide(platform, trained(platform, AS_OF + 8 * DAY, "train-3"), answer(), "approve-3")
    withdraw(platform, version=1, withdrawn=3)
    done = decide(platform, candidate, answer(), "approve-2")
    assert (done["outcome"], done["effective_from"]) == ("approved", (AS_OF + 9 * DAY).isoformat())
    assert platform.mart.champion_at(SPEC.name, AS_OF + 30 * DAY) == (2, AS_OF + 9 * DAY)
    assert champion(platform) == 2


# --- retries ---------------------------------------------------------------------------------------------------------


def stored(platform: MemoryPlatform) -> dict[str, Any]:
    return {
        "ledger": platform.mart.decisions(),
        "champions": platform.mart.champion_history(SPEC.name),
        "versions": platform.registry.versions(SPEC.name),
    }


@pytest.mark.parametrize("response", [answer(), answer("Reject"), TIMEOUT], ids=["approve", "reject", "timeout"])
def test_the_first_answer_of_a_run_stands(platform: MemoryPlatform, response: dict[str, Any]) -> None:
    payload = trained(platform)
    first = decide(platform, payload, response)
    before = stored(platform)
    score(platform, AS_OF + 3 * DAY, 1)
    for again in (answer(), answer("Reject"), TIMEOUT):
        assert decide(platform, payload, again) == first
    assert stored(platform) == before


def test_an_expired_candidate_can_be_asked_for_again(platform: MemoryPlatform) -> None:
    payload = trained(platform)
    decide(platform, payload, TIMEOUT)
    request = steps.prepare(platform, SPEC, [], payload["version"], "by-hand")
    assert steps.conclude(platform, SPEC, request, answer(), "by-hand")["outcome"] == "approved"
    assert [row["outcome"] for row in approvals(platform)] == ["approved", "expired"]
    assert champion(platform) == 1


def test_a_promotion_that_broke_off_is_completed(platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died after the ledger; a date was scored before the retry."""
    decide(platform, trained(platform), answer())
    payload = trained(platform, AS_OF + 5 * DAY, "train-2")
    with monkeypatch.context() as patch:

        def dies(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(training, "put_in_force", dies)
        with pytest.raises(KeyboardInterrupt):
            decide(platform, payload, answer(), "approve-2")
    assert champion(platform) == 1
    score(platform, AS_OF + 7 * DAY, 1)
    done = decide(platform, payload, answer(), "approve-2")
    assert done["effective_from"] == (AS_OF + 6 * DAY).isoformat(), "as the ledger says"
    assert champion(platform) == 2


def test_a_cleared_run_does_not_undo_a_later_promotion(platform: MemoryPlatform) -> None:
    first = trained(platform)
    decide(platform, first, answer())
    decide(platform, trained(platform, AS_OF + 5 * DAY, "train-2"), answer(), "approve-2")
    before = stored(platform)
    done = decide(platform, first, answer())
    assert (done["outcome"], done["effective_from"]) == ("approved", None)
    assert stored(platform) == before


def test_a_cleared_run_does_not_undo_a_rollback(platform: MemoryPlatform) -> None:
    decide(platform, trained(platform), answer())
    payload = trained(platform, AS_OF + 5 * DAY, "train-2")
    decide(platform, payload, answer(), "approve-2")
    withdraw(platform, version=1, withdrawn=2)
    assert champion(platform) == 1
    before = stored(platform)
    assert decide(platform, payload, answer(), "approve-2")["effective_from"] is None
    assert stored(platform) == before
