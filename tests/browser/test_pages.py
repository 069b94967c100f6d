"""The pages in a real browser: they draw, they obey, and no text of the data runs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.chromium import SIZES, Watch, shoot_all
from tests.browser.conftest import sign_in
from tests.examples_health import SCRIPT, World
from tests.examples_web import Pages

CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => top.slice(0, 3).map((part, i) => part * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const light = (rgb) => {
    const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (node) => {
    const behind = [];
    for (let one = node; one; one = one.parentElement) behind.push(numbers(getComputedStyle(one).backgroundColor));
    return behind.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const shown = texts.currentNode.data.trim() && node.checkVisibility();
    if (!shown || node.closest(".visually-hidden, .skip, svg")) continue;
    const below = background(node);
    const ink = over(numbers(getComputedStyle(node).color), below);
    const [one, other] = [light(ink), light(below)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 80)}`);
  }
  return [...new Set(poor)];
}"""

NAMELESS = """() => [
  ...[...document.querySelectorAll("input:not([type=hidden]), select, textarea")].filter((one) => !one.labels.length),
  ...[...document.querySelectorAll("a, button")].filter((one) => !one.textContent.trim() && !one.ariaLabel),
].map((one) => one.outerHTML)"""
"""Fields without a label, and links and buttons without a name."""


def walk(world: World) -> dict[str, str]:
    """Name -> path of every kind of page."""
    model = next(iter(world.models))
    halted = next(name for name, part in world.parts.items() if part == "halted")
    silent = next((name for name, part in world.parts.items() if part == "silent"), halted)
    return {
        "fleet": "/",
        "model": f"/models/{model}",
        "model-halted": f"/models/{halted}",
        "model-never-monitored": f"/models/{silent}",
        "report": f"/reports/{model}/{world.today}",
        "card": f"/cards/{model}/1",
        "data": "/data",
        "table": "/data/hub_flights/hub_actuals",
        "partition": "/data/nyc_flights/schedules/2013-06-27",
        "validation": "/validation/schedules/2013-06-29",
        "alerts": "/alerts",
        "tables": "/dictionary",
        "dictionary": f"/dictionary/{model}",
        "runbook": "/runbooks/broken-data",
        "retrain": f"/models/{model}/retrain",
        "rollback": f"/models/{model}/rollback",
        "acknowledge": "/alerts/1/acknowledge",
        "nothing": "/models/nothing",
    }


def visit(page: Page, url: str, path: str) -> None:
    page.goto(f"{url}/evergreen{path}")
    page.wait_for_load_state("networkidle")


