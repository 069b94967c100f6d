"""One suite over the registry on MLflow and its in-memory twin."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import shutil
import socket
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import SecretStr

from include.evergreen.errors import ChecksumMismatch, NotFound, Refused, Unavailable
from include.evergreen.lake.objects import S3Objects
from include.evergreen.promotion.memory import MemoryRegistry
from include.evergreen.promotion.ports import Registry, TrainingRecord
from include.evergreen.promotion.registry import MlflowRegistry
from include.evergreen.settings import Settings, Timeouts
from include.evergreen.training.bundle import FILES, ModelBundle

AS_OF = dt.date(2024, 3, 1)
MODEL = "late_order"


def bundle(salt: str = "a", as_of: dt.date = AS_OF, **facts: Any) -> ModelBundle:
    """A bundle whose booster is no booster: a registry must not need one."""
    return ModelBundle(
        model=MODEL,
        as_of=as_of,
        booster=f"booster {salt}".encode() + bytes(range(256)),
        features=("region", "amount"),
        categories={"region": ("north", "süd")},
        reference=f"reference {salt}".encode(),
        baseline=0.25,
        facts={"trained_until": "2024-02-20", **facts},
    )


def record(key: str = "manual-1", **changes: Any) -> TrainingRecord:
    given: dict[str, Any] = {
        "params": {"xgboost.max_depth": 3, "as_of": AS_OF.isoformat()},
        "metrics": {"challenger_auc": 0.74},
        "lineage": {"snapshots": {"trusted.orders": "7"}, "code": "3f1c2d9", "reason": "a test"},
        "importances": {"amount": 12.5},
        **changes,
    }
    return TrainingRecord(key=key, **given)


class Case(Protocol):
    """A registry and a hand in its storage."""

    @property
    def registry(self) -> Registry: ...

    def damage(self, number: int, name: str, data: bytes | None = None) -> None:
        """Change one stored file of a version."""


def spoiled(data: bytes) -> bytes:
    """One bit in the middle."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


class InMemory:
    def __init__(self) -> None:
        self.registry = MemoryRegistry()

    def damage(self, number: int, name: str, data: bytes | None = None) -> None:
        files = self.registry._files[MODEL, number]
        files[name] = spoiled(files[name]) if data is None else data


class OnMlflow:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = MlflowRegistry(settings)
        self.objects = S3Objects(settings.object_store, settings.object_store.lake_bucket, settings.timeouts)

    def damage(self, number: int, name: str, data: bytes | None = None) -> None:
        prefix = self.registry.versions(MODEL)[number - 1].tags["prefix"]
        key = f"{prefix}/{name}"
        self.objects.put(key, spoiled(self.objects.get(key)) if data is None else data)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's database as MLflow's first use leaves it: migrated once, copied by every test."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "registry.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}", registry_uri=f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def mlflow(settings: Settings, migrated: Path, tmp_path: Path) -> OnMlflow:
    shutil.copy(migrated, tmp_path / "registry.db")
    return OnMlflow(settings)


@pytest.fixture(params=["memory", "mlflow"])
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = InMemory() if request.param == "memory" else request.getfixturevalue("mlflow")
    return made


@pytest.fixture
def registry(case: Case) -> Registry:
    return case.registry


# --- versions --------------------------------------------------------------------------------------------------------


def test_an_empty_registry_has_no_version_and_no_champion(registry: Registry) -> None:
    assert registry.versions(MODEL) == []
    assert registry.champion(MODEL) is None


def test_what_is_loaded_is_what_was_registered(registry: Registry) -> None:
    given = bundle(metrics={"holdout": {"auc": 0.71}})
    version = registry.register(given, record())
    assert (version.model, version.number, version.as_of, version.sha256) == (MODEL, 1, AS_OF, given.sha256)
    found = registry.load(MODEL, 1)
    assert found == given
    assert found.files() == given.files()


def test_one_training_makes_one_version(registry: Registry) -> None:
    first = registry.register(bundle("a"), record("run-1"))
    again = registry.register(bundle("a"), record("run-1"))
    assert again == first
    other = registry.register(bundle("a"), record("run-2"))
    assert [v.number for v in registry.versions(MODEL)] == [first.number, other.number] == [1, 2]


