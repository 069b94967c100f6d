"""A person's walk through the pages of a running Airflow: log in, look at everything, press everything once.

`walk` knows nothing of the project's models: it follows what the pages offer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

from tests.browser import chromium

SLOW = 120_000
"""Milliseconds that a DAG run may take on a busy machine."""
NOTE = "</script><script>window.__hacked = 1</script> \"><img src=x onerror='window.__hacked = 1'> seen by the walk"


@dataclass
class Seen:
    """What was seen.

    Attributes:
        pages: paths that were drawn, without the prefix.
        offered: actions that any page offered: retrain, rollback, approve, acknowledge, snooze, release.
        done: action -> what the page said at its end.
        complaints: dialogs, errors, refused scripts, requests elsewhere.
    """

    pages: list[str] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)
    done: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def log_in(page: Page, base_url: str, user: str, password: str) -> None:
    """Through Airflow's own login page."""
    page.goto(f"{base_url}/auth/login")
    page.locator("input[name=username]").fill(user)
    page.locator("input[name=password]").fill(password)
    page.locator("button[type=submit]").click()
    page.wait_for_url(lambda url: "/auth/login" not in url)


def walk(base_url: str, user: str, password: str, shots: Path, act: bool = True) -> Seen:
    """Log in, open every page there is, press every action that is offered (with `act`), and say what was seen."""
    seen = Seen()
    with chromium.browser() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        log_in(page, base_url, user, password)
        watch = chromium.Watch(page, base_url)
        _in_airflows_frame(page, base_url, shots / f"{user}-airflow.png")
        walker = _Walker(page, f"{base_url}/evergreen", user, shots, seen)
        walker.look()
        if act:
            walker.press()
        assert page.evaluate("window.__hacked") is None
        # Airflow's own pages may complain of what is theirs
        seen.complaints = [one for one in watch.seen if not one.startswith("console:") or "/evergreen/" in one]
        context.close()
    return seen


def _in_airflows_frame(page: Page, base_url: str, shot: Path) -> None:
    """The nav entry opens the fleet inside Airflow's UI."""
    page.goto(f"{base_url}/plugin/model_health")
    expect(page.frame_locator("iframe").locator("h1")).to_have_text("Model health", timeout=SLOW)
    shot.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shot)


