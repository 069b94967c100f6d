"""What integration tests share: the year of flights, taken in once."""

from __future__ import annotations

import pytest

from include.evergreen.replay.world import History, history


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Every real day of 2013 as ingest leaves it."""
    return history("flight_delay", tmp_path_factory.mktemp("flights"))
