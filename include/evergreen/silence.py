"""Dependencies that accepted and never answered: a process that found one silent does not ask it again for a while."""

from __future__ import annotations

import time

REST_SECONDS = 10.0
"""How long it rests: of a step's many requests only the first ones wait."""

_since: dict[str, float] = {}
"""Address -> the moment it was found silent, by the monotonic clock."""


def found(address: str) -> None:
    """Let an address rest from now on."""
    _since[address] = time.monotonic()


def rests(address: str) -> float | None:
    """Seconds since an address was found silent; None once it may be asked."""
    ago = time.monotonic() - _since.get(address, float("-inf"))
    return ago if ago < REST_SECONDS else None


def forget() -> None:
    """Every address may be asked at once."""
    _since.clear()
