"""The plugin as Airflow sees it: light, well formed, and behind Airflow's own login and permissions."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PROJECT = Path(__file__).resolve().parents[2]
IMPORT = """
import json, sys, time
import psutil
import airflow.plugins_manager
sys.path.insert(0, "plugins")
before, used, start = set(sys.modules), psutil.Process().memory_info().rss, time.process_time()
import evergreen_pages
print(json.dumps({
    "seconds": time.process_time() - start,
    "bytes": psutil.Process().memory_info().rss - used,
    "modules": sorted(set(sys.modules) - before),
}))
"""


@pytest.fixture(scope="module")
def plugin() -> Any:
    sys.path.insert(0, str(PROJECT / "plugins"))
    try:
        import evergreen_pages
    finally:
        sys.path.pop(0)
    return evergreen_pages


def test_importing_the_plugin_imports_nothing_else(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=env, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in found["modules"] if not "include.evergreen.orchestration".startswith(name)] == [
        "evergreen_pages",
        "include.evergreen.orchestration.deadline",
    ]
    assert found["bytes"] < 30e6


def test_the_plugin_knows_what_the_deadlines_count_from(plugin: Any) -> None:
    from include.evergreen.orchestration.deadline import RunCreated

    assert plugin.EvergreenPages.deadline_references == [RunCreated]


def test_views_are_what_airflows_ui_expects(plugin: Any) -> None:
    from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

    views = [ExternalViewResponse.model_validate(view) for view in plugin.EvergreenPages.external_views]
    assert [(view.name, view.destination, view.href) for view in views] == [
        ("Models", "nav", "/evergreen/"),
        ("Model health", "dag", "/evergreen/dags/{DAG_ID}"),
    ]
    assert len({view.url_route for view in views}) == 2
    from include.evergreen.web.pages import STATIC

    for view in views:
        for icon in (view.icon, view.icon_dark_mode):
            assert icon and icon.removeprefix("/evergreen/static/") in STATIC


def test_the_prefix_is_the_one_that_links_use(plugin: Any) -> None:
    from include.evergreen.orchestration import links
    from include.evergreen.web import site

    assert plugin.PREFIX == links.PREFIX == site.PREFIX


# --- Airflow behind the port -----------------------------------------------------------------------------------------


def request(app: Any = None, token: str = "", bearer: str = "") -> Request:
    headers = [(b"cookie", f"_token={token}".encode())] if token else []
    headers += [(b"authorization", f"Bearer {bearer}".encode())] if bearer else []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": b""}
    return Request({**scope, "evergreen.airflow": app})


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Airflow's simple auth manager with its three users."""
    from airflow.api_fastapi import app as airflow_app

    from include.evergreen.orchestration.access import AirflowAccess

    passwords = tmp_path / "passwords.json"
    passwords.write_text(json.dumps({"admin": "a", "oncall": "b", "analyst": "c"}))
    for name, value in {
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,oncall:user,analyst:viewer",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "API_AUTH__JWT_SECRET": "0123456789abcdef" * 4,
        "API__SECRET_KEY": "a key",
        "API__BASE_URL": "http://airflow.test:8080/root",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    airflow_app.purge_cached_app()
    airflow_app.create_auth_manager()
    yield AirflowAccess()
    airflow_app.purge_cached_app()


def token_of(name: str, role: str) -> str:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return str(get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role)))


def test_a_user_is_who_airflow_says(access: Any) -> None:
    from airflow import settings
    from airflow.models.revoked_token import RevokedToken

    RevokedToken.__table__.create(settings.engine, checkfirst=True)
    token = token_of("oncall", "USER")
    for sent in (request(token=token), request(bearer=token)):
        user = asyncio.run(access.user(sent))
        assert (user.id, user.name, user.token) == ("oncall", "oncall", token)
        assert token not in repr(user)
    for sent in (request(), request(token="x"), request(bearer=f"{token}x"), request(token=token, bearer="x")):
        assert asyncio.run(access.user(sent)) is None


@pytest.mark.parametrize(("role", "acts"), [("VIEWER", False), ("USER", True), ("ADMIN", True)])
def test_permissions_are_airflows(access: Any, role: str, acts: bool) -> None:
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    from include.evergreen.web.access import User

    user = User("x", "x", "t", SimpleAuthManagerUser(username="x", role=role))
    assert access.may(user, "GET", "train__flight_delay", "RUN")
    assert access.may(user, "POST", "train__flight_delay", "RUN") is acts
    assert access.may(user, "PUT", "approve__flight_delay", "HITL_DETAIL") is acts


def test_the_rest_api_is_asked_in_the_users_name(access: Any) -> None:
    from include.evergreen.web.access import User

    seen: list[Any] = []

    async def answer(asked: Request) -> JSONResponse:
        seen.append((asked.method, asked.url.path, asked.headers["authorization"], await asked.json()))
        return JSONResponse({"detail": "the run exists"}, 409)

    path = "/root/api/v2/dags/rollback/dagRuns"
    app = Starlette(routes=[Route(path, answer, methods=["POST"])])
    user = User("oncall", "oncall", "the-token")
    said = asyncio.run(access.call(request(app), user, "POST", "/dags/rollback/dagRuns", {"conf": {}}))
    assert (said.ok, said.status, said.detail) == (False, 409, "the run exists")
    assert seen == [("POST", path, "Bearer the-token", {"conf": {}})]
    missing = asyncio.run(access.call(request(app), user, "GET", "/dags/nothing"))
    assert (missing.status, missing.body) == (404, {})


def test_what_airflow_is_configured_to(access: Any) -> None:
    assert access.secret() == b"a key"
    assert access.origins() == {"http://airflow.test:8080"}
    assert access.airflow_url() == "http://airflow.test:8080/root"
    assert access.login_url("/evergreen/alerts").endswith("/login?next=%2Fevergreen%2Falerts")


def test_without_a_key_no_form_is_signed(access: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from include.evergreen.errors import SettingsError

    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "")
    with pytest.raises(SettingsError, match="secret_key"):
        access.secret()
