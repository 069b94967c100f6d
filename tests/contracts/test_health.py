"""The read models of the health page ask both databases the same."""

from __future__ import annotations

from include.evergreen.health import read
from include.evergreen.mart.store import Mart
from tests.examples_health import HUBS, seed


def test_every_page_reads_on_either_database(uri: str) -> None:
    mart = Mart(uri)
    world = seed(mart, models=4, days=30)
    fleet = read.fleet(mart, world.models, world.sources)
    assert [(row.verdict, row.late_days, row.champion, len(row.performance)) for row in fleet.rows] == [
        ("broken_data", 0, 1, 28),
        ("performance_drop", 0, 1, 28),
        ("covariate_drift", 0, 2, 28),
        ("ok", 0, 1, 28),
    ]
    ill = world.models["flight_delay"]
    page = read.model_page(mart, ill, world.sources[ill.source], peers=world.models)
    assert [version.status for version in page.versions] == ["refused", "champion", "former champion"]
    assert {"gate", "verdict", "acknowledgement"} == {story.kind for story in page.story}
    assert all(alert.opened_at.utcoffset() is not None for alert in page.alerts)
    report = read.report_page(mart, ill, world.sources[ill.source], world.today)
    assert report is not None and report.verdict == "covariate_drift"
    tables = {table.name: table for table in read.tables(mart, world.sources)}
    assert (tables["hub_actuals"].late_days, tables["hub_actuals"].stopped) == (1, 1)
    partitions, more = read.partitions(mart, world.sources[HUBS], "hub_actuals", limit=5)
    assert (len(partitions), more) == (5, True)
    mart.engine.dispose()
