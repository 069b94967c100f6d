"""Endpoints and credentials, resolved once and handed down.

Two resolvers, one shape: `Settings.from_env` for scripts and the embedded stack,
`orchestration.connections.settings` for tasks (from Airflow connections).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from include.evergreen.errors import SettingsError


class Timeouts(BaseModel):
    """Seconds and tries for every client: a dead or silent dependency fails a step within 15 s.

    `read` is the longest pause in an answer or an upload, not the length of a transfer: what is slow and alive works.
    """

    model_config = ConfigDict(frozen=True)
    connect: float = 3.0
    read: float = 4.0
    tries: int = 2


class ObjectStoreSettings(BaseModel):
    """An S3 endpoint. `endpoint=None` is AWS itself."""

    model_config = ConfigDict(frozen=True)
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    landing_bucket: str = "landing"
    lake_bucket: str = "lake"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> ObjectStoreSettings:
        """Read `EVERGREEN_S3_*` and the buckets."""
        env = os.environ if env is None else env
        names = {
            "endpoint": "EVERGREEN_S3_ENDPOINT",
            "region": "EVERGREEN_S3_REGION",
            "access_key": "EVERGREEN_S3_ACCESS_KEY",
            "secret_key": "EVERGREEN_S3_SECRET_KEY",
            "landing_bucket": "EVERGREEN_LANDING_BUCKET",
            "lake_bucket": "EVERGREEN_LAKE_BUCKET",
        }
        return cls.model_validate({field: env[name] for field, name in names.items() if env.get(name)})


class DaskSettings(BaseModel):
    """A Dask scheduler. `tls://` needs the three files, PEM on every machine that runs tasks."""

    model_config = ConfigDict(frozen=True)
    address: Annotated[str, Field(pattern=r"^(tcp|tls)://[^\s/@]+:\d+$")]
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> DaskSettings:
        missing = [name for name in ("ca_file", "cert_file", "key_file") if not getattr(self, name)]
        if self.address.startswith("tls://") and missing:
            raise ValueError(f"tls:// needs {', '.join(missing)}")
        return self

    @classmethod
    def of(cls, given: Mapping[str, str | None], where: str) -> DaskSettings | None:
        """From its fields; None without an address. Raises SettingsError, which names `where`."""
        if not given.get("address"):
            return None
        try:
            return cls.model_validate({name: value for name, value in given.items() if value})
        except ValidationError as error:
            found = error.errors()[0]
            field = ".".join(map(str, found["loc"])) or "address"
            raise SettingsError(
                f"{where}: {field}: expected tcp://host:port, or tls://host:port with ca_file, cert_file and key_file: "
                f"{found['msg']}"
            ) from error


class Settings(BaseModel):
    """Everything outside this process that the engine talks to.

    Attributes:
        object_store: landing files, lake tables, reports, artifacts.
        catalog_uri: SQLAlchemy URL of the Iceberg catalog.
        mart_uri: SQLAlchemy URL of the mart and the ledger.
        registry_uri: MLflow tracking and registry URI.
        dask: scheduler of the models with `compute: dask`; None without one.
        ui_url: base URL of the Airflow UI, for links in logs and summaries.
    """

    model_config = ConfigDict(frozen=True)
    object_store: ObjectStoreSettings
    catalog_uri: SecretStr
    mart_uri: SecretStr
    registry_uri: SecretStr
    dask: DaskSettings | None = None
    ui_url: str = "http://127.0.0.1:8080"
    timeouts: Timeouts = Field(default_factory=Timeouts)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read `EVERGREEN_*` variables.

        Raises:
            SettingsError: a variable is missing; the message lists all of them.
        """
        env = os.environ if env is None else env
        names = {
            "catalog_uri": "EVERGREEN_CATALOG_URI",
            "mart_uri": "EVERGREEN_MART_URI",
            "registry_uri": "EVERGREEN_REGISTRY_URI",
        }
        missing = [name for name in names.values() if not env.get(name)]
        if missing:
            raise SettingsError(f"expected the variables {', '.join(missing)}; found none. `make up` sets them.")
        values: dict[str, object] = {field: env[name] for field, name in names.items()}
        if env.get("EVERGREEN_UI_URL"):
            values["ui_url"] = env["EVERGREEN_UI_URL"]
        dask = {
            "address": env.get("EVERGREEN_DASK_ADDRESS"),
            "ca_file": env.get("EVERGREEN_DASK_CA_FILE"),
            "cert_file": env.get("EVERGREEN_DASK_CERT_FILE"),
            "key_file": env.get("EVERGREEN_DASK_KEY_FILE"),
        }
        values["dask"] = DaskSettings.of(dask, "EVERGREEN_DASK_ADDRESS")
        try:
            return cls(object_store=ObjectStoreSettings.from_env(env), **values)  # type: ignore[arg-type]
        except ValidationError as error:
            raise SettingsError(str(error)) from error
