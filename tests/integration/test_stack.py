"""The embedded stack as a person meets it: it starts, lets three people in, listens on loopback, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from include.evergreen.local import processes
from include.evergreen.local.api import Api, ApiError
from include.evergreen.local.layout import PORTS, PROJECT, Layout
from include.evergreen.local.stack import running
from tests.outside import ports_of

PARTS = {"object-store", "api-server", "scheduler", "dag-processor", "triggerer", "log-server"}


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stack")
    (folder / "dags").mkdir()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "EVERGREEN_"))},
        "PYTHONPATH": str(PROJECT),
        "EVERGREEN_VAR": str(folder / "var"),
        "EVERGREEN_DAGS": str(folder / "dags"),
        **ports_of(PORTS),
    }


@pytest.fixture(scope="module")
def layout(env: dict[str, str]) -> Layout:
    return Layout.from_env(env)


def alive(family: list[psutil.Process]) -> list[str]:
    """Those of a family, noted while it lived, that still do: a check that does not rely on the stack's own marks."""
    return [str(p) for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def local(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "include.evergreen.local", *arguments]
    return subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def stack(env: dict[str, str], layout: Layout) -> Iterator[str]:
    """A started stack; its id. Tests below may end it: each asks for `up` itself."""
    done = local(env, "up")
    assert done.returncode == 0, done.stderr
    state = running(layout)
    assert state is not None
    yield str(state["id"])
    local(env, "down")
    assert processes.of_stack(str(state["id"])) == []


def test_up_tells_where_it_is_and_status_agrees(stack: str, env: dict[str, str], layout: Layout) -> None:
    again = local(env, "up")
    assert layout.ui_url in again.stdout
    assert running(layout) is not None
    found = json.loads(local(env, "status").stdout)
    assert found["services"] == dict.fromkeys(PARTS, "up")
    assert found["running"] is True


@pytest.mark.parametrize(("user", "may_read_pools"), [("admin", True), ("oncall", False), ("analyst", False)])
def test_each_user_has_a_login_and_a_role(stack: str, layout: Layout, user: str, may_read_pools: bool) -> None:
    with Api.login(layout, user) as api:
        assert api.dags() == []
        if may_read_pools:
            pools = {pool["name"] for pool in api.request("GET", "/pools")["pools"]}
            assert {"training", "ingest", "scoring"} <= pools
            loaded = {c["connection_id"]: c for c in api.request("GET", "/connections")["connections"]}
            assert {"lake_s3", "catalog_db", "mart_db", "mlflow"} <= set(loaded)
            assert layout.secrets.s3_secret_key not in json.dumps(loaded)
            assert str(layout.mart_db) not in json.dumps(loaded)
        else:
            with pytest.raises(ApiError, match="403"):
                api.request("GET", "/connections")


def test_a_wrong_password_and_no_password_are_refused(stack: str, layout: Layout) -> None:
    with pytest.raises(ApiError, match="401"):
        Api(layout.ui_url, "admin", "wrong").token()
    assert httpx.get(f"{layout.ui_url}/api/v2/dags", trust_env=False).status_code == 401


def test_the_ui_answers(stack: str, layout: Layout) -> None:
    page = httpx.get(layout.ui_url, trust_env=False, follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text


def test_everything_listens_on_loopback_only(stack: str, layout: Layout) -> None:
    seen = {
        (c.laddr.ip, c.laddr.port)
        for process in processes.of_stack(stack)
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert seen == {("127.0.0.1", port) for port in layout.ports.values()}


def test_no_secret_is_in_a_command_line_or_a_log(stack: str, layout: Layout) -> None:
    hidden = [layout.secrets.s3_secret_key, layout.secrets.jwt_secret, layout.secrets.fernet_key]
    hidden += layout.secrets.passwords.values()
    lines = [" ".join(process.cmdline()) for process in processes.of_stack(stack)]
    texts = [path.read_text(errors="replace") for path in layout.logs.rglob("*") if path.is_file()]
    assert not [secret for secret in hidden for text in [*lines, *texts] if secret in text]


def test_a_second_supervisor_is_refused(stack: str, env: dict[str, str]) -> None:
    done = local(env, "up", "--foreground")
    assert done.returncode == 1
    assert "AlreadyRunning" in done.stderr


def test_a_taken_port_is_named_with_its_variable_and_holder(
    stack: str, env: dict[str, str], layout: Layout, tmp_path: Path
) -> None:
    fresh = ports_of(PORTS)
    ui = layout.ports["ui"]
    done = local(
        {**env, **fresh, "EVERGREEN_VAR": str(tmp_path / "var"), "EVERGREEN_PORT_UI": str(ui)}, "up", "--foreground"
    )
    assert done.returncode == 1
    assert f"port {ui} (ui) is taken" in done.stderr
    assert "EVERGREEN_PORT_UI=<port>" in done.stderr
    assert "pid" in done.stderr


def test_killing_a_part_ends_the_rest_and_names_it(stack: str, env: dict[str, str], layout: Layout) -> None:
    state = running(layout)
    assert state is not None
    family = psutil.Process(state["pid"]).children(recursive=True)
    assert len(family) > len(PARTS)
    [scheduler] = [p for p in psutil.Process(state["pid"]).children() if "scheduler" in p.cmdline()]
    scheduler.kill()
    psutil.Process(state["pid"]).wait(60)
    assert alive(family) == []
    assert processes.of_stack(stack) == []
    told = (layout.logs / "supervisor.log").read_text()
    assert "StackFell: scheduler ended with signal SIGKILL" in told
    assert str(layout.logs / "scheduler.log") in told
    assert running(layout) is None
    assert set(json.loads(local(env, "status").stdout)["services"].values()) == {"down"}


@pytest.mark.parametrize("how", ["ctrl-c", "killed", "killed with its guard"])
def test_however_the_supervisor_ends_no_process_is_left(env: dict[str, str], layout: Layout, how: str) -> None:
    command = [sys.executable, "-m", "include.evergreen.local", "up", "--foreground"]
    supervisor = subprocess.Popen(
        command,
        env=env,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    assert supervisor.stdout is not None
    if how == "ctrl-c":
        assert supervisor.stdout.readline().startswith(b"ready")
    deadline = time.monotonic() + 60
    while (state := running(layout)) is None or len(processes.of_stack(state["id"])) < len(PARTS):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(supervisor.pid).children(recursive=True)
    if how == "killed with its guard":
        [guard] = [p for p in psutil.Process(supervisor.pid).children() if p.cmdline()[-1] == state["id"]]
        guard.kill()
    supervisor.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGKILL)
    assert supervisor.wait(60) == (130 if how == "ctrl-c" else -signal.SIGKILL)
    if how == "killed with its guard":
        assert processes.of_stack(state["id"])
        assert "killed supervisor had left" in local(env, "down").stdout
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    supervisor.stdout.close()
    assert alive(family) == []
    assert processes.of_stack(state["id"]) == []
