"""What docker-compose.yaml promises, read from the file: queues, order of start, health, doors, secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.evergreen.errors import SettingsError
from include.evergreen.local import dotenv
from include.evergreen.local.cluster import AIRFLOW, WORKERS, Cluster, interpolate
from include.evergreen.local.layout import CLUSTER_PORTS, LOOPBACK, PROJECT, Layout
from include.evergreen.orchestration.defaults import POOL_TRAINING, QUEUES, default_args

COMPOSE = PROJECT / "docker-compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
ONCE = {"init"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(Cluster.layout_of({"EVERGREEN_VAR": str(tmp_path / "var")}))


def queues_of(service: str) -> set[str]:
    command = SERVICES[service]["command"]
    return set(command[command.index("--queues") + 1].split(","))


def test_the_services_are_those_of_the_deployment() -> None:
    assert set(SERVICES) == {"postgres", "redis", "object-store", "mlflow", "init", *AIRFLOW}


def test_each_queue_has_a_worker_of_its_own() -> None:
    default = SERVICES["scheduler"]["environment"]["AIRFLOW__OPERATORS__DEFAULT_QUEUE"]
    served = [queues_of(worker) for worker in WORKERS]
    assert served == [{default}, set(QUEUES.values())]


def test_tasks_of_the_training_pool_go_to_its_queue_and_others_name_none() -> None:
    assert default_args("somebody", POOL_TRAINING)["queue"] == QUEUES[POOL_TRAINING]
    assert all("queue" not in default_args("somebody", pool) for pool in ("ingest", "scoring", None))


def test_the_image_is_pinned_unprivileged_and_installs_before_it_copies_code() -> None:
    lines = (PROJECT / "Dockerfile").read_text().splitlines()
    bases = [line for line in lines if line.startswith(("FROM ", "ARG BASE"))]
    assert bases == ["ARG BASE=python:3.11.15-slim-bookworm", "FROM ${BASE}"]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1].split(":")[0] not in {"root", "0"}
    installs = next(i for i, line in enumerate(lines) if "uv pip install" in line)
    copies = {line.split()[-2]: i for i, line in enumerate(lines) if line.startswith("COPY ")}
    assert copies.pop("requirements-cluster.txt") < installs < min(copies.values())


def test_what_runs_on_is_watched_and_restarted_and_the_init_job_ends() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert ("healthcheck" in service) == (name not in ONCE), name
    for name, service in SERVICES.items():
        if "healthcheck" in service:
            assert service["healthcheck"]["retries"] >= 3, name


def test_waits_are_for_services_that_answer_or_jobs_that_ended() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": expected}, (name, other)


def test_nothing_of_airflow_starts_before_the_init_job_ended() -> None:
    assert [name for name in (*AIRFLOW, "mlflow") if "init" not in SERVICES[name]["depends_on"]] == []
    assert set(SERVICES["init"]["depends_on"]) == {"postgres", "object-store"}


def test_stores_are_stopped_after_those_that_use_them() -> None:
    """Not by way of `init`: compose 1.29 does not follow a container that has ended."""
    for name in (*AIRFLOW, "mlflow"):
        assert {"postgres", "object-store"} <= set(SERVICES[name]["depends_on"]), name
    assert "redis" in SERVICES["scheduler"]["depends_on"]
    assert {"redis", "mlflow", "api-server"} <= set(SERVICES["worker"]["depends_on"])


def test_no_service_is_privileged_and_all_but_the_object_store_drop_every_capability() -> None:
    for name, service in SERVICES.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged") and "network_mode" not in service, name
    assert [name for name, service in SERVICES.items() if service.get("cap_drop") != ["ALL"]] == ["object-store"]


def test_redis_is_the_process_that_is_asked_to_end() -> None:
    """A shell as a container's first process ignores SIGTERM: its children are killed ten seconds later."""
    [script] = SERVICES["redis"]["command"]
    assert script.startswith("exec redis-server - <<")


def test_state_is_in_named_volumes() -> None:
    declared = set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    mounted = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert mounted == declared
    for name in ("postgres", "redis", "object-store"):
        assert SERVICES[name]["volumes"], name


