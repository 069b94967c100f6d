"""A history with a weak champion, made once; the same days on a stack that nothing happens to."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.evergreen.settings import Settings
from tests.chaos.airflow.embedded import INGEST, MODEL, MONITOR, SCORE, TRAIN, WEAK, Embedded, project

DAY = dt.timedelta(days=1)
SINCE = dt.date(2013, 1, 1)
TRAINED = dt.date(2013, 2, 4)
FIRST = dt.date(2013, 2, 11)
"""A schedule of this day has a plane that is not registered in the United States: a row in quarantine."""
SECOND = FIRST + DAY


@dataclass(frozen=True)
class Base:
    """What every stack of these tests starts from.

    Attributes:
        project: a copy of the project, compiled. var: of a stack that is down, with the history until the day before
            `FIRST`, and a champion.
    """

    project: Path
    var: Path

    def stack(self, folder: Path) -> Embedded:
        return Embedded.make(folder, self.project, self.var)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    from include.evergreen.lake.objects import S3Objects
    from include.evergreen.local.layout import environment
    from include.sources.nyc_flights.publish import publish

    folder = tmp_path_factory.mktemp("base")
    copy = project(folder / "copy")
    stack = Embedded.make(folder / "made", copy)
    with stack.running():
        settings = Settings.from_env(environment(stack.layout))
        publish(S3Objects(settings.object_store, "landing", settings.timeouts), SINCE, SECOND)
        before = FIRST - DAY
        stack.succeeded(
            INGEST, stack.trigger(INGEST, partition_key=str(before), conf={"history_from": str(SINCE)}), 600
        )
        conf = {"reason": "a weak one", "as_of": str(TRAINED), "hyper_parameters": WEAK}
        stack.succeeded(TRAIN, stack.trigger(TRAIN, conf=conf))
        [champion] = stack.mart("select version from champions where model = ?", MODEL)
        assert champion["version"] == 1
        for dag_id in (SCORE, MONITOR):
            stack.api().unpause(dag_id)
    return Base(copy, stack.layout.var)


@dataclass(frozen=True)
class Twin:
    """What a stack that nothing happened to left: after the first day, after the second, after what people did."""

    first: dict[str, Counter[str]]
    second: dict[str, Counter[str]]
    last: dict[str, Counter[str]]


@pytest.fixture(scope="session")
def twin(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Twin]]:
    """The twin, when it has lived: it does so beside the first test, whose tasks mostly wait for their next try."""
    stack = base.stack(tmp_path_factory.mktemp("twin"))
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(_lived, stack).result


def _lived(stack: Embedded) -> Twin:
    from tests.chaos.airflow import drive

    with stack.running():
        drive.first_day(stack)
        first = stack.facts()
        drive.second_day(stack)
        second = stack.facts()
        drive.by_hand(stack)
        assert stack.sql(stack.layout.airflow_db, "select * from task_instance where try_number > 1") == []
        return Twin(first, second, stack.facts())
