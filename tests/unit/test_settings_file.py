from __future__ import annotations

import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from include.evergreen.errors import SettingsError
from include.evergreen.local.layout import Layout, environment
from include.evergreen.orchestration import settings_file
from include.evergreen.orchestration.connections import resolve
from include.evergreen.orchestration.settings_file import DEFAULT, expand, export, main, read
from include.evergreen.settings import Settings

URL = "postgresql+psycopg2://evergreen:p%40ss%2Fw:rd@db.example.org:5432/mart?sslmode=require&application_name=a%20b"
ENV = {
    "EVERGREEN_S3_ACCESS_KEY": "key",
    "EVERGREEN_S3_SECRET_KEY": 'se"cr\\et',
    "EVERGREEN_S3_ENDPOINT": "http://127.0.0.1:9000",
    "EVERGREEN_CATALOG_URI": "sqlite:////var/catalog.db",
    "EVERGREEN_MART_URI": URL,
    "EVERGREEN_REGISTRY_URI": "sqlite:////var/mlflow.db",
}


@dataclass
class Given:
    """A connection as Airflow hands it over."""

    login: str | None = None
    password: str | None = None
    extra_dejson: dict[str, Any] = field(default_factory=dict)


def given(file: settings_file.SettingsFile) -> dict[str, Given]:
    return {k: Given(c.get("login"), c.get("password"), c["extra"]) for k, c in file.connections.items()}


def write(folder: Path, text: str) -> Path:
    path = folder / "airflow_settings.yaml"
    path.write_text(text)
    return path


# --- the project's own file ------------------------------------------------------------------------------------------


def test_the_projects_file_declares_what_the_engine_reads() -> None:
    file = read()
    assert set(file.connections) == {"lake_s3", "catalog_db", "mart_db", "mlflow", "evergreen_dask"}
    assert file.pools["training"]["slots"] == 1
    assert {"ingest", "scoring"} < set(file.pools)


def test_the_projects_file_holds_no_secret() -> None:
    file = read()
    values = [file.connections["lake_s3"]["login"], file.connections["lake_s3"]["password"]]
    values += [file.connections[name]["extra"]["connection_string"] for name in ("catalog_db", "mart_db", "mlflow")]
    assert all(settings_file.PLACEHOLDER.fullmatch(value) for value in values)


def test_the_embedded_stack_sets_every_variable_of_the_projects_file(tmp_path: Path) -> None:
    env = environment(Layout.from_env({"EVERGREEN_VAR": str(tmp_path)}))
    assert "${" not in json.dumps(read(environment=env).connections)
    assert resolve(given(read()), "${EVERGREEN_UI_URL}", env) == Settings.from_env(env)


@pytest.mark.parametrize("expanded", [True, False])
def test_urls_and_odd_characters_survive_whether_loaded_expanded_or_not(expanded: bool) -> None:
    found = resolve(given(read(environment=ENV if expanded else None)), "http://ui", ENV)
    assert found.mart_uri.get_secret_value() == URL
    assert found.object_store.secret_key is not None
    assert found.object_store.secret_key.get_secret_value() == 'se"cr\\et'
    assert found.object_store.region == "us-east-1"


def test_a_missing_variable_names_itself_and_its_connection() -> None:
    env = {name: value for name, value in ENV.items() if name != "EVERGREEN_MART_URI"}
    with pytest.raises(SettingsError, match=r"mart_db.*EVERGREEN_MART_URI"):
        resolve(given(read()), "http://ui", env)
    with pytest.raises(SettingsError, match=r"mart_db.*EVERGREEN_MART_URI"):
        read(environment=env)


def test_a_connection_without_its_url_is_named() -> None:
    connections = {**given(read()), "mlflow": Given()}
    with pytest.raises(SettingsError, match=r"mlflow.*connection_string"):
        resolve(connections, "http://ui", ENV)


def test_aws_itself_needs_no_endpoint_and_no_keys() -> None:
    connections = {**given(read()), "lake_s3": Given(extra_dejson={"region_name": "eu-west-1"})}
    found = resolve(connections, "http://ui", ENV).object_store
    assert (found.endpoint, found.region, found.access_key, found.secret_key) == (None, "eu-west-1", None, None)


# --- expanding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain $A {A}", "plain $A {A}"),
        ("${A}", "1"),
        ("x${A}y${B:-2}z", "x1y2z"),
        ("${B:-}", ""),
        ("${A:-9}", "1"),
        ("${EMPTY:-9}", "9"),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "EMPTY": ""}, "here") == expected


def test_a_value_is_not_expanded_twice() -> None:
    assert expand("${A}", {"A": "${B}", "B": "no"}, "here") == "${B}"


@pytest.mark.parametrize("env", [{}, {"A": ""}])
def test_an_unset_or_empty_variable_is_an_error(env: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"here\.k: expected the environment variable A"):
        expand({"k": ["${A}"]}, env, "here")


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "airflow"),
        ("airflow: [", "YAML"),
        ("airflow: {connections: [{conn_type: aws}]}", "conn_id"),
        ("airflow: {connections: [{conn_id: a}]}", "conn_type"),
        ("airflow: {connections: [{conn_id: a, conn_type: aws, host: b}]}", "connection a.*host"),
        ("airflow: {connections: [{conn_id: a, conn_type: aws, conn_uri: 'x://'}]}", "connection a.*conn_uri"),
        ("airflow: {connections: [{conn_id: a, conn_type: aws, conn_extra: '{'}]}", "connection a.*conn_extra"),
        ("airflow: {connections: [{conn_id: a, conn_type: aws, conn_extra: '[1]'}]}", "connection a.*conn_extra"),
        ("airflow: {pools: [{pool_name: p, pool_slot: many}]}", "pool p.*many"),
        ("airflow: {pools: [{pool_name: p}]}", "pool_slot"),
        ("airflow: {variables: [{variable_name: v}]}", "variable_value"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        read(tmp_path / "nowhere.yaml")


def test_empty_fields_of_the_astro_template_are_ignored(tmp_path: Path) -> None:
    text = "airflow: {connections: [{conn_id: a, conn_type: aws, conn_uri: '', conn_port: }], pools: , variables: }"
    assert read(write(tmp_path, text)).connections == {"a": {"conn_type": "aws", "extra": {}}}


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_keeps_placeholders_and_is_private(tmp_path: Path) -> None:
    assert main(["export", str(tmp_path / "out")]) == 0
    connections = json.loads((tmp_path / "out" / "connections.json").read_text())
    assert json.loads(connections["mart_db"]["extra"]) == {"connection_string": "${EVERGREEN_MART_URI}"}
    assert json.loads((tmp_path / "out" / "pools.json").read_text())["training"]["slots"] == 1
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "out").iterdir())


def test_export_can_expand(tmp_path: Path) -> None:
    export(tmp_path, read(DEFAULT, ENV))
    connections = json.loads((tmp_path / "connections.json").read_text())
    assert json.loads(connections["mart_db"]["extra"]) == {"connection_string": URL}
