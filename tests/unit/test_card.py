"""The model card: its facts, its page, its few lines. Nothing of the data becomes markup, and nothing is left out."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from include.evergreen.promotion import card as cards
from include.evergreen.promotion.bootstrap import Estimate
from include.evergreen.promotion.gate import Bin, Calibration, Evaluation, Holdout, Slice, gate
from include.evergreen.specs import Costs, ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import fit
from tests import examples

HOSTILE = "</script><script>alert(1)</script>"
LINK = "[win](https://example.org) | `x`"


def estimate(value: float, width: float = 0.01) -> Estimate:
    return Estimate(value, value - width, value + width)


def holdout(rows: int, first: str, last: str, gain: float = 0.02) -> Holdout:
    return Holdout(
        rows=rows,
        days=7,
        first=first,
        last=last,
        challenger={"auc": estimate(0.74), "brier": estimate(0.14), "value": estimate(1850.0, 90)},
        baseline={"auc": estimate(0.64), "brier": estimate(0.16), "value": estimate(1100.0, 90)},
        champion={"auc": estimate(0.72), "brier": estimate(0.15), "value": estimate(1700.0, 90)},
        over_baseline=estimate(0.10),
        over_champion=estimate(gain, 0.006),
    )


EVALUATION = Evaluation(
    metric="auc",
    confidence=0.95,
    fresh=holdout(6216, "2024-03-01", "2024-03-07", 0.021),
    frozen=holdout(3000, "2024-01-10", "2024-02-20", 0.019),
    pooled=holdout(9216, "2024-01-10", "2024-03-07"),
    slices=(
        Slice("region", "north", 900, 14, 0.75, 0.70, estimate(0.05)),
        Slice("region", HOSTILE, 700, 14, 0.70, 0.71, estimate(-0.01)),
    ),
    calibration=Calibration(estimate(0.02, 0.005), tuple(Bin(900 + i, i / 20, i / 19) for i in range(10))),
    champion_version=2,
    identical=False,
    obstacles=(),
    model_mb=0.5,
    ms_per_1k=6.5,
    leak_rows=800,
    frozen_from={"days": ["2024-01-10"], "cut": "2024-03-08"},
)
ALONE = replace(
    EVALUATION,
    champion_version=None,
    frozen=None,
    **{
        name: replace(getattr(EVALUATION, name), champion=None, over_champion=None)  # type: ignore[arg-type]
        for name in ("fresh", "pooled")
    },
    slices=tuple(replace(found, champion=None, over_champion=None) for found in EVALUATION.slices),
)
LINEAGE = {
    "snapshots": {"orders": "17"},
    "code": "abc123",
    "libraries": {"duckdb": "2.0.0"},
    "reason": HOSTILE + LINK,
    "spec": {"sql": "select"},
    "decision": "accepted",
}


def spec(**changes: Any) -> ModelSpec:
    return examples.model(
        **{"description": f"Late & {HOSTILE}?", "costs": Costs(hit=10, miss=100, false_alarm=20, unit="USD"), **changes}
    )


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    orders, outcomes = examples.rows(40)
    return pa.table(
        {
            "as_of": orders["day"],
            "region": orders["region"],
            "amount": orders["amount"],
            "late_before": np.linspace(0, 1, orders.num_rows),
            "label": pa.array(outcomes["took"].to_numpy() > 3),
        }
    )


@pytest.fixture(scope="module")
def bundle(rows: pa.Table) -> ModelBundle:
    return fit(examples.model(), rows, examples.dates(41)[-1])


def made(bundle: ModelBundle, facts: Evaluation = EVALUATION, of: ModelSpec | None = None) -> dict[str, Any]:
    """A card from what a gate said of the facts, as the ledger hands it back."""
    of = of or spec()
    decision = gate(facts, of.gate)
    evidence = json.loads(json.dumps(decision.evidence), parse_constant=lambda _: None)
    told = {"outcome": decision.outcome, "reasons": list(decision.reasons), "evidence": evidence}
    return cards.card(of, 3, bundle, told, LINEAGE, {"amount": 0.5, "region": 0.25, "late_before": 0.0})


class Page(HTMLParser):
    """Elements and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(f"{word} " for word in self.words).split())

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


# --- the facts -------------------------------------------------------------------------------------------------------