def test_a_training_that_comes_back_different_keeps_its_version(registry: Registry) -> None:
    registry.register(bundle("a"), record("run-1"))
    kept = registry.register(bundle("b"), record("run-1", params={"xgboost.max_depth": 9}))
    assert kept.sha256 == bundle("a").sha256
    assert registry.load(MODEL, kept.number) == bundle("a")


def test_versions_are_ordered(registry: Registry) -> None:
    for number in range(1, 12):
        registry.register(bundle(str(number), AS_OF - dt.timedelta(days=number)), record(f"run-{number}"))
    found = registry.versions(MODEL)
    assert [v.number for v in found] == list(range(1, 12))
    assert [v.as_of for v in found] == [AS_OF - dt.timedelta(days=number) for number in range(1, 12)]
    assert len({v.run_id for v in found}) == 11


def test_models_do_not_mix(registry: Registry) -> None:
    registry.register(bundle("a"), record("run-1"))
    other = registry.register(replace(bundle("b"), model="other"), record("run-1"))
    assert other.number == 1
    registry.set_alias("other", 1, "champion")
    assert registry.champion(MODEL) is None
    assert [v.sha256 for v in registry.versions(MODEL)] == [bundle("a").sha256]


def test_an_unknown_version_is_not_found(registry: Registry) -> None:
    for number in (1, 99):
        with pytest.raises(NotFound, match=MODEL):
            registry.load(MODEL, number)
    registry.register(bundle(), record())
    with pytest.raises(NotFound, match="2"):
        registry.load(MODEL, 2)
    with pytest.raises(NotFound):
        registry.set_alias(MODEL, 2, "champion")
    with pytest.raises(NotFound):
        registry.set_alias("nobody", 1, "champion")


# --- aliases ---------------------------------------------------------------------------------------------------------


def test_an_alias_moves(registry: Registry) -> None:
    for number in (1, 2):
        registry.register(bundle(str(number)), record(f"run-{number}"))
    assert registry.champion(MODEL) is None, "a version is not a champion by being there"
    for number in (1, 2, 2, 1):
        registry.set_alias(MODEL, number, "champion")
        champion = registry.champion(MODEL)
        assert champion is not None
        assert champion.number == number
        assert [v.number for v in registry.versions(MODEL) if "champion" in v.aliases] == [number]


def test_a_challenger_is_no_champion(registry: Registry) -> None:
    for number in (1, 2):
        registry.register(bundle(str(number)), record(f"run-{number}"))
    registry.set_alias(MODEL, 1, "champion")
    registry.set_alias(MODEL, 2, "challenger")
    champion = registry.champion(MODEL)
    assert champion is not None
    assert champion.number == 1
    assert [v.aliases for v in registry.versions(MODEL)] == [("champion",), ("challenger",)]


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes_never_become_a_model(case: Case, name: str) -> None:
    case.registry.register(bundle(), record())
    case.damage(1, name)
    loaded = "xgboost" in sys.modules
    with pytest.raises(ChecksumMismatch, match=f"{name}.*expected SHA-256 [0-9a-f]+, found"):
        case.registry.load(MODEL, 1)
    assert ("xgboost" in sys.modules) == loaded


@pytest.mark.parametrize("name", FILES)
def test_another_versions_bytes_are_not_this_versions(case: Case, name: str) -> None:
    case.registry.register(bundle("a"), record("run-1"))
    case.registry.register(bundle("b", AS_OF + dt.timedelta(days=1)), record("run-2"))
    case.damage(1, name, bundle("b", AS_OF + dt.timedelta(days=1)).files()[name])
    with pytest.raises(ChecksumMismatch, match=name):
        case.registry.load(MODEL, 1)
    assert case.registry.load(MODEL, 2) == bundle("b", AS_OF + dt.timedelta(days=1))


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff\xfe"])
def test_a_bundle_json_of_any_content_is_refused(case: Case, data: bytes) -> None:
    case.registry.register(bundle(), record())
    case.damage(1, "bundle.json", data)
    with pytest.raises(ChecksumMismatch):
        case.registry.load(MODEL, 1)


def test_numbers_that_are_none_are_accepted(registry: Registry) -> None:
    metrics = {"auc": math.nan, "gain": math.inf, "loss": -math.inf, "brier": 0.2}
    registry.register(bundle(holdout_auc=math.nan), record(metrics=metrics))
    assert math.isnan(registry.load(MODEL, 1).facts["holdout_auc"])


