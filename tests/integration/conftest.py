"""What integration tests share: the year of flights, taken in once."""

from __future__ import annotations

import time

import pytest

from include.evergreen.replay.world import History, history


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, float]:
    """(every real day of 2013 as ingest leaves it, the seconds that it took)."""
    began = time.monotonic()
    found = history("flight_delay", tmp_path_factory.mktemp("flights"))
    return found, time.monotonic() - began