def test_a_card_holds_everything_as_plain_json(bundle: ModelBundle) -> None:
    card = made(bundle)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert (card["model"], card["version"], card["as_of"], card["outcome"]) == (
        "late_order",
        3,
        "2024-02-10",
        "accepted",
    )
    assert card["data"]["rows"] == bundle.facts["rows"]
    assert (card["data"]["train_from"], card["data"]["trained_until"]) == ("2024-01-01", "2024-02-04")
    assert card["data"]["validation_from"] == "2024-01-31"
    assert card["data"]["days"] == {"train": 30 - 6, "validation": 5 - 1}, "without the frozen days"
    assert (
        list(card["data"]["holdouts"]) == list(card["metrics"]) == list(card["gain"]) == ["fresh", "frozen", "pooled"]
    )
    assert card["metrics"]["fresh"]["champion"]["auc"] == {"value": 0.72, "low": 0.71, "high": 0.73}
    assert card["gain"]["frozen"]["over_champion"]["value"] == 0.019
    assert [(f["name"], f["type"], f["values"], f["shap"]) for f in card["features"]] == [
        ("region", "category", 3, 0.25),
        ("amount", "number", None, 0.5),
        ("late_before", "number", None, 0.0),
    ]
    assert card["value"]["challenger"]["value"] == 1850.0
    assert card["rules"]["min_holdout_rows"] == 100
    assert card["lineage"]["model_sha256"] == bundle.sha256
    assert card["lineage"]["snapshots"] == {"orders": "17"}


def test_the_threshold_is_the_models_own_where_it_has_one(bundle: ModelBundle) -> None:
    assert made(bundle)["threshold"] == 0.5
    assert made(replace(bundle, facts={**bundle.facts, "threshold": 0.31}))["threshold"] == 0.31


def test_shap_importance_is_the_mean_over_evenly_taken_rows(bundle: ModelBundle, rows: pa.Table) -> None:
    everything = np.abs(bundle.contributions(rows)[:, :-1]).mean(axis=0)
    found = cards.shap_importance(bundle, rows, most=rows.num_rows)
    assert found == pytest.approx(dict(zip(bundle.features, everything.tolist(), strict=True)), rel=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    sampled = cards.shap_importance(bundle, rows, most=600)
    assert sampled == pytest.approx(found, rel=0.2, abs=0.02)
    assert sampled != found
    assert cards.shap_importance(bundle, rows.slice(0, 0)) == {}


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (EVALUATION, "Accepted: beats champion 2 by 0.0210 [0.0150, 0.0270] AUC on the same 6,216 fresh rows"),
        (ALONE, "Accepted: beats the baseline by 0.1000 [0.0900, 0.1100] AUC on 9,216 rows; there was no champion yet"),
        (replace(EVALUATION, identical=True), "Refused: identical to the champion: a tie keeps the champion"),
        (
            replace(EVALUATION, obstacles=("the champion saw the holdout",)),
            "Cannot decide: the champion saw the holdout",
        ),
    ],
)
def test_the_verdict_is_one_sentence(bundle: ModelBundle, facts: Evaluation, sentence: str) -> None:
    card = made(bundle, facts)
    assert card["verdict"] == sentence
    assert sentence in Page(cards.page(card)).text
    assert f"**{cards.escaped(sentence)}**" in cards.text(card)


def test_every_reason_is_told(bundle: ModelBundle) -> None:
    card = made(bundle, replace(EVALUATION, identical=True, model_mb=99.0, obstacles=("too few",)))
    assert len(card["reasons"]) == 3
    page, text = Page(cards.page(card)), cards.text(card)
    assert page.count("section", **{"class": "verdict cannot_decide"}) == 1
    assert all(reason in page.text and f"- {reason}" in text for reason in card["reasons"])


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_part(bundle: ModelBundle) -> None:
    page = Page(cards.page(made(bundle)))
    for part in (
        "Calibration",
        "What it leans on",
        "Metrics",
        "Gain",
        "Slices",
        "Value",
        "Data",
        "Features",
        "Lineage",
    ):
        assert part in page.text
    for number in ("0.7200 [0.7100, 0.7300]", "+0.0210 [+0.0150, +0.0270]", "−0.0100", "1,850 [1,760, 1,940]"):  # noqa: RUF001
        assert number in page.text
    assert page.text.index(f"region = {HOSTILE}") < page.text.index("region = north"), "the weakest slice first"
    assert page.count("circle", **{"class": "dot"}) == 10
    assert page.count("rect", **{"class": "bar"}) == 3
    assert page.count("svg", **{"class": "gain up"}) == 7
    assert "abc123" in page.text and "duckdb 2.0.0" in page.text


