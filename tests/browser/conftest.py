"""Chromium, and the pages over a seeded mart with hostile names, notes, columns and values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.browser import chromium
from tests.browser.served import served
from tests.examples_web import Pages, pages


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    """Closed with its module: Playwright keeps an event loop running in this thread, in the way of others."""
    if chromium.executable() is None:
        pytest.fail("expected Chromium, found none: make test-tools")
    with chromium.browser() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return pages(tmp_path_factory.mktemp("site"), models=7, days=60)


@pytest.fixture(scope="module")
def url(site: Pages) -> Iterator[str]:
    with served(site.app) as address:
        yield address


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return pages(tmp_path_factory.mktemp("hostile"), models=4, days=32, hostile=True)


@pytest.fixture(scope="module")
def hostile_url(hostile_site: Pages) -> Iterator[str]:
    with served(hostile_site.app) as address:
        yield address


def sign_in(browser: Browser, url: str, user: str) -> BrowserContext:
    """A context with Airflow's cookie."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies([{"name": "_token", "value": f"token-{user}", "url": url}])
    return context


@pytest.fixture
def oncall(opened: Browser, url: str) -> Iterator[BrowserContext]:
    context = sign_in(opened, url, "oncall")
    yield context
    context.close()