def test_every_page_draws_in_both_themes_and_sizes(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    watch = Watch(page, url)
    for name, path in walk(site.world).items():
        visit(page, url, path)
        for theme in ("light", "dark"):
            page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
            page.evaluate("dispatchEvent(new StorageEvent('storage', {key: 'theme'}))")
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            assert page.evaluate(CONTRAST) == [], (name, theme)
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (name, size)
        shoot_all(page, name)
        watch.check()


def test_structure_a_screen_reader_finds(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    for name, path in walk(site.world).items():
        visit(page, url, path)
        assert page.locator("main").count() == page.locator("h1").count() == 1, name
        assert page.locator("table:not(:has(caption)):not(.prose *)").count() == 0, name
        assert page.evaluate(NAMELESS) == [], name
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
        assert len(ids) == len(set(ids)), name
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_text("Skip to the content")


def test_the_fleet_is_filtered_and_sorted(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    visit(page, url, "/")
    rows = page.locator("table.fleet tbody tr:visible")
    expect(rows).to_have_count(7)
    expect(rows.first).to_contain_text("Broken data")
    page.keyboard.press("/")
    page.keyboard.type("baggage")
    expect(rows).to_have_count(1)
    expect(page.locator("[data-told]")).to_have_text("1 of 7 shown")
    page.keyboard.press("Escape")
    expect(rows).to_have_count(7)
    page.get_by_role("button", name="Covariate drift").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Covariate drift").click()
    head = page.get_by_role("columnheader", name="Performance")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    values = [float(text) for text in page.locator("table.fleet tbody .performance b").all_inner_texts()]
    assert values == sorted(values) and len(set(values)) > 2
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    verdict = page.get_by_role("columnheader", name="Verdict")
    verdict.get_by_role("button").click()
    expect(rows.first).to_contain_text("Broken data")


def test_the_timeline_draws_and_the_keyboard_walks_it(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    visit(page, url, f"/models/{next(iter(site.world.models))}")
    timeline = page.locator("[data-timeline]")
    expect(timeline).to_have_attribute("data-drawn", "")
    assert timeline.locator("canvas").count() == 2
    inked = page.evaluate(
        "[...document.querySelectorAll('[data-timeline] canvas')].map(one => one.getContext('2d')"
        ".getImageData(0, 0, one.width, one.height).data.some(part => part != 0))"
    )
    assert inked == [True, True]
    timeline.focus()
    page.keyboard.press("End")
    expect(page.locator("[data-readout]")).to_contain_text("30 Jun 2013")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("[data-readout]")).to_contain_text("29 Jun 2013")


def test_the_theme_follows_airflow_while_the_page_is_open(oncall: BrowserContext, url: str) -> None:
    page, airflow = oncall.new_page(), oncall.new_page()
    visit(page, url, "/")
    visit(airflow, url, "/data")
    for theme in ("dark", "light"):
        airflow.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        expect(page.locator("html")).to_have_attribute("data-theme", theme)


def test_the_page_works_in_airflows_frame(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    watch = Watch(page, url)
    page.goto(f"{url}/framed/evergreen/reports/{next(iter(site.world.models))}/{site.world.today}")
    frame = page.frame_locator("#frame")
    expect(frame.locator("h1")).to_contain_text("flight_delay")
    expect(frame.frame_locator("iframe").locator("#drawn")).to_have_text("a report")
    frame.get_by_role("link", name="Models").first.click()
    expect(frame.locator("h1")).to_have_text("Model health")
    watch.check()


def test_another_site_cannot_frame_or_send(opened: Browser, url: str, site: Pages) -> None:
    context = sign_in(opened, url, "oncall")
    page = context.new_page()
    other = url.replace("127.0.0.1", "localhost")
    page.goto(f"{other}/elsewhere?to={url}/evergreen/alerts/1/acknowledge")
    page.get_by_role("button").click()
    expect(page.locator("body")).not_to_contain_text("forged")
    assert not site.mart.decisions("flight_delay", "acknowledgement") or all(
        "forged" not in row["reasons"] for row in site.mart.decisions("flight_delay", "acknowledgement")
    )
    context.close()


@pytest.mark.parametrize("user", ["oncall", "analyst"])
def test_hostile_text_runs_no_script(opened: Browser, hostile_url: str, hostile_site: Pages, user: str) -> None:
    context = sign_in(opened, hostile_url, user)
    page = context.new_page()
    watch = Watch(page, hostile_url)
    seen = ""
    for name, path in walk(hostile_site.world).items():
        visit(page, hostile_url, path)
        for opener in page.locator("summary").all():
            opener.click()
        seen += page.locator("body").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        watch.check()
    assert SCRIPT in seen
    context.close()


def test_actions_by_hand(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    watch = Watch(page, url)
    model = next(iter(site.world.models))

    visit(page, url, "/alerts")
    page.get_by_role("link", name="Acknowledge…").first.click()
    page.get_by_label("Note").fill(f"mine now {SCRIPT}")
    page.get_by_role("button", name="Acknowledge").dblclick()
    expect(page.get_by_text(f"mine now {SCRIPT}").first).to_be_visible()
    page.get_by_role("link", name="Snooze…").first.click()
    page.get_by_label("For").select_option("4 hours")
    page.get_by_role("button", name="Snooze").click()
    expect(page.get_by_text("snoozed until").first).to_be_visible()

    visit(page, url, f"/models/{model}")
    page.get_by_role("link", name="Retrain…").click()
    page.get_by_role("button", name="Start training").click()  # the browser asks for a reason first
    page.get_by_label("Why").fill("storm season")
    page.get_by_role("button", name="Start training").dblclick()
    expect(page.locator("h1")).to_have_text(f"train__{model}: success")
    assert len([key for key in site.airflow.runs if key[0] == f"train__{model}"]) == 1

    visit(page, url, f"/models/{model}")
    page.get_by_role("link", name="Roll back…").click()
    page.get_by_label("Why").fill("worse at noon")
    page.get_by_role("button", name="Dry run").click()
    expect(page.locator("h1")).to_have_text(f"Roll back {model} to version 1?")
    shoot_all(page, "rollback-planned")
    page.get_by_role("button", name="Roll back and score").click()
    expect(page.locator("h1")).to_have_text("rollback: success")
    shoot_all(page, "run")

    waiting = next(name for name, spec in site.world.models.items() if spec.approval == "human")
    visit(page, url, f"/models/{waiting}")
    page.get_by_role("link", name="Decide…").click()
    shoot_all(page, "approve")
    page.get_by_label("Approve").check()
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("status")).to_contain_text("by oncall")

    visit(page, url, "/data/nyc_flights/schedules/2013-06-27")
    page.get_by_role("link", name="Replay the quarantine…").click()
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("h1")).to_have_text("replay_quarantine: success")
    watch.check()


def test_a_viewer_sees_no_button(opened: Browser, url: str, site: Pages) -> None:
    context = sign_in(opened, url, "analyst")
    page = context.new_page()
    for path in ("/", "/alerts", *(f"/models/{model}" for model in site.world.models)):
        visit(page, url, path)
        assert page.locator("form[method=post]").count() == 0
        assert page.get_by_role("link", name="…").count() == 0, path
    visit(page, url, f"/models/{next(iter(site.world.models))}/retrain")
    expect(page.locator("h1")).to_have_text("Not allowed")
    context.close()


def test_a_download_arrives(oncall: BrowserContext, url: str, site: Pages) -> None:
    page = oncall.new_page()
    visit(page, url, f"/dictionary/{next(iter(site.world.models))}")
    with page.expect_download() as arriving:
        page.get_by_role("button", name="Download").first.click()
    assert arriving.value.suggested_filename.endswith(f"_{site.world.today}.csv")


def test_anonymous_is_sent_to_airflows_login(opened: Browser, url: str) -> None:
    context = opened.new_context()
    page = context.new_page()
    page.goto(f"{url}/evergreen/alerts")
    assert page.url == f"{url}/auth/login?next=/evergreen/alerts"
    context.close()
