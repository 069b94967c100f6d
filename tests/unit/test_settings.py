"""Settings from the environment: all that is missing is named, no secret is shown."""

from __future__ import annotations

import pytest

from include.evergreen.distributed.cluster import connected
from include.evergreen.errors import SettingsError
from include.evergreen.settings import DaskSettings, Settings, Timeouts

NEEDED = {
    "EVERGREEN_CATALOG_URI": "postgresql://lake:s3cret-catalog@db/catalog",
    "EVERGREEN_MART_URI": "postgresql://lake:s3cret-mart@db/mart",
    "EVERGREEN_REGISTRY_URI": "http://lake:s3cret-registry@mlflow:5000",
}
STORE = {
    "EVERGREEN_S3_ENDPOINT": "http://127.0.0.1:9000",
    "EVERGREEN_S3_REGION": "eu-north-1",
    "EVERGREEN_S3_ACCESS_KEY": "s3cret-access",
    "EVERGREEN_S3_SECRET_KEY": "s3cret-key",
    "EVERGREEN_LANDING_BUCKET": "incoming",
    "EVERGREEN_LAKE_BUCKET": "deep",
}


def test_every_variable_is_read() -> None:
    found = Settings.from_env({**NEEDED, **STORE, "EVERGREEN_UI_URL": "https://airflow.example.org"})
    store = found.object_store
    assert store.secret_key is not None
    assert found.catalog_uri.get_secret_value() == NEEDED["EVERGREEN_CATALOG_URI"]
    assert found.mart_uri.get_secret_value() == NEEDED["EVERGREEN_MART_URI"]
    assert found.registry_uri.get_secret_value() == NEEDED["EVERGREEN_REGISTRY_URI"]
    assert (store.endpoint, store.region) == ("http://127.0.0.1:9000", "eu-north-1")
    assert (store.landing_bucket, store.lake_bucket) == ("incoming", "deep")
    assert store.secret_key.get_secret_value() == "s3cret-key"
    assert found.ui_url == "https://airflow.example.org"


def test_aws_itself_needs_no_endpoint_and_no_key() -> None:
    store = Settings.from_env({**NEEDED, "EVERGREEN_S3_ENDPOINT": ""}).object_store
    assert (store.endpoint, store.access_key, store.secret_key) == (None, None, None)
    assert (store.landing_bucket, store.lake_bucket) == ("landing", "lake")


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as found:
        Settings.from_env({"EVERGREEN_MART_URI": NEEDED["EVERGREEN_MART_URI"], "EVERGREEN_CATALOG_URI": ""})
    assert "EVERGREEN_CATALOG_URI, EVERGREEN_REGISTRY_URI" in str(found.value)
    assert "EVERGREEN_MART_URI" not in str(found.value)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env().mart_uri.get_secret_value() == NEEDED["EVERGREEN_MART_URI"]
    monkeypatch.delenv("EVERGREEN_MART_URI")
    with pytest.raises(SettingsError, match="EVERGREEN_MART_URI"):
        Settings.from_env()


def test_no_secret_is_shown() -> None:
    found = Settings.from_env({**NEEDED, **STORE})
    for shown in (repr(found), str(found), found.model_dump_json(), f"{found.object_store}"):
        assert "s3cret" not in shown


def test_every_client_is_bounded() -> None:
    assert Settings.from_env(NEEDED).timeouts == Timeouts()
    assert 0 < Timeouts().connect <= Timeouts().read < 60
    assert 1 <= Timeouts().tries <= 3


# --- Dask ------------------------------------------------------------------------------------------------------------

FILES = {
    "EVERGREEN_DASK_CA_FILE": "/ca.pem",
    "EVERGREEN_DASK_CERT_FILE": "/cert.pem",
    "EVERGREEN_DASK_KEY_FILE": "/key.pem",
}


def test_a_dask_scheduler_is_only_there_where_it_is_named() -> None:
    assert Settings.from_env({**NEEDED, "EVERGREEN_DASK_ADDRESS": ""}).dask is None
    found = Settings.from_env({**NEEDED, "EVERGREEN_DASK_ADDRESS": "tcp://dask-scheduler:8786"}).dask
    assert found == DaskSettings(address="tcp://dask-scheduler:8786")
    encrypted = Settings.from_env({**NEEDED, **FILES, "EVERGREEN_DASK_ADDRESS": "tls://dask:8786"}).dask
    assert encrypted is not None
    assert (encrypted.ca_file, encrypted.cert_file, encrypted.key_file) == ("/ca.pem", "/cert.pem", "/key.pem")


@pytest.mark.parametrize(
    "address", ["dask:8786", "http://dask:8786", "tcp://dask", "tcp://user:pw@dask:8786", "tls://dask:8786"]
)
def test_another_address_than_a_schedulers_is_refused(address: str) -> None:
    """The last one has no certificates."""
    with pytest.raises(SettingsError, match="EVERGREEN_DASK_ADDRESS: address: expected tcp://host:port, or tls://"):
        Settings.from_env({**NEEDED, "EVERGREEN_DASK_ADDRESS": address})


def test_without_a_dask_scheduler_a_cluster_is_asked_for_by_name() -> None:
    with pytest.raises(SettingsError, match="connection evergreen_dask"), connected(None):
        pass
