"""deploy/helm/values.yaml: the deployment of docker-compose.yaml on the official chart.

Rendered by Helm where EVERGREEN_HELM_CHART names a folder with the chart, and `helm` is on the path or the package
helm-python-sdk is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from include.evergreen.local.layout import PROJECT
from include.evergreen.local.prepare import managed
from include.evergreen.orchestration.defaults import QUEUES

FILE = PROJECT / "deploy" / "helm" / "values.yaml"
VALUES: dict[str, Any] = yaml.safe_load(FILE.read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"]
IMAGE = f"{VALUES['defaultAirflowRepository']}:{VALUES['defaultAirflowTag']}"
CHART = os.environ.get("EVERGREEN_HELM_CHART")
KEYS = {
    "airflowLocalSettings",
    "airflowVersion",
    "apiSecretKeySecretName",
    "apiServer",
    "config",
    "createUserJob",
    "dagProcessor",
    "data",
    "defaultAirflowRepository",
    "defaultAirflowTag",
    "env",
    "executor",
    "extraEnvFrom",
    "fernetKeySecretName",
    "images",
    "ingress",
    "jwtSecretName",
    "migrateDatabaseJob",
    "postgresql",
    "redis",
    "scheduler",
    "statsd",
    "triggerer",
    "workers",
}
"""Of the chart's documented parameters, those used here: a key the chart does not know is ignored in silence."""


def variables() -> dict[str, str]:
    return {item["name"]: item["value"] for item in VALUES["env"]}


def test_only_known_parameters_are_set() -> None:
    assert set(VALUES) == KEYS


def test_versions_are_those_of_the_image() -> None:
    lock = (PROJECT / "requirements.txt").read_text()
    assert f"apache-airflow=={VALUES['airflowVersion']}\n" in lock
    assert IMAGE.split("/")[-1] == COMPOSE["scheduler"]["image"]


def test_folders_are_those_of_the_image() -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text()
    for name in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER"):
        assert f"{name}={variables()[name]}" in dockerfile


def test_guards_of_the_libraries_are_those_of_compose() -> None:
    theirs = COMPOSE["scheduler"]["environment"]
    guards = [name for name in theirs if name.startswith(("MLFLOW_", "GX_", "DO_NOT"))]
    assert len(guards) > 3
    assert {name: theirs[name] for name in guards} == {name: variables().get(name) for name in guards}


def test_no_secret_and_no_default_login_is_in_the_file() -> None:
    named = [VALUES["data"]["metadataSecretName"]]
    named += [VALUES[f"{name}SecretName"] for name in ("fernetKey", "apiSecretKey", "jwt")]
    assert all(name.startswith("evergreen-") for name in named)
    assert VALUES["createUserJob"]["defaultUser"]["enabled"] is False
    assert not [name for name in variables() if re.search("PASSWORD|SECRET|_KEY", name)]
    given = [*VALUES["apiServer"]["env"], *VALUES["migrateDatabaseJob"]["env"]]
    assert given and all(set(item) == {"name", "valueFrom"} for item in given)


def test_the_chart_starts_no_database_of_its_own() -> None:
    assert [VALUES[name] for name in ("postgresql", "redis")] == [{"enabled": False}] * 2


def test_the_init_job_is_ours() -> None:
    assert VALUES["migrateDatabaseJob"]["args"] == [*COMPOSE["init"]["command"][:3], managed.__name__]