@pytest.mark.parametrize("length", [5_000, 7_000, 9_000, 300_000])
def test_a_long_spec_or_parameter_is_registered(registry: Registry, length: int) -> None:
    long = "x" * length
    given = record(
        params={"xgboost.interaction_constraints": long, "trees": 7}, lineage={"spec": {"sql": long}, "code": "c0de"}
    )
    assert registry.register(bundle(), given).number == 1
    assert registry.load(MODEL, 1) == bundle()


# --- lineage and attachments -----------------------------------------------------------------------------------------


def test_lineage_is_what_was_recorded(registry: Registry) -> None:
    given = {"snapshots": {"trusted.orders": "7"}, "overrides": None, "since": AS_OF, "spec": {"sql": "x" * 9_000}}
    registry.register(bundle(), record(lineage=given))
    found = registry.lineage(MODEL, 1)
    assert found == {**given, "since": AS_OF.isoformat(), "params": record().params}


def test_lineage_keeps_the_order_of_the_features(registry: Registry) -> None:
    features = {"region": {"type": "category"}, "amount": {}, "late_before": {}}
    registry.register(bundle(), record(lineage={"spec": {"features": features}}))
    assert list(registry.lineage(MODEL, 1)["spec"]["features"]) == list(features)


def test_an_attachment_is_read_back_and_replaced(registry: Registry) -> None:
    for number in (1, 2):
        registry.register(bundle(str(number)), record(f"run-{number}"))
    first = registry.attach(MODEL, 1, "card.html", b"<p>one</p>", "text/html")
    other = registry.attach(MODEL, 2, "card.html", b"<p>two</p>", "text/html")
    assert first != other
    assert first.endswith("/card.html")
    assert registry.attachment(MODEL, 1, "card.html") == b"<p>one</p>"
    assert registry.attach(MODEL, 1, "card.html", b"<p>again</p>", "text/html") == first
    assert registry.attachment(MODEL, 1, "card.html") == b"<p>again</p>"
    assert registry.attachment(MODEL, 2, "card.html") == b"<p>two</p>"
    assert registry.load(MODEL, 1) == bundle("1")


def test_an_unknown_version_or_attachment_is_not_found(registry: Registry) -> None:
    for call in (
        lambda: registry.lineage(MODEL, 1),
        lambda: registry.attach(MODEL, 1, "card.html", b"", "text/html"),
        lambda: registry.attachment(MODEL, 1, "card.html"),
    ):
        with pytest.raises(NotFound, match=MODEL):
            call()
    registry.register(bundle(), record())
    with pytest.raises(NotFound, match=r"card\.html"):
        registry.attachment(MODEL, 1, "card.html")


@pytest.mark.parametrize("name", [*FILES, "lineage.json", "importances.json", "", "../x", "a/b", ".hidden"])
def test_an_attachment_never_takes_the_place_of_another_file(registry: Registry, name: str) -> None:
    registry.register(bundle(), record())
    with pytest.raises(Refused, match="attachment"):
        registry.attach(MODEL, 1, name, b"x", "text/plain")
    with pytest.raises(Refused, match="attachment"):
        registry.attachment(MODEL, 1, name)
    assert registry.load(MODEL, 1) == bundle()


# --- on MLflow alone -------------------------------------------------------------------------------------------------


def test_lineage_is_read_back(mlflow: OnMlflow) -> None:
    long = {"sql": "select 1 -- " + "x" * 9_000}
    lineage = {"snapshots": {"trusted.orders": "7"}, "code": "3f1c2d9", "spec": long, "reason": 'it\'s "new"', "as": 7}
    given = record(lineage=lineage, params={"xgboost.eta": 0.1, "long": "y" * 7_000}, metrics={"auc": math.nan, "b": 1})
    version = mlflow.registry.register(bundle(), given)
    run = mlflow.registry._client.get_run(version.run_id)
    tags = run.data.tags
    assert json.loads(tags["lineage.snapshots"]) == {"trusted.orders": "7"}
    assert (tags["lineage.code"], tags["lineage.reason"], tags["lineage.as"]) == ("3f1c2d9", 'it\'s "new"', "7")
    assert "lineage.spec" not in tags, "half a JSON would be worse than none"
    assert run.data.params == {"xgboost.eta": "0.1"}
    assert run.data.metrics == {"b": 1}
    assert run.info.status == "FINISHED"
    key = tags["lineage"].removeprefix(mlflow.objects.uri(""))
    assert json.loads(mlflow.objects.get(key)) == {**lineage, "params": given.params}
    prefix = version.tags["prefix"]
    assert json.loads(mlflow.objects.get(f"{prefix}/importances.json")) == given.importances


