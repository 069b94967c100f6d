from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from include.evergreen.errors import SettingsError
from include.evergreen.local.layout import LOW_DISK, PORTS, PROJECT, Layout, environment, full_disk
from include.evergreen.settings import Settings


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.from_env({"EVERGREEN_VAR": str(tmp_path / "var")})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_defaults_lie_in_the_project() -> None:
    layout = Layout.from_env({})
    assert layout.var == PROJECT / "var"
    assert layout.dags == PROJECT / "dags"
    assert layout.ports == {name: default for name, (_, default) in PORTS.items()}


def test_each_port_has_its_variable(tmp_path: Path) -> None:
    changed = {variable: str(20000 + i) for i, (variable, _) in enumerate(PORTS.values())}
    assert sorted(Layout.from_env(changed).ports.values()) == sorted(int(port) for port in changed.values())


@pytest.mark.parametrize(("models", "seconds"), [(0, 60), (60, 60), (61, 61), (300, 300)])
def test_many_models_are_looked_at_less_often(layout: Layout, tmp_path: Path, models: int, seconds: int) -> None:
    for number in range(models):
        path = tmp_path / f"include/models/model_{number}/model.yaml"
        path.parent.mkdir(parents=True)
        path.touch()
    found = environment(replace(layout, project=tmp_path))
    assert found["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"] == str(seconds)
    assert int(found["AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD"]) > seconds, "no DAG is stale between two looks"


@pytest.mark.parametrize("value", ["0", "65536", "http", "-1", "80 80"])
def test_a_port_that_is_none_names_its_variable(value: str) -> None:
    with pytest.raises(SettingsError, match=r"EVERGREEN_PORT_S3.*1 to 65535"):
        Layout.from_env({"EVERGREEN_PORT_S3": value})


def test_two_parts_cannot_share_a_port() -> None:
    with pytest.raises(SettingsError, match=r"EVERGREEN_PORT_S3.*EVERGREEN_PORT_UI"):
        Layout.from_env({"EVERGREEN_PORT_S3": "8080"})


def test_secrets_are_made_once_and_private(layout: Layout) -> None:
    first = layout.secrets
    again = Layout(layout.var, layout.ports).secrets
    assert first == again
    assert mode(layout.var / "secrets.json") == 0o600
    assert mode(layout.var) == 0o700
    assert [p.name for p in layout.var.iterdir() if p.name.startswith(".secrets")] == []


def test_secrets_differ_between_installations(tmp_path: Path) -> None:
    one, two = (Layout(tmp_path / name, {}).secrets for name in ("one", "two"))
    values = [json.loads((tmp_path / name / "secrets.json").read_text()) for name in ("one", "two")]
    assert one != two
    assert all(values[0][key] != values[1][key] for key in values[0])


def test_secrets_are_not_in_their_repr(layout: Layout) -> None:
    found = layout.secrets
    assert found.s3_secret_key not in repr(found)
    assert found.admin_password not in repr(found)


def test_a_wider_mode_is_narrowed(layout: Layout) -> None:
    _ = layout.secrets
    (layout.var / "secrets.json").chmod(0o644)
    _ = Layout(layout.var, layout.ports).secrets
    assert mode(layout.var / "secrets.json") == 0o600


@pytest.mark.parametrize("text", ["{", "[]", '{"s3_access_key": "a"}'])
def test_damaged_secrets_name_the_file(layout: Layout, text: str) -> None:
    layout.make_folders()
    (layout.var / "secrets.json").write_text(text)
    with pytest.raises(SettingsError, match=r"secrets\.json"):
        _ = layout.secrets


def test_the_environment_resolves_to_settings_on_loopback(layout: Layout) -> None:
    found = Settings.from_env(environment(layout))
    assert found.object_store.endpoint == f"http://127.0.0.1:{layout.ports['s3']}"
    assert found.mart_uri.get_secret_value() == f"sqlite:///{layout.mart_db}"
    assert found.mart_uri.get_secret_value().startswith("sqlite:////")
    assert found.ui_url == layout.ui_url


def test_every_part_of_the_environment_listens_on_loopback(layout: Layout) -> None:
    found = environment(layout)
    hosts = {name: value for name, value in found.items() if name.endswith("_HOST")}
    assert hosts == dict.fromkeys(
        ("AIRFLOW__API__HOST", "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST"), "127.0.0.1"
    )


def test_the_environment_keeps_the_callers_path_and_proxy_exceptions(layout: Layout) -> None:
    found = environment(layout, {"PATH": "/opt/bin", "NO_PROXY": "example.org"})
    assert found["PATH"].split(os.pathsep)[-1] == "/opt/bin"
    assert found["NO_PROXY"] == "example.org,localhost,127.0.0.1"


def test_nothing_reports_usage(layout: Layout) -> None:
    found = environment(layout)
    assert found["DO_NOT_TRACK"] == found["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found["GX_ANALYTICS_ENABLED"] == "false"


def test_a_disk_is_full_below_a_bound_and_the_sentence_names_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free[path]))
    free[layout.var] = LOW_DISK
    assert full_disk(layout.var) == ""
    free[layout.var] = 2**20 * 3 // 2
    assert full_disk(layout.var).startswith(
        f"the disk is full: expected at least 64 MB free on the disk of {layout.var}, found 1.5 MB"
    )
    monkeypatch.undo()
    assert full_disk(layout.var / "is not there") == ""
