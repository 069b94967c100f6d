"""Settings from Airflow connections, inside a task or a trigger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from include.evergreen.errors import SettingsError
from include.evergreen.orchestration.settings_file import expand
from include.evergreen.platform import Platform
from include.evergreen.settings import DaskSettings, ObjectStoreSettings, Settings

LAKE, CATALOG, MART, REGISTRY = "lake_s3", "catalog_db", "mart_db", "mlflow"
DASK = "evergreen_dask"
"""Only models with `compute: dask` need it."""
UI_URL = "evergreen_ui_url"
HINT = "load airflow_settings.yaml"


class ConnectionLike(Protocol):
    """What is read of an Airflow connection."""

    login: str | None
    password: str | None

    @property
    def extra_dejson(self) -> dict[str, Any]: ...


def resolve(connections: Mapping[str, ConnectionLike], ui_url: str, environment: Mapping[str, str]) -> Settings:
    """Settings from the four connections, and Dask's where it is defined, with their placeholders expanded.

    Raises:
        SettingsError: names the connection and the field or variable that is missing.
    """
    lake = connections[LAKE]
    extra: dict[str, str] = expand(lake.extra_dejson, environment, f"connection {LAKE}")
    store = {
        "endpoint": extra.get("endpoint_url"),
        "region": extra.get("region_name"),
        "access_key": expand(lake.login, environment, f"connection {LAKE}.login"),
        "secret_key": expand(lake.password, environment, f"connection {LAKE}.password"),
        "landing_bucket": extra.get("landing_bucket"),
        "lake_bucket": extra.get("lake_bucket"),
    }
    values: dict[str, Any] = {}
    for name, field in ((CATALOG, "catalog_uri"), (MART, "mart_uri"), (REGISTRY, "registry_uri")):
        found = connections[name].extra_dejson.get("connection_string")
        if not found:
            raise SettingsError(f"connection {name}: expected connection_string in its extra, found none: {HINT}")
        values[field] = expand(found, environment, f"connection {name}.connection_string")
    if DASK in connections:
        dask = expand(connections[DASK].extra_dejson, environment, f"connection {DASK}")
        values["dask"] = DaskSettings.of(dask, f"connection {DASK}")
    return Settings(
        object_store=ObjectStoreSettings.model_validate({key: value for key, value in store.items() if value}),
        ui_url=expand(ui_url, environment, f"variable {UI_URL}"),
        **values,
    )


def settings() -> Settings:
    """Settings of this Airflow; what was expanded is masked in task logs from here on.

    Raises:
        SettingsError: a connection is not defined, or a variable it names is not set.
    """
    from airflow.sdk import Connection, Variable
    from airflow.sdk.exceptions import AirflowNotFoundException
    from airflow.sdk.log import mask_secret

    found: dict[str, ConnectionLike] = {}
    for name in (LAKE, CATALOG, MART, REGISTRY, DASK):
        try:
            found[name] = Connection.get(name)
        except AirflowNotFoundException as error:
            if name == DASK:
                continue
            raise SettingsError(f"connection {name}: expected it to be defined, found none: {HINT}") from error
    resolved = resolve(found, Variable.get(UI_URL, default=Settings.model_fields["ui_url"].default), os.environ)
    if resolved.object_store.secret_key:
        mask_secret(resolved.object_store.secret_key.get_secret_value())
    for uri in (resolved.catalog_uri, resolved.mart_uri, resolved.registry_uri):
        mask_secret(uri.get_secret_value())
    return resolved


@cache
def platform() -> Platform:
    """The platform of this process."""
    return Platform(settings())
