"""Every step of the loop with a broken object store, then with a whole one: nothing lost, doubled or half-visible.

The fault begins in the middle of each step, stale lists with the first. A step is tried once with the fault and once
without, as Airflow's retry does; then everything it may have changed is compared with a walk that met no fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from include.evergreen.platform import Platform
from tests.chaos.proxy import HttpProxy, Mode
from tests.chaos.stages import DAY, HELPERS, STEPS, TABLE, Outcome, Tasks, source
from tests.chaos.tally import Tally
from tests.chaos.worlds import LAKE_OF, Facts, Twin, World, facts_after, made, tasks, twin, worlds

__all__ = ["made", "tasks", "twin", "worlds"]

pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

WHOLE = {"prediction", "scoring", "champion", "batch", *(table for tables in LAKE_OF.values() for table in tables)}
"""Kinds of facts that a step changes in one piece or not at all."""

Wanted = Callable[[str, str], bool]


def _any(method: str, target: str) -> bool:
    return True


def _stored(method: str, target: str) -> bool:
    return method == "PUT"


def _fetched(method: str, target: str) -> bool:
    return method == "GET" and "list-type" not in target


def _listed(method: str, target: str) -> bool:
    return method == "GET" and "list-type=2" in target


MODES: dict[Mode, Wanted] = {
    "down": _any,
    "busy": _any,
    "cut upload": _stored,
    "cut download": _fetched,
    "lost answer": _stored,
    "stale list": _listed,
}


FAILING: dict[Mode, int] = {
    "down": 15,
    "busy": 15,
    "cut upload": 8,
    "cut download": 10,
    "lost answer": 8,
    "stale list": 1,
}
"""At least so many steps fail at their first try."""


def land_now(platform: Platform) -> None:
    """Upstream delivers the day again: a stale list does not show it."""
    for item in platform.landing.list(f"{source().name}/{TABLE}/{DAY}"):
        platform.landing.put(item.key, platform.landing.get(item.key))


def clear(outcome: Outcome, endpoint: str) -> None:
    """An error that a person can act on: one of ours, short, naming the dependency and what was expected of it."""
    assert outcome.error == "Unavailable", f"{outcome.error}: {outcome.text}\n{outcome.trace}"
    assert endpoint in outcome.text and "expected" in outcome.text and "s3://" in outcome.text, outcome.text
    assert len(outcome.text) < 400 and "\n" not in outcome.text, outcome.text


def by_kind(facts: Facts) -> dict[str, Counter[tuple[object, ...]]]:
    found: dict[str, Counter[tuple[object, ...]]] = {}
    for fact in facts:
        found.setdefault(fact[0], Counter())[fact] += 1
    return found


def visible(before: Facts, now: Facts, after: Facts) -> None:
    """What is seen between two tries is of the state before or of the state after, whole."""
    one, between, other = by_kind(before), by_kind(now), by_kind(after)
    for kind, facts in between.items():
        was, will = one.get(kind, Counter()), other.get(kind, Counter())
        strange = facts - was - will
        assert not strange, f"neither before nor after: {list(strange)[:2]}"
        if kind in WHOLE:
            assert facts in (was, will), f"{kind}: half of a step is visible"


@pytest.fixture(params=MODES, ids=lambda mode: mode.replace(" ", "-"))
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
def world(worlds: Callable[[str], World]) -> World:
    return worlds("world")


@pytest.fixture
def proxy(world: World) -> Iterator[HttpProxy]:
    with HttpProxy(world.port) as found:
        yield found


def test_every_step_recovers(
    mode: Mode, world: World, proxy: HttpProxy, tasks: Tasks, twin: Twin, tally: Tally
) -> None:
    wanted = MODES[mode]
    settings = world.settings(proxy.url)
    before = twin.facts["before"]
    failed = 0
    if mode == "stale list":
        land_now(Platform(settings))
    for step in STEPS:
        matching = sum(wanted(*request) for request in twin.requests[step])
        if step in HELPERS or not matching:
            world.memo[step] = tasks.run(step, settings, world.memo).done()
            before = twin.facts[step]
            continue
        with tally.fault(f"object store: {mode}", step) as fault:
            if step in LAKE_OF:
                before = [*(fact for fact in before if "." not in fact[0]), *world.lake(*LAKE_OF[step])]
            proxy.break_(mode, after=0 if mode == "stale list" else matching // 2, wanted=wanted)
            tried = tasks.run(step, settings, world.memo)
            assert proxy.hit, f"{step}: the fault met no request"
            proxy.heal()
            visible(before, facts_after(world, step), twin.facts[step])
            if tried.error is not None:
                failed += 1
                if (mode, step) == ("stale list", "land"):
                    assert tried.error == "DeliveryMissing" and str(DAY) in tried.text, tried
                else:
                    clear(tried, proxy.url)
            world.memo[step] = tasks.run(step, settings, world.memo).done()
            fault.rows(twin.facts[step], facts_after(world, step))
        before = twin.facts[step]
    assert failed >= FAILING[mode]