class _Walker:
    def __init__(self, page: Page, root: str, user: str, shots: Path, seen: Seen) -> None:
        self.page, self.root, self.user, self.shots, self.seen = page, root, user, shots, seen

    def open(self, path: str, name: str = "") -> None:
        """A page; its buttons are noted. With `name` it is photographed in both themes and sizes."""
        answer = self.page.goto(f"{self.root}{path}")
        assert answer is not None and answer.status == 200, (path, answer and answer.status)
        self.page.wait_for_load_state("networkidle")
        assert self.page.evaluate("window.__hacked") is None, path
        self.seen.pages.append(path)
        for href in self._links("…"):
            self.seen.offered |= {verb for verb in VERBS if VERBS[verb] in href}
        if name:
            chromium.shoot_all(self.page, f"{self.user}-{name}", self.shots)

    def _links(self, words: str) -> list[str]:
        """Paths of the links whose text has the words."""
        found = self.page.locator("main a", has_text=words).evaluate_all("links => links.map(link => link.href)")
        return [urlsplit(href).path.removeprefix(urlsplit(self.root).path) for href in found]

    def _paths(self, prefix: str) -> list[str]:
        hrefs = self.page.locator("main a").evaluate_all("links => links.map(link => link.href)")
        paths = [urlsplit(href).path.removeprefix(urlsplit(self.root).path) for href in hrefs]
        return list(dict.fromkeys(path for path in paths if path.startswith(prefix)))

    def _held(self) -> list[str]:
        """The newest partition on a table's page that holds rows in quarantine."""
        rows = self.page.locator("main tr", has=self.page.locator('td[data-label="Quarantined"]'))
        held = rows.filter(has=self.page.locator('td[data-label="Quarantined"]', has_text=re.compile("[1-9]")))
        hrefs = held.locator("th a").evaluate_all("links => links.map(link => link.href)")
        return [urlsplit(href).path.removeprefix(urlsplit(self.root).path) for href in hrefs[:1]]

    def look(self) -> None:
        """Every kind of page, for every model and table; of reports, cards and partitions the newest few, and one with
        rows in quarantine."""
        self.open("/", "fleet")
        models = self._paths("/models/")
        for number, path in enumerate(models):
            self.open(path, "" if number else "model")
            reports, cards = self._paths("/reports/")[:2], self._paths("/cards/")[:2]
            for at, one in enumerate([*reports, *cards]):
                self.open(one, f"report-{at}" if not number and at < 1 else "")
                frame = self.page.frame_locator("iframe.frame").locator("body")
                expect(frame).not_to_be_empty(timeout=SLOW)
            self.open(f"/dictionary{path.removeprefix('/models')}", "" if number else "dictionary")
        self.open("/data", "data")
        for number, path in enumerate(self._paths("/data/")):
            self.open(path, "" if number else "table")
            for one in [*self._paths(f"{path}/")[:2], *self._held(), *self._paths("/validation/")[:1]]:
                self.open(one)
        self.open("/alerts", "alerts")
        self.open("/dictionary")

    def press(self) -> None:
        """Every action that was offered, once each."""
        for verb in (verb for verb in VERBS if verb in self.seen.offered):
            self.seen.done[verb] = getattr(self, f"_{verb}")()

    def _offer(self, verb: str) -> None:
        """Opens the first page of those seen that offers the action, and follows it."""
        for path in dict.fromkeys(self.seen.pages):
            self.page.goto(f"{self.root}{path}")
            found = [href for href in self._links("…") if VERBS[verb] in href]
            if found:
                self.page.goto(f"{self.root}{found[0]}")
                return
        raise AssertionError(f"{verb}: it was offered and is no more")

    def _ended(self) -> str:
        """The headline once a run has ended; the page looks again by itself."""
        expect(self.page.locator("h1")).to_have_text(ENDED, timeout=SLOW)
        return self.page.locator("h1").inner_text()

    def _acknowledge(self) -> str:
        self._offer("acknowledge")
        self.page.get_by_label("Note").fill(NOTE)
        self.page.get_by_role("button", name="Acknowledge").click()
        said = self.page.get_by_text(f"{self.user} has it since").first
        expect(said).to_be_visible()
        expect(self.page.get_by_text("seen by the walk").first).to_be_visible()
        return said.inner_text()

    def _snooze(self) -> str:
        self._offer("snooze")
        self.page.get_by_label("For").select_option("4 hours")
        self.page.get_by_label("Note").fill(NOTE)
        self.page.get_by_role("button", name="Snooze").click()
        said = self.page.get_by_text("snoozed until").first
        expect(said).to_be_visible()
        return said.inner_text()

    def _approve(self) -> str:
        self._offer("approve")
        chromium.shoot_all(self.page, f"{self.user}-approve", self.shots)
        self.page.get_by_label("Approve").check()
        self.page.get_by_role("button", name="Answer").click()
        said = self.page.get_by_role("status")
        expect(said).to_contain_text(f"by {self.user}")
        return said.inner_text()

    def _release(self) -> str:
        self._offer("release")
        self.page.get_by_role("button", name="Replay").click()
        return self._ended()

    def _retrain(self) -> str:
        self._offer("retrain")
        chromium.shoot_all(self.page, f"{self.user}-retrain", self.shots)
        self.page.get_by_label("Why").fill(NOTE)
        self.page.get_by_role("button", name="Start training").dblclick()
        return self._ended()

    def _rollback(self) -> str:
        self._offer("rollback")
        self.page.get_by_label("Why").fill(NOTE)
        self.page.get_by_role("button", name="Dry run").click()
        do = self.page.get_by_role("button", name="Roll back and score")
        expect(do).to_be_visible(timeout=SLOW)
        chromium.shoot_all(self.page, f"{self.user}-rollback-planned", self.shots)
        do.click()
        return self._ended()


VERBS = {
    "acknowledge": "/acknowledge",
    "snooze": "/snooze",
    "approve": "/approve/",
    "release": "/release",
    "retrain": "/retrain",
    "rollback": "/rollback",
}
ENDED = re.compile(r": (success|failed)$")
