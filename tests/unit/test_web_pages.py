"""Who sees what: logins, permissions, headers, escaping, and pages without data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from include.evergreen.errors import Unavailable
from include.evergreen.web import guard
from include.evergreen.web.app import create_app
from include.evergreen.web.render import markdown
from tests.examples_health import HOSTILE
from tests.examples_web import ORIGIN, FakeAirflow, Pages, pages
from tests.support import memory_platform

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return pages(tmp_path_factory.mktemp("site"), models=4, days=24, hostile=True)


def client(site: Pages, user: str | None) -> TestClient:
    headers = {"authorization": f"Bearer token-{user}"} if user else {}
    return TestClient(site.app, base_url=ORIGIN, headers=headers, follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def oncall(site: Pages) -> TestClient:
    return client(site, "oncall")


def paths(site: Pages) -> list[str]:
    """Every GET route with something that exists in its place."""
    model, today = next(iter(site.world.models)), site.world.today
    values = {
        "model": model,
        "as_of": str(today),
        "version": "1",
        "table": "schedules",
        "partition": str(today),
        "source": "nyc_flights",
        "dag_id": f"monitor__{model}",
        "run_id": "health__0123456789abcdef",
        "id": "1",
        "verb": "acknowledge",
        "view": f"{model}_current",
        "name:path": "style.css",
        "name": "broken-data",
    }
    found = [
        re.sub(r"\{([^}]+)\}", lambda name: values[name.group(1)], route.path)
        for route in site.app.routes
        if isinstance(route, Route) and "GET" in (route.methods or ())
    ]
    return [f"{path}?since={today}&until={today}" if "/downloads/" in path else path for path in found]


def posts(site: Pages) -> list[str]:
    model, today = next(iter(site.world.models)), site.world.today
    values = {"model": model, "run_id": "health__0123456789abcdef", "source": "nyc_flights", "table": "schedules"}
    values |= {"partition": str(today), "id": "1", "verb": "snooze"}
    return [
        re.sub(r"\{([^}]+)\}", lambda name: values[name.group(1)], route.path)
        for route in site.app.routes
        if isinstance(route, Route) and "POST" in (route.methods or ())
    ]


def test_every_route_needs_a_login(site: Pages) -> None:
    anonymous = client(site, None)
    assert len(paths(site)) > 20 and len(posts(site)) == 6
    for path in paths(site):
        assert anonymous.get(path).status_code == 401, path
        answer = anonymous.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/auth/login?next={path}")
    for path in posts(site):
        assert anonymous.post(path, data={"token": "x"}, headers=HTML).status_code == 401, path
    forged = client(site, "nobody")
    assert forged.get("/").status_code == 401


def test_every_answer_has_the_security_headers(site: Pages, oncall: TestClient) -> None:
    answers = [oncall.get(path) for path in paths(site)]
    answers += [oncall.get("/nothing"), oncall.get("/models/Not-A-Name"), client(site, None).get("/")]
    answers += [oncall.post(path) for path in posts(site)]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, answer.url
        assert "'unsafe" not in policy or policy.startswith("sandbox allow-scripts;"), answer.url
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "private" in answer.headers["cache-control"]


def test_pages_of_other_tools_are_sandboxed(site: Pages, oncall: TestClient) -> None:
    model, today = next(iter(site.world.models)), site.world.today
    for path in (f"/raw/reports/{model}/{today}", f"/raw/validation/schedules/{today}", f"/raw/cards/{model}/1"):
        answer = oncall.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts;") and "allow-same-origin" not in policy
        assert "connect-src" not in policy and "frame-ancestors 'self'" in policy


def test_addresses_from_before_still_lead_to_the_page(site: Pages, oncall: TestClient) -> None:
    model, today = next(iter(site.world.models)), site.world.today
    for path in (f"/reports/{model}/{today}", f"/validation/schedules/{today}", f"/cards/{model}/1"):
        page = oncall.get(path)
        assert page.status_code == 200
        assert f'src="/raw{path}"' in page.text and 'sandbox="allow-scripts"' in page.text


class Markup(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("user", ["oncall", "analyst"])
def test_hostile_text_stays_text(site: Pages, user: str) -> None:
    reader, seen = client(site, user), ""
    for model in site.world.models:
        seen += "".join(
            reader.get(path).text
            for path in (f"/models/{model}", f"/reports/{model}/{site.world.today}", f"/dictionary/{model}")
        )
    for path in ("/", "/data", "/data/hub_flights/hub_actuals", "/alerts", "/dictionary"):
        seen += reader.get(path).text
    markup = Markup()
    markup.feed(seen)
    assert not [attributes for tag, attributes in markup.tags if tag == "script" and not attributes.get("src")]
    assert not [tag for tag, _ in markup.tags if tag == "img"]
    assert not [
        name for _, attributes in markup.tags for name in attributes if name.startswith("on") or name == "style"
    ]
    assert "&lt;/script&gt;" in seen and "{{ 7 * 7 }}" in seen
    assert HOSTILE[0] not in seen and HOSTILE[1] not in seen


def test_a_viewer_gets_no_button_and_403(site: Pages) -> None:
    analyst, oncall = client(site, "analyst"), client(site, "oncall")
    waiting = next(name for name, spec in site.world.models.items() if spec.approval == "human")
    assert "Decide…" in oncall.get(f"/models/{waiting}").text
    for path in ("/alerts", *(f"/models/{model}" for model in site.world.models)):
        text = analyst.get(path).text
        assert not [word for word in ("Retrain…", "Roll back", "Acknowledge…", "Snooze…", "Decide…") if word in text]
    for path in posts(site):
        before = len(site.airflow.calls)
        answer = analyst.post(path, data={"token": "x"})
        assert answer.status_code == 403, path
        assert all(call[1] == "GET" for call in site.airflow.calls[before:])
    for path in ("/models/flight_delay/retrain", "/models/flight_delay/rollback", "/alerts/1/acknowledge"):
        assert analyst.get(path).status_code == 403


def test_keys_are_looked_up(site: Pages, oncall: TestClient) -> None:
    model = next(iter(site.world.models))
    for path in (
        f"/raw/reports/{model}/..%2f..%2fsecrets",
        "/raw/reports/..%2f..%2fsecrets/2013-06-30",
        "/static/..%2fguard.py",
        "/static/../guard.py",
        "/static/uplot/README.md",
        "/raw/cards/other/1",
        f"/raw/cards/{model}/77",
        f"/raw/cards/{model}/0",
        "/raw/reports/flight_delay/1999-01-01",
        "/data/nyc_flights/hub_actuals",
        f"/downloads/{model}/ledger?since=2013-06-01&until=2013-06-01",
        f"/downloads/{model}/{model}_current?since=2003-06-01&until=2013-06-01",
        f"/downloads/{model}/{model}_current?since=2013-06-02&until=2013-06-01",
        "/runs/maintain_lake/health__0123456789abcdef",
        "/runs/rollback/health__0123456789abcdef",
    ):
        answer = oncall.get(path)
        assert answer.status_code == 404, path
        assert "Traceback" not in answer.text


def test_every_runbook_is_drawn_and_links_to_the_others(site: Pages, oncall: TestClient) -> None:
    books = sorted(path.stem for path in site.app.state.site.runbooks.glob("*.md"))
    assert "broken-data" in books
    for name in books:
        page = oncall.get(f"/runbooks/{name}")
        assert page.status_code == 200, name
        for other in re.findall(r'href="([a-z-]+)"', page.text):
            assert other in books, (name, other)
    assert 'href="ingest-stopped"' in oncall.get("/runbooks/broken-data").text
    for name in ("..%2f..%2fsecrets", "nothing", "README"):
        assert oncall.get(f"/runbooks/{name}").status_code == 404


def test_markdown_keeps_markup_as_text() -> None:
    drawn = markdown(f"# a {HOSTILE[0]}\n[x](javascript:alert(1)) [y](other-book.md#part)\n\n| a |\n|---|\n| <b> |")
    assert "<script" not in drawn and "<b>" not in drawn and 'href="javascript' not in drawn
    assert 'href="other-book"' in drawn and "<table>" in drawn


def test_a_download_is_the_day_asked_for(site: Pages, oncall: TestClient) -> None:
    model, today = next(iter(site.world.models)), site.world.today
    answer = oncall.get(f"/downloads/{model}/{model}_current?since={today}&until={today}&format=csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="{model}_current_{today}_{today}.csv"'
    lines = answer.text.splitlines()
    assert "probability" in lines[0] and len(lines) == 5
    parquet = oncall.get(f"/downloads/{model}/{model}_current?since={today}&until={today}&format=parquet")
    assert parquet.content[:4] == b"PAR1"


@pytest.mark.parametrize(
    ("dag_id", "path"),
    [
        ("monitor__flight_delay", "/models/flight_delay"),
        ("train__flight_delay", "/models/flight_delay"),
        ("ingest__nyc_flights", "/data"),
        ("replay_quarantine", "/data"),
        ("rollback", "/"),
        ("somebody_elses", "/"),
    ],
)
def test_a_dags_tab_leads_to_its_page(oncall: TestClient, dag_id: str, path: str) -> None:
    answer = oncall.get(f"/dags/{dag_id}")
    assert (answer.status_code, answer.headers["location"]) == (303, path)


def test_recorded_links_lead_into_the_pages_only(site: Pages) -> None:
    found = site.app.state.site
    request: Any = type("Request", (), {"scope": {"root_path": "/airflow/evergreen"}})()
    for link, leads in (
        ("/evergreen/models/a", "/airflow/evergreen/models/a"),
        ("javascript:alert(1)", "/airflow/evergreen/"),
        ("https://evil.test/", "/airflow/evergreen/"),
        ("//evil.test/evergreen/", "/airflow/evergreen/"),
    ):
        assert found._href(request, link) == leads


# --- without data, and with parts down -------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[TestClient]:
    from include.evergreen.specs import models, sources

    platform = memory_platform(tmp_path)
    app = create_app(lambda: platform, FakeAirflow(platform.mart), lambda: (models(), sources()))
    with TestClient(app, base_url=ORIGIN, headers={"authorization": "Bearer token-oncall"}) as made:
        yield made


def test_a_page_without_data_says_what_to_run(empty: TestClient) -> None:
    for path, says in (
        ("/", "Never monitored"),
        ("/models/flight_delay", "train__flight_delay"),
        ("/models/flight_delay", "ingest__nyc_flights"),
        ("/models/flight_delay/retrain", "It was never scored"),
        ("/models/flight_delay/rollback", "No earlier champion"),
        ("/data", "ingest__nyc_flights"),
        ("/data/nyc_flights/schedules", "history_from"),
        ("/alerts", "Nothing is open"),
        ("/dictionary/flight_delay", "Nothing is scored yet"),
    ):
        answer = empty.get(path)
        assert answer.status_code == 200, path
        assert says in answer.text, path


def test_no_models_at_all(tmp_path: Path) -> None:
    platform = memory_platform(tmp_path)
    app = create_app(lambda: platform, FakeAirflow(platform.mart), lambda: ({}, {}))
    reader = TestClient(app, headers={"authorization": "Bearer token-oncall"})
    assert "No models yet" in reader.get("/").text
    assert "No sources yet" in reader.get("/data").text


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("postgresql://secret-host:5432 is down"), 503), (ValueError("secret-host"), 500)]
)
def test_errors_are_short_and_tell_no_secret(error: Exception, status: int) -> None:
    def platform() -> Any:
        raise error

    app = create_app(platform, FakeAirflow(None), lambda: ({}, {}))  # type: ignore[arg-type]
    answer = TestClient(app, headers={"authorization": "Bearer token-oncall"}).get("/")
    assert answer.status_code == status
    assert "secret-host" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["content-security-policy"] == guard.HEADERS["Content-Security-Policy"]
