"""Endpoints and credentials, resolved once and handed down.

Two resolvers, one shape: `Settings.from_env` for scripts and the embedded stack,
`orchestration.connections.settings` for tasks (from Airflow connections).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

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


class Settings(BaseModel):
    """Everything outside this process that the engine talks to.

    Attributes:
        object_store: landing files, lake tables, reports, artifacts.
        catalog_uri: SQLAlchemy URL of the Iceberg catalog.
        mart_uri: SQLAlchemy URL of the mart and the ledger.
        registry_uri: MLflow tracking and registry URI.
        ui_url: base URL of the Airflow UI, for links in logs and summaries.
    """

    model_config = ConfigDict(frozen=True)
    object_store: ObjectStoreSettings
    catalog_uri: SecretStr
    mart_uri: SecretStr
    registry_uri: SecretStr
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
        store = {
            field: env[name]
            for field, name in {
                "endpoint": "EVERGREEN_S3_ENDPOINT",
                "region": "EVERGREEN_S3_REGION",
                "access_key": "EVERGREEN_S3_ACCESS_KEY",
                "secret_key": "EVERGREEN_S3_SECRET_KEY",
                "landing_bucket": "EVERGREEN_LANDING_BUCKET",
                "lake_bucket": "EVERGREEN_LAKE_BUCKET",
            }.items()
            if env.get(name)
        }
        values: dict[str, object] = {field: env[name] for field, name in names.items()}
        if env.get("EVERGREEN_UI_URL"):
            values["ui_url"] = env["EVERGREEN_UI_URL"]
        try:
            return cls(object_store=ObjectStoreSettings.model_validate(store), **values)  # type: ignore[arg-type]
        except ValidationError as error:
            raise SettingsError(str(error)) from error
