"""The adapters a step works with, opened lazily from settings: object stores, lake, registry, mart."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from include.evergreen.settings import Settings

if TYPE_CHECKING:
    from include.evergreen.lake.ports import Lake, ObjectStore
    from include.evergreen.mart.store import Mart
    from include.evergreen.promotion.ports import Registry


class Platform:
    """Everything outside the process, behind ports. `tests/support.py` builds one in memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def landing(self) -> ObjectStore:
        """Files as upstream delivered them."""
        from include.evergreen.lake.objects import S3Objects

        store = self.settings.object_store
        return S3Objects(store, store.landing_bucket, self.settings.timeouts)

    @cached_property
    def objects(self) -> ObjectStore:
        """The lake's own files: staging, validation results, reports."""
        from include.evergreen.lake.objects import S3Objects

        store = self.settings.object_store
        return S3Objects(store, store.lake_bucket, self.settings.timeouts)

    @cached_property
    def lake(self) -> Lake:
        from include.evergreen.lake.iceberg import IcebergLake

        return IcebergLake(self.settings)

    @cached_property
    def registry(self) -> Registry:
        from include.evergreen.promotion.registry import MlflowRegistry

        return MlflowRegistry(self.settings)

    @cached_property
    def mart(self) -> Mart:
        from include.evergreen.mart.store import Mart

        return Mart(self.settings.mart_uri.get_secret_value())
