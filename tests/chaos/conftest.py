"""Counts the faults of the suite over all its tests, in whichever process they ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.tally import Tally, summary

HERE = Path(__file__).parent
PROPERTY = "faults"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def tally(record_property: Any) -> Iterator[Tally]:
    """Where a test names the faults it injects."""
    found = Tally()
    yield found
    record_property(PROPERTY, found.plain())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for kind in ("passed", "failed", "error", "") for report in terminalreporter.stats.get(kind, [])]
    seen = {
        report.nodeid: value
        for report in reports
        for name, value in getattr(report, "user_properties", [])
        if name == PROPERTY
    }
    faults = [fault for found in seen.values() for fault in found]
    if faults:
        terminalreporter.section("faults")
        for line in summary(faults):
            terminalreporter.write_line(line)
