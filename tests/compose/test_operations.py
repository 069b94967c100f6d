"""What only containers show: users, doors, health, restarts, an end in order, volumes. The last tests stop them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import yaml

from include.evergreen.local.api import Api, ApiError
from include.evergreen.local.cluster import AIRFLOW
from include.evergreen.local.demo import MODEL
from include.evergreen.local.layout import LOOPBACK
from tests.compose import stand_ins
from tests.compose.conftest import COMPOSE, SERVERS, Containers, Outside
from tests.compose.engine import CommandFailed
from tests.outside import Rows, s3_client

SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
ROWS = {
    "flight_delay_current": "select * from flight_delay_current order by as_of, carrier, flight, origin",
    "ledger": "select * from ledger order by id",
    "champions": "select * from champions order by effective_from, version",
    "ingest_batches": "select * from ingest_batches order by table_name, partition_date",
}


def rows(outside: Outside) -> dict[str, Rows]:
    found = {name: outside.sql("mart", query) for name, query in ROWS.items()}
    query = "select name, version, alias from registered_model_aliases order by 1, 2, 3"
    found["aliases"] = outside.sql("mlflow", query)
    found["pools"] = outside.sql("airflow", "select pool, slots from slot_pool order by 1")
    assert all(found.values())
    return found


def started(containers: Containers) -> dict[str, tuple[str, str]]:
    """{service that runs on: (container, when it was started)}."""
    known = containers.ids()
    return {name: (known[name], containers.engine.inspect(known[name])["State"]["StartedAt"]) for name in SERVERS}


def test_the_override_changes_names_of_images_and_nothing_else() -> None:
    changed = stand_ins.override()
    assert set(changed) == {"services"}
    assert set(changed["services"]) == set(SERVICES)
    assert {key for service in changed["services"].values() for key in service} == {"image"}


def test_every_service_is_healthy_and_the_init_job_ended_well(outside: Outside) -> None:
    assert outside.containers.late() == {}
    assert set(outside.containers.ids()) == set(SERVICES)
    init = outside.containers.state("init")["State"]
    assert (init["Status"], init["ExitCode"]) == ("exited", 0)


@pytest.mark.parametrize("service", [*SERVERS, "init"])
def test_the_engine_has_the_policies_of_the_file(outside: Outside, service: str) -> None:
    host = outside.containers.state(service)["HostConfig"]
    assert host["RestartPolicy"]["Name"] == SERVICES[service]["restart"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["CapDrop"] == SERVICES[service].get("cap_drop")
    assert not host["Privileged"]
    assert not [bind for bind in host["Binds"] or [] if bind.startswith("/")], "no folder of the host"


@pytest.mark.parametrize("service", SERVERS)
def test_no_process_of_a_container_is_root(outside: Outside, service: str) -> None:
    container = outside.containers.ids()[service]
    lines = outside.containers.engine.docker("top", container, "-eo", "uid,pid,args").splitlines()[1:]
    assert lines
    assert [line for line in lines if line.split()[0] == "0"] == []
    for line in lines:
        status = open(f"/proc/{line.split()[1]}/status").read()  # noqa: SIM115
        assert "NoNewPrivs:\t1" in status, line
        assert "CapEff:\t0000000000000000" in status, line


def test_code_cannot_be_changed_by_who_runs_it(outside: Outside) -> None:
    for path in ("/opt/evergreen/dags/ingest.py", "/opt/evergreen/include/evergreen/specs.py"):
        with pytest.raises(CommandFailed, match=r"[Pp]ermission denied"):
            outside.containers.within("worker", "sh", "-c", f"echo >> {path}")


def test_only_the_ui_is_published_and_on_loopback(outside: Outside) -> None:
    published = {
        (name, inside, binding["HostIp"], binding["HostPort"])
        for name in SERVERS
        for inside, bindings in outside.containers.state(name)["NetworkSettings"]["Ports"].items()
        for binding in bindings or []
    }
    port = outside.containers.variables["EVERGREEN_PORT_UI"]
    assert published == {("api-server", "8080/tcp", LOOPBACK, port)}


@pytest.mark.parametrize("user", ["admin", "oncall", "analyst"])
def test_users_of_the_env_file_get_in_and_no_default_does(outside: Outside, user: str) -> None:
    with outside.api(user) as api:
        assert api.import_errors() == []
    with pytest.raises(ApiError, match=r"found 40[01]"):
        Api(outside.layout.ui_url, user, user).token()


def test_no_secret_is_in_a_log_or_a_command_line(outside: Outside) -> None:
    containers = outside.containers
    variables = containers.variables
    hidden = {name: value for name, value in variables.items() if name.endswith(("PASSWORD", "KEY", "SECRET"))}
    assert len(hidden) > 10
    logs = containers.compose("logs", "--no-color")
    assert "celery@" in logs
    lines = [containers.engine.docker("top", found) for name, found in containers.ids().items() if name != "init"]
    assert {name for name, value in hidden.items() for text in [logs, *lines] if value in text} == set()


def test_an_analysts_query_within_the_network(outside: Outside) -> None:
    """As a client in a container of its own would."""
    query = "select count(*) from flight_delay_current"
    said = outside.containers.within("postgres", "psql", "-XAt", "--username=postgres", "--dbname=mart", "-c", query)
    assert int(said) == outside.sql("mart", query)[0]["count"] > 1500


# --- these stop containers -------------------------------------------------------------------------------------------


def test_up_again_changes_nothing(outside: Outside) -> None:
    before, kept = started(outside.containers), rows(outside)
    outside.containers.start()
    outside.containers.wait_ready()
    assert started(outside.containers) == before
    assert rows(outside) == kept


@pytest.mark.parametrize("service", ["redis", "postgres", "worker"])
def test_a_killed_service_comes_back(outside: Outside, service: str) -> None:
    containers, kept = outside.containers, rows(outside)
    state = containers.state(service)
    os.kill(state["State"]["Pid"], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while containers.state(service)["RestartCount"] == state["RestartCount"]:
        assert time.monotonic() < deadline, f"{service} was not started again"
        time.sleep(0.5)
    containers.wait_ready()
    assert rows(outside) == kept


def test_all_end_by_themselves_and_down_and_up_keeps_all_data(outside: Outside) -> None:
    containers, kept = outside.containers, rows(outside)
    objects = {bucket: sorted(outside.keys(bucket)) for bucket in ("landing", "lake")}
    containers.compose("stop")
    states = {name: containers.state(name)["State"] for name in SERVERS}
    codes = {name: state["ExitCode"] for name, state in states.items()}
    assert {name: code for name, code in codes.items() if code not in (0, 143)} == {}, "137: killed; 1: lost a server"
    ended = {name: state["FinishedAt"][:19] for name, state in states.items()}
    stores = min(ended[name] for name in ("postgres", "object-store"))
    assert max(ended[name] for name in ("mlflow", *AIRFLOW)) <= stores
    containers.compose("down")
    assert containers.ids() == {}
    containers.start()
    containers.wait_ready()
    again = Outside(s3_client(containers.layout), outside.cache, containers, outside.said)
    assert rows(again) == kept
    assert {bucket: sorted(again.keys(bucket)) for bucket in ("landing", "lake")} == objects
    with again.api() as api:
        assert api.dag_runs(f"train__{MODEL}")