def policy(kubernetes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`task_policy` of the file, with a stand-in for the client library's classes."""
    for name in ("kubernetes", "kubernetes.client"):
        monkeypatch.setitem(sys.modules, name, kubernetes)
    space: dict[str, Any] = {}
    exec(VALUES["airflowLocalSettings"], space)
    return space["task_policy"]


@pytest.mark.parametrize(("queue", "asked"), [(QUEUES["training"], True), ("default", False)])
def test_trainings_ask_for_more_than_other_tasks(queue: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    names = ("V1ResourceRequirements", "V1Container", "V1Pod", "V1PodSpec")
    models = SimpleNamespace(**dict.fromkeys(names, part))
    task = SimpleNamespace(queue=queue, executor_config={})
    policy(SimpleNamespace(models=models, client=SimpleNamespace(models=models)), monkeypatch)(task)
    if not asked:
        assert task.executor_config == {}
        return
    [container] = task.executor_config["pod_override"].spec.containers
    assert container.name == "base"
    assert int(container.resources.requests["cpu"]) > 1
    assert container.resources.requests["memory"] > VALUES["workers"]["resources"]["requests"]["memory"]


# --- rendered --------------------------------------------------------------------------------------------------------


def rendered(chart: str) -> str:
    """What Helm makes of the chart with our values."""
    if shutil.which("helm"):
        argv = ["helm", "template", "evergreen", chart, "--namespace", "evergreen", "--values", str(FILE)]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    library = pytest.importorskip("helm_python.chart", reason="no `helm` on the path and no helm-python-sdk")
    with library.Chart.load(chart) as loaded:
        found = loaded.render(VALUES, name="evergreen", namespace="evergreen")
    return "\n---\n".join(text for path, text in found.items() if path.endswith(".yaml"))


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    if not CHART:
        pytest.skip("EVERGREEN_HELM_CHART names no chart")
    return [document for document in yaml.safe_load_all(rendered(CHART)) if document]


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{name: pod's spec} of what runs on, of the migration job and of a task."""
    found = {
        m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in manifests if m["kind"] in {"Deployment", "Job"}
    }
    config = next(m["data"] for m in manifests if m["kind"] == "ConfigMap" and "airflow.cfg" in m["data"])
    found["task"] = yaml.safe_load(config["pod_template_file.yaml"])["spec"]
    return found


def test_the_parts_are_those_of_compose_without_workers(manifests: list[dict[str, Any]]) -> None:
    parts = {"api-server", "scheduler", "dag-processor", "triggerer", "run-airflow-migrations"}
    assert set(pods(manifests)) == {"task", *(f"evergreen-{part}" for part in parts)}


def test_every_pod_runs_our_image_as_its_user_with_the_connections(manifests: list[dict[str, Any]]) -> None:
    for name, pod in pods(manifests).items():
        assert pod["securityContext"]["runAsUser"] == 50000, name
        assert {container["image"] for container in pod["containers"]} == {IMAGE}, name
        main = pod["containers"][0]
        assert {"secretRef": {"name": "evergreen-connections"}} in main["envFrom"], name
        assert set(variables()) <= {item["name"] for item in main["env"]}, name


def test_the_chart_reads_our_secrets_and_makes_none_of_its_own(manifests: list[dict[str, Any]]) -> None:
    made = {m["metadata"]["name"] for m in manifests if m["kind"] == "Secret"}
    text = json.dumps(manifests)
    assert {"evergreen-metadata", "evergreen-keys", "evergreen-connections"} & made == set()
    used = set(re.findall(r'"secretKeyRef": \{[^}]*"name": "([^"]+)"', text))
    assert used == {"evergreen-metadata", "evergreen-keys", "evergreen-init", "evergreen-oidc"}


def test_the_configuration_is_as_said(manifests: list[dict[str, Any]]) -> None:
    config = next(m["data"] for m in manifests if m["kind"] == "ConfigMap" and "airflow.cfg" in m["data"])
    for section, options in VALUES["config"].items():
        for option, value in options.items():
            assert f"{option} = {value}" in config["airflow.cfg"], section
    assert config["airflow_local_settings.py"].strip() == VALUES["airflowLocalSettings"].strip()
    texts = [m["data"].get("webserver_config.py") for m in manifests if m["kind"] == "ConfigMap"]
    assert [text.strip() for text in texts if text] == [VALUES["apiServer"]["apiServerConfig"].strip()]


def test_tasks_have_resources_and_the_workers_account(manifests: list[dict[str, Any]]) -> None:
    task = pods(manifests)["task"]
    assert task["serviceAccountName"] == VALUES["workers"]["serviceAccount"]["name"]
    assert task["containers"][0]["resources"] == VALUES["workers"]["resources"]
    assert task["containers"][0]["name"] == "base"
