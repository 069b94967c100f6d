"""The registry on MLflow: runs, versions and aliases there; the bytes on S3 under our own checksums and timeouts."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from include.evergreen.errors import NotFound, Unavailable
from include.evergreen.lake.objects import S3Objects
from include.evergreen.lake.ports import ObjectStore
from include.evergreen.promotion.ports import IMPORTANCES, LINEAGE, TrainingRecord, Version, attachment_name
from include.evergreen.settings import Settings
from include.evergreen.training.bundle import FILES, ModelBundle, manifest_sha256

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

KEY = "evergreen.key"
MAX_PARAM, MAX_TAG = 6000, 8000
"""Characters of a value that MLflow keeps."""


class MlflowRegistry:
    """Versions with the aliases `champion` and `challenger`; the UBJ and its sidecars under `mlflow/<model>/`."""

    def __init__(self, settings: Settings, objects: ObjectStore | None = None) -> None:
        # MLflow sends a request again whatever it asks for: a version whose answer was lost would be made twice
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(settings.timeouts.connect + settings.timeouts.read))
        )
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        from mlflow import MlflowClient
        from sqlalchemy.engine import make_url

        uri = settings.registry_uri.get_secret_value()
        self._where = make_url(uri).render_as_string(hide_password=True) if "://" in uri else uri
        self._objects = objects or S3Objects(
            settings.object_store, settings.object_store.lake_bucket, settings.timeouts
        )
        with self._errors():
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError

        try:
            yield
        except OperationalError as error:
            raise Unavailable(
                f"expected an answer of the registry {self._where}, found: {_brief(error.orig)}"
            ) from error
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise NotFound(str(error)) from error
            if error.get_http_status_code() >= 500:
                raise Unavailable(
                    f"expected an answer of the registry {self._where}, found: {_brief(error)}"
                ) from error
            raise

    def _version(self, found: ModelVersion) -> Version:
        tags = dict(found.tags)
        return Version(
            model=found.name,
            number=int(found.version),
            as_of=dt.date.fromisoformat(tags["as_of"]),
            run_id=found.run_id,
            sha256=tags["sha256"],
            aliases=tuple(found.aliases),
            tags=tags,
        )

    def _experiment(self, model: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(model)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(model, artifact_location=self._objects.uri(f"mlflow/{model}")))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(model).experiment_id)

    def _run(self, experiment: str, record: TrainingRecord) -> str:
        """The run of this training, created once."""
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{record.key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(experiment, tags={KEY: record.key}, run_name=record.key)
        return str(run.info.run_id)

    def register(self, bundle: ModelBundle, record: TrainingRecord) -> Version:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        if "'" in record.key or "`" in record.key:
            raise ValueError(f"a training's key cannot hold quotes, found {record.key!r}")
        with self._errors():
            experiment = self._experiment(bundle.model)
            run_id = self._run(experiment, record)
            existing = self._client.search_model_versions(f"run_id = '{run_id}'", max_results=1)
            if existing:
                return self._version(self._client.get_model_version(bundle.model, existing[0].version))
            prefix = f"mlflow/{bundle.model}/{run_id}"
            files = bundle.files()
            for name, data in files.items():
                self._objects.put(f"{prefix}/{name}", data)
            lineage = {**record.lineage, "params": record.params}
            self._objects.put(f"{prefix}/{LINEAGE}", _json(lineage), "application/json")
            self._objects.put(f"{prefix}/{IMPORTANCES}", _json(record.importances), "application/json")
            now = int(time.time() * 1000)
            params = {k: str(v) for k, v in record.params.items()}
            tags = {
                "lineage": self._objects.uri(f"{prefix}/{LINEAGE}"),
                **{f"lineage.{k}": v if isinstance(v, str) else _line(v) for k, v in record.lineage.items()},
            }
            # MLflow cuts what is too long for it: half a JSON is worse than none, and lineage.json has all of it
            self._client.log_batch(
                run_id,
                metrics=[Metric(k, v, now, 0) for k, v in record.metrics.items() if v == v],
                params=[Param(k, v) for k, v in params.items() if len(v) <= MAX_PARAM],
                tags=[RunTag(k, v) for k, v in tags.items() if len(v) <= MAX_TAG],
            )
            try:
                self._client.create_registered_model(bundle.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            self._client.set_terminated(run_id)  # before the version: a retry that finds one makes nothing more
            created = self._client.create_model_version(
                bundle.model,
                source=self._objects.uri(prefix),
                run_id=run_id,
                tags={
                    "as_of": bundle.as_of.isoformat(),
                    "sha256": bundle.sha256,
                    "bundle_sha256": manifest_sha256(files),
                    "prefix": prefix,
                },
            )
            return self._version(self._client.get_model_version(bundle.model, created.version))

    def _tags(self, model: str, number: int) -> dict[str, str]:
        """The tags of a version. Raises NotFound, Unavailable."""
        with self._errors():
            return dict(self._client.get_model_version(model, str(number)).tags)

    def load(self, model: str, number: int) -> ModelBundle:
        tags = self._tags(model, number)
        files = {name: self._objects.get(f"{tags['prefix']}/{name}") for name in FILES}
        return ModelBundle.from_files(files, tags["bundle_sha256"], f"{model} version {number}")

    def champion(self, model: str) -> Version | None:
        try:
            with self._errors():
                return self._version(self._client.get_model_version_by_alias(model, "champion"))
        except NotFound:
            return None
        except Exception as error:
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                return None  # MLflow's answer for an alias that was never set
            raise

    def set_alias(self, model: str, number: int, alias: str) -> None:
        with self._errors():
            self._client.get_model_version(model, str(number))
            self._client.set_registered_model_alias(model, alias, str(number))

    def versions(self, model: str) -> list[Version]:
        with self._errors():
            found = self._client.search_model_versions(f"name = '{model}'", max_results=10_000)
            # a search leaves the aliases out
            aliases = self._client.get_registered_model(model).aliases if found else {}
        named: dict[int, list[str]] = defaultdict(list)
        for alias, number in sorted(aliases.items()):
            named[int(number)].append(alias)
        versions = (replace(version, aliases=tuple(named[version.number])) for version in map(self._version, found))
        return sorted(versions, key=lambda version: version.number)

    def lineage(self, model: str, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._objects.get(f"{self._tags(model, number)['prefix']}/{LINEAGE}"))
        return found

    def attach(self, model: str, number: int, name: str, data: bytes, content_type: str) -> str:
        key = f"{self._tags(model, number)['prefix']}/{attachment_name(name)}"
        self._objects.put(key, data, content_type)
        return self._objects.uri(key)

    def attachment(self, model: str, number: int, name: str) -> bytes:
        return self._objects.get(f"{self._tags(model, number)['prefix']}/{attachment_name(name)}")


def _brief(error: Any) -> str:
    """One line: the cause, without MLflow's own advice."""
    text = " ".join(str(error).split()).split(" To increase the timeout")[0]
    before, caused, cause = text.partition(" (Caused by ")
    text = cause.rstrip(")") + ")" if caused else before
    return text if len(text) <= 400 else f"{text[:397]}..."


def _json(value: Any) -> bytes:
    # in the given order: that of a spec's features is the order of the booster's columns
    return json.dumps(value, indent=1, default=str).encode()


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