def test_no_secret_is_in_a_command() -> None:
    secrets = {name for name in dotenv.read(dotenv.EXAMPLE) if re.search("PASSWORD|KEY|SECRET", name)}
    for name, service in SERVICES.items():
        said = " ".join(map(str, [service.get("command"), service.get("entrypoint"), service.get("healthcheck")]))
        assert not [secret for secret in secrets if f"${{{secret}" in said], name


def test_each_service_knows_only_its_own_secrets() -> None:
    """The administrator of PostgreSQL is known to the server and to the job that makes roles; logins to that job."""

    def knowing(variable: str) -> set[str]:
        return {name for name, service in SERVICES.items() if f"${{{variable}" in str(service.get("environment"))}

    assert knowing("POSTGRES_PASSWORD") == {"postgres", "init"}
    assert knowing("EVERGREEN_ADMIN_PASSWORD") == knowing("EVERGREEN_ANALYST_PASSWORD") == {"init"}
    assert knowing("MLFLOW_DB_PASSWORD") == {"mlflow", "init"}
    assert knowing("AIRFLOW_DB_PASSWORD") == {"init", *AIRFLOW}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A:?needed}", "1"),
        ("x${B:-two}y", "xtwoy"),
        ("${EMPTY:-two}", "two"),
        ("${NONE:-[]}", "[]"),
        ("${NONE:-}", ""),
        ("$$A", "$A"),
        (["${A:?needed}", 7], ["1", 7]),
    ],
)
def test_variables_of_compose_are_resolved(text: Any, expected: Any) -> None:
    assert interpolate(text, {"A": "1", "EMPTY": ""}) == expected


@pytest.mark.parametrize("given", [{}, {"A": ""}])
def test_a_needed_variable_without_a_value_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="A: expected a value, found none: run make env"):
        interpolate({"x": ["${A:?run make env}"]}, given)


@pytest.mark.parametrize("service", ["mlflow", "init", *AIRFLOW])
def test_as_a_process_a_service_has_all_of_composes_variables_and_only_local_addresses(
    cluster: Cluster, service: str
) -> None:
    found = cluster._environment_of(service)
    assert set(SERVICES[service]["environment"]) <= set(found)
    text = " ".join([*found.values(), *cluster.command_of(service)])
    assert not re.search(r"\$\{|0\.0\.0\.0|@(postgres|redis):|http://[a-z]|=mlflow:", text)
    assert "sqlite" not in text.replace("sqlalchemy.dialects.sqlite", "")
    ports = set(map(int, re.findall(rf"{LOOPBACK}:(\d+)", text)))
    assert ports <= set(cluster.layout.ports.values())


def test_the_workers_of_one_host_have_names_and_load_their_libraries_first(cluster: Cluster) -> None:
    nodes = {
        cluster.command_of(worker)[cluster.command_of(worker).index("--celery-hostname") + 1] for worker in WORKERS
    }
    assert len(nodes) == len(WORKERS)
    for worker in WORKERS:
        config = cluster._environment_of(worker)["AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS"]
        assert config == "include.evergreen.orchestration.celery_worker.CONFIG"


def test_a_cluster_keeps_its_secrets(tmp_path: Path) -> None:
    layout = Cluster.layout_of({"EVERGREEN_VAR": str(tmp_path / "var")})
    first, second = Cluster(layout), Cluster(Layout(layout.var, layout.ports))
    assert first.variables == second.variables
    assert first.layout.secrets == second.layout.secrets
    assert first.layout.secrets.s3_secret_key == first.variables["EVERGREEN_S3_SECRET_KEY"]


def test_each_port_of_the_cluster_has_its_variable(tmp_path: Path) -> None:
    changed = {variable: str(20000 + i) for i, (variable, _) in enumerate(CLUSTER_PORTS.values())}
    layout = Cluster.layout_of({**changed, "EVERGREEN_VAR": str(tmp_path)})
    assert layout.ports == {name: 20000 + i for i, name in enumerate(CLUSTER_PORTS)}
    with pytest.raises(SettingsError, match=r"EVERGREEN_PORT_REDIS.*EVERGREEN_PORT_POSTGRES"):
        Cluster.layout_of({"EVERGREEN_PORT_REDIS": "15432"})
