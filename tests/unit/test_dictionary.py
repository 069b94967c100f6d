"""The data dictionary as a page, and the contract that freezes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from include.evergreen import specs
from include.evergreen.errors import Refused, SpecError
from include.evergreen.mart import contract, dictionary
from include.evergreen.mart.dictionary import Column, View
from include.evergreen.mart.views import PER_MODEL
from tests import examples

VIEWS = (
    View(
        "late_current", "now", (Column("order_id", "integer", "which"), Column("probability", "number", "how likely"))
    ),
    View("late_daily", "by day", (Column("as_of", "date", "when"),)),
)


def changed(*columns: Column) -> tuple[View, ...]:
    return (View("late_current", "now", columns), VIEWS[1])


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    file = tmp_path / "contract.yaml"
    contract.freeze(file, VIEWS)
    return file


# --- the project's own -----------------------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    page = dictionary.PAGE.read_text(encoding="utf-8")
    assert page == dictionary.text(dictionary.pairs()), "run make dictionary"


@pytest.mark.parametrize("name", sorted(specs.models()))
def test_a_models_views_keep_their_contract(name: str) -> None:
    spec = specs.models()[name]
    contract.check(contract.path(name), dictionary.dictionary(spec, specs.sources()[spec.source]))


def test_the_common_views_keep_their_contract() -> None:
    contract.check(contract.COMMON, dictionary.common())


# --- the dictionary --------------------------------------------------------------------------------------------------


def test_every_view_of_a_model_is_explained_from_its_spec() -> None:
    spec = examples.model(label={"table": "outcomes", "expression": "took > 3", "description": "Took | long"})
    found = {view.name: view for view in dictionary.dictionary(spec, examples.source())}
    assert list(found) == [f"late_order_{suffix}" for suffix in PER_MODEL]
    said = {column.name: column for column in found["late_order_outcomes"].columns}
    assert (said["order_id"].type, said["order_id"].says) == ("integer", "order_id of orders")
    assert (said["label"].type, said["label"].says) == ("boolean", "Took | long")
    assert [name for name in said if name.startswith("reason_")] == ["reason_1", "reason_2", "reason_3"]
    page = dictionary.text([(spec, examples.source())])
    assert "### late_order_current" in page
    assert "| `label` | boolean | Took \\| long |" in page
    assert "### model_decisions" in page


# --- the contract ----------------------------------------------------------------------------------------------------


def test_an_added_column_or_view_passes(frozen: Path) -> None:
    more = (*changed(*VIEWS[0].columns, Column("region", "string", "where")), View("late_more", "more", ()))
    contract.check(frozen, more)
    contract.freeze(frozen, more)
    assert "region" in contract.read(frozen).views["late_current"]
    with pytest.raises(Refused, match=r"late_current\.region: expected string, found no such column"):
        contract.check(frozen, VIEWS)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed(VIEWS[0].columns[0]), r"late_current\.probability: expected number, found no such column"),
        (changed(VIEWS[0].columns[0], Column("chance", "number", "x")), r"late_current\.probability: expected number"),
        (changed(VIEWS[0].columns[0], Column("probability", "string", "x")), "expected number, found string"),
        (VIEWS[:1], "late_daily: expected the view, found none"),
    ],
    ids=["removed", "renamed", "retyped", "view"],
)
def test_a_breaking_change_needs_a_new_version(frozen: Path, now: tuple[View, ...], message: str) -> None:
    for step in (contract.check, contract.freeze):
        with pytest.raises(Refused, match=message) as caught:
            step(frozen, now)
        assert f"Bump the contract's version in {frozen}" in str(caught.value)
    frozen.write_text(frozen.read_text().replace("version: 1", "version: 2"))
    with pytest.raises(Refused, match=message):
        contract.check(frozen, now)
    contract.freeze(frozen, now)
    contract.check(frozen, now)
    assert (contract.read(frozen).version, contract.read(frozen).views) == (2, contract.shape(now))


def test_a_contract_that_was_edited_by_hand_is_seen(frozen: Path) -> None:
    data = yaml.safe_load(frozen.read_text())
    del data["views"]["late_daily"]
    frozen.write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError, match="expected the seal of version 1"):
        contract.check(frozen, VIEWS[:1])


@pytest.mark.parametrize("text", [None, "", "[1]", "version: one\nviews: {}\nseal: x", "version: 1\nseal: x"])
def test_a_missing_or_broken_contract_says_so(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "contract.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SpecError, match="expected version, seal and views, found"):
        contract.check(file, VIEWS)


def test_freezing_again_writes_the_same_bytes(frozen: Path) -> None:
    before = frozen.read_bytes()
    contract.freeze(frozen, VIEWS)
    assert frozen.read_bytes() == before
