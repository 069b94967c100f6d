"""A decision says why."""

from __future__ import annotations

import dataclasses

import pytest

from include.evergreen.decisions import Decision


@pytest.mark.parametrize("accepted", [True, False])
def test_a_decision_without_a_reason_cannot_be_made(accepted: bool) -> None:
    with pytest.raises(ValueError, match="without a reason"):
        Decision(accepted, ())


def test_a_decision_is_final() -> None:
    decision = Decision(True, ("better on the same rows",), {"auc": 0.74})
    assert decision.evidence == {"auc": 0.74}
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.accepted = False  # type: ignore[misc]


def test_decisions_do_not_share_evidence() -> None:
    first, second = Decision(False, ("a",)), Decision(False, ("a",))
    first.evidence["x"] = 1
    assert second.evidence == {}
