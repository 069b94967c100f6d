"""The result type of every pure decision: gate, triage, retrain governor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Decision:
    """An answer with its reasons and the evidence it was taken on.

    Attributes:
        accepted: the answer.
        reasons: one sentence each; every reason, not the first. Never empty.
        evidence: JSON-serialisable facts, recorded in the ledger beside the answer.
        undecided: the answer is no because a fair one is impossible.
    """

    accepted: bool
    reasons: tuple[str, ...]
    evidence: dict[str, Any] = field(default_factory=dict)
    undecided: bool = False

    def __post_init__(self) -> None:
        if not self.reasons:
            raise ValueError("a decision without a reason cannot be read later")
        if self.accepted and self.undecided:
            raise ValueError("a decision that is impossible is no yes")

    @property
    def outcome(self) -> Literal["accepted", "refused", "cannot_decide"]:
        """The answer as the ledger holds it."""
        if self.undecided:
            return "cannot_decide"
        return "accepted" if self.accepted else "refused"