def test_a_first_model_has_no_column_of_a_champion(bundle: ModelBundle) -> None:
    card = made(bundle, ALONE, spec(costs=None))
    page, text = Page(cards.page(card)).text, cards.text(card)
    assert "Champion" not in page
    assert "Over the baseline" in page
    assert "champion 2" not in text
    assert "Value What acting" not in page
    assert card["value"] is None and card["costs"] is None


def test_nothing_of_the_data_is_markup(bundle: ModelBundle) -> None:
    of = spec(owner=HOSTILE)
    card = made(bundle, of=of)
    card["reasons"] = [*card["reasons"], f'slice "{HOSTILE}"']
    raw = cards.page(card)
    page = Page(raw)
    assert b"<script" not in raw.lower()
    assert page.text.count(HOSTILE) >= 4, "it is shown as text"
    assert page.count("link") == page.count("img") == page.count("iframe") == 0
    assert not re.search(rb"(src|href|@import|url\()", raw)
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]


def test_a_quote_cannot_leave_an_attribute() -> None:
    hostile = '" onload="alert(1)'
    assert Page(cards._el("p", title=hostile).encode()).tags == [("p", {"title": hostile})]


def test_an_outcome_that_is_not_known_is_shown_as_text(bundle: ModelBundle) -> None:
    page = Page(cards.page({**made(bundle), "outcome": HOSTILE, "shap": {HOSTILE: 1.0}}))
    assert page.count("section", **{"class": "verdict cannot_decide"}) == 1
    assert page.count("script") == 0


def test_the_plots_are_well_formed(bundle: ModelBundle) -> None:
    plots = re.findall(rb"<svg.*?</svg>", cards.page(made(bundle)))
    assert len(plots) == 2 + 6 + 2
    assert all(ET.fromstring(plot).tag == "svg" for plot in plots)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_unknown_is_said_to_be(bundle: ModelBundle, lost: float) -> None:
    nothing = Estimate(lost, -math.inf, math.inf)
    empty = replace(
        EVALUATION.fresh,
        rows=0,
        days=0,
        first="",
        last="",
        challenger={},
        baseline={},
        champion={},
        over_champion=nothing,
    )
    facts = replace(
        EVALUATION,
        fresh=empty,
        pooled=replace(empty, over_baseline=nothing),
        frozen=None,
        slices=(),
        calibration=Calibration(nothing, (Bin(0, lost, lost),)),
        ms_per_1k=lost,
    )
    decision = gate(facts, spec().gate)
    told = {"outcome": decision.outcome, "reasons": list(decision.reasons), "evidence": decision.evidence}
    card = cards.card(spec(), 3, bundle, told, LINEAGE, {})
    json.dumps(card, allow_nan=False)
    page, text = Page(cards.page(card)).text, cards.text(card)
    assert card["verdict"].startswith("Cannot decide: expected at least 100 fresh rows")
    assert "unknown bounds unknown" in page
    assert "No rows." in page and "Not measured" in page
    for reason in card["reasons"]:
        page, text = page.replace(reason, ""), text.replace(reason, "")
    assert not re.search(r"\b(nan|inf|None|null)\b", page + text)


def test_many_slices_are_cut_and_the_cut_is_told(bundle: ModelBundle) -> None:
    many = tuple(Slice("region", f"r{i:03d}", 600, 9, 0.7, 0.7, estimate(i / 1000)) for i in range(80))
    page = Page(cards.page(made(bundle, replace(EVALUATION, slices=many)))).text
    assert "The first 30 of 80; card.json has all." in page
    assert "region = r029" in page and "region = r030" not in page


def test_the_same_inputs_give_the_same_bytes(bundle: ModelBundle) -> None:
    first, second = made(bundle), made(ModelBundle.from_files(bundle.files()))
    assert cards.page(first) == cards.page(second)
    assert cards.text(first) == cards.text(second)
    backwards = json.loads(json.dumps(first, sort_keys=True), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert cards.page(backwards) == cards.page(first), "whatever the order of the keys"
    assert cards.text(backwards) == cards.text(first)


# --- a few lines -----------------------------------------------------------------------------------------------------


def test_the_text_is_short_and_has_no_markup_of_the_data(bundle: ModelBundle) -> None:
    text = cards.text(made(bundle))
    assert len(text.splitlines()) <= 25
    assert "| AUC | 0.7400 [0.7300, 0.7500] | 0.7200 [0.7100, 0.7300] | 0.6400 [0.6300, 0.6500] |" in text
    assert r"Weakest of 2 slices: region = \</script\>\<script\>alert\(1\)\</script\>, gain −0.0100" in text  # noqa: RUF001
    assert r"\[win\]\(https://example.org\) \| \`x\`" in text
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(", text)
