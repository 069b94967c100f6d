"""`airflow_settings.yaml`: read, expand, load into a running Airflow or export for its CLI.

    python -m include.evergreen.orchestration.settings_file export DIR [--expand]

writes connections.json, pools.json and variables.json for `airflow connections|pools|variables import`.
Placeholders stay as they are unless `--expand`: `connections.settings` expands them where they are used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from include.evergreen.errors import SettingsError

if TYPE_CHECKING:
    from include.evergreen.local.api import Api

DEFAULT = Path(__file__).resolve().parents[3] / "airflow_settings.yaml"
PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
CONNECTION_FIELDS = {
    "conn_type": "conn_type",
    "conn_host": "host",
    "conn_schema": "schema",
    "conn_login": "login",
    "conn_password": "password",
    "conn_port": "port",
    "conn_extra": "extra",
}
"""The file's names -> Airflow's."""


@dataclass(frozen=True)
class SettingsFile:
    """What the file declares.

    Attributes:
        connections: id -> conn_type, host, schema, login, password, port, extra (a dict).
        pools: name -> slots, description.
        variables: name -> value.
    """

    connections: dict[str, dict[str, Any]]
    pools: dict[str, dict[str, Any]]
    variables: dict[str, str]


def expand(value: Any, environment: Mapping[str, str], where: str) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in a string, or in the strings of a dict or list.

    Raises:
        SettingsError: names `where` and the variable that is not set.
    """
    if isinstance(value, dict):
        return {key: expand(item, environment, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environment, where) for item in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, default = match.groups()
        text = environment.get(name) or default
        if text is None:
            raise SettingsError(f"{where}: expected the environment variable {name}, found it unset or empty")
        return text

    return PLACEHOLDER.sub(found, value)


def read(path: Path = DEFAULT, environment: Mapping[str, str] | None = None) -> SettingsFile:
    """Read the file; with an environment, expand its placeholders.

    Raises:
        SettingsError: names file, entry and field.
    """
    try:
        top = yaml.safe_load(path.read_text(encoding="utf-8"))
        airflow = top["airflow"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: expected YAML with the key 'airflow', found {error!r}") from error
    file = SettingsFile(
        connections=dict(_connection(path, entry) for entry in airflow.get("connections") or []),
        pools=dict(_pool(path, entry) for entry in airflow.get("pools") or []),
        variables={
            _field(path, e, "variable_name"): str(_field(path, e, "variable_value"))
            for e in airflow.get("variables") or []
        },
    )
    if environment is None:
        return file
    return SettingsFile(
        connections={k: expand(v, environment, f"{path.name}: connection {k}") for k, v in file.connections.items()},
        pools=file.pools,
        variables={k: expand(v, environment, f"{path.name}: variable {k}") for k, v in file.variables.items()},
    )


def _field(path: Path, entry: dict[str, Any], name: str) -> Any:
    if not isinstance(entry, dict) or entry.get(name) in (None, ""):
        raise SettingsError(f"{path}: expected {name} in every entry of its list, found {entry!r}")
    return entry[name]


def _connection(path: Path, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name = str(_field(path, entry, "conn_id"))
    given = {key: value for key, value in entry.items() if key != "conn_id" and value not in (None, "")}
    if unknown := sorted(set(given) - set(CONNECTION_FIELDS)):
        raise SettingsError(f"{path}: connection {name}: expected {sorted(CONNECTION_FIELDS)}, found {unknown}")
    _field(path, entry, "conn_type")
    connection = {CONNECTION_FIELDS[key]: value for key, value in given.items()}
    extra = connection.get("extra", {})
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except ValueError as error:
            raise SettingsError(
                f"{path}: connection {name}: conn_extra: expected a JSON object, found {error}"
            ) from error
    if not isinstance(extra, dict):
        raise SettingsError(f"{path}: connection {name}: conn_extra: expected a JSON object, found {extra!r}")
    return name, {**connection, "extra": extra}


def _pool(path: Path, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name, slots = str(_field(path, entry, "pool_name")), _field(path, entry, "pool_slot")
    if not isinstance(slots, int) or slots < 1:
        raise SettingsError(f"{path}: pool {name}: pool_slot: expected a whole number above 0, found {slots!r}")
    return name, {"slots": slots, "description": entry.get("pool_description") or ""}


def load(api: Api, file: SettingsFile) -> None:
    """Create or overwrite every connection, pool and variable of a running Airflow. Idempotent. Raises ApiError."""
    connections = [
        {"connection_id": name, **value, "extra": json.dumps(value["extra"])}
        for name, value in file.connections.items()
    ]
    variables = [{"key": name, "value": value} for name, value in file.variables.items()]
    pools = [{"name": name, **value} for name, value in file.pools.items()]
    for path, entities in (("/connections", connections), ("/pools", pools), ("/variables", variables)):
        if entities:
            action = {"action": "create", "entities": entities, "action_on_existence": "overwrite"}
            errors = api.request("PATCH", path, {"actions": [action]}).get("create", {}).get("errors")
            if errors:
                raise SettingsError(f"{path}: expected Airflow to take every entry, found {errors}")


def export(folder: Path, file: SettingsFile) -> list[Path]:
    """Write the three files of `airflow connections|pools|variables import`, readable by their owner only."""
    folder.mkdir(parents=True, exist_ok=True)
    connections = {name: {**value, "extra": json.dumps(value["extra"])} for name, value in file.connections.items()}
    written = []
    for name, content in (("connections", connections), ("pools", file.pools), ("variables", file.variables)):
        path = folder / f"{name}.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        written.append(path)
    return written


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description="airflow_settings.yaml for Airflow's CLI")
    parser.add_argument("action", choices=["export"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--file", type=Path, default=DEFAULT)
    parser.add_argument("--expand", action="store_true", help="replace placeholders by values of this environment")
    arguments = parser.parse_args(argv)
    for path in export(arguments.folder, read(arguments.file, os.environ if arguments.expand else None)):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