@pytest.mark.parametrize("last", ["create_model_version", "set_terminated"])
def test_a_registration_that_broke_off_is_completed(
    mlflow: OnMlflow, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The process died after the bytes and the run's facts, before the run was closed or the version made."""
    client = mlflow.registry._client
    with monkeypatch.context() as patch:

        def dies(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(client, last, dies)
        with pytest.raises(KeyboardInterrupt):
            mlflow.registry.register(bundle(), record())
    assert mlflow.registry.versions(MODEL) == []
    assert mlflow.registry.register(bundle(), record()).number == 1
    assert mlflow.registry.load(MODEL, 1) == bundle()
    [run] = client.search_runs([client.get_experiment_by_name(MODEL).experiment_id])
    assert run.info.status == "FINISHED"


def test_a_second_process_sees_the_same(mlflow: OnMlflow) -> None:
    mlflow.registry.register(bundle(), record())
    mlflow.registry.set_alias(MODEL, 1, "champion")
    other = MlflowRegistry(mlflow.settings)
    assert other.champion(MODEL) == mlflow.registry.champion(MODEL)
    assert other.register(bundle(), record()).number == 1
    assert other.load(MODEL, 1) == bundle()


def test_an_attachment_lies_beside_its_version(mlflow: OnMlflow) -> None:
    version = mlflow.registry.register(bundle(), record())
    uri = mlflow.registry.attach(MODEL, 1, "card.html", b"<p>", "text/html")
    key = f"{version.tags['prefix']}/card.html"
    assert uri == mlflow.objects.uri(key)
    assert mlflow.objects.get(key) == b"<p>"


def test_a_lost_object_is_not_found(mlflow: OnMlflow) -> None:
    version = mlflow.registry.register(bundle(), record())
    mlflow.objects.delete([f"{version.tags['prefix']}/model.ubj"])
    with pytest.raises(NotFound, match=r"model\.ubj"):
        mlflow.registry.load(MODEL, 1)


@pytest.mark.parametrize("key", ["it's", "`x`"])
def test_a_key_that_could_leave_its_quotes_is_refused(mlflow: OnMlflow, key: str) -> None:
    with pytest.raises(ValueError, match="quotes"):
        mlflow.registry.register(bundle(), record(key))


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A loopback port that is bound and not listened to: every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def test_a_dead_object_store_is_unavailable(mlflow: OnMlflow, dead_port: int) -> None:
    mlflow.registry.register(bundle(), record())
    store = mlflow.settings.object_store.model_copy(update={"endpoint": f"http://127.0.0.1:{dead_port}"})
    cut = MlflowRegistry(
        mlflow.settings.model_copy(update={"object_store": store, "timeouts": Timeouts(connect=1, read=1, tries=1)})
    )
    with pytest.raises(Unavailable, match=str(dead_port)):
        cut.load(MODEL, 1)
    with pytest.raises(Unavailable, match=str(dead_port)):
        cut.register(bundle("b"), record("run-2"))
    assert [v.number for v in mlflow.registry.versions(MODEL)] == [1], "no version without its bytes"
    assert mlflow.registry.register(bundle("b"), record("run-2")).number == 2


def test_a_database_that_cannot_answer_is_unavailable(mlflow: OnMlflow, tmp_path: Path) -> None:
    mlflow.registry.register(bundle(), record())
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as other:
        other.execute("drop table registered_model_aliases")
    with pytest.raises(Unavailable, match="registered_model_aliases"):
        mlflow.registry.set_alias(MODEL, 1, "champion")


def test_a_dead_server_is_unavailable(settings: Settings, dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = settings.model_copy(update={"registry_uri": SecretStr(f"http://127.0.0.1:{dead_port}")})
    for call in (
        lambda: MlflowRegistry(gone).champion(MODEL),
        lambda: MlflowRegistry(gone).versions(MODEL),
        lambda: MlflowRegistry(gone).register(bundle(), record()),
    ):
        with pytest.raises(Unavailable):
            call()
