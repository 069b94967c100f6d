"""What tests build on: a platform without a network."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from include.evergreen.lake.objects import MemoryObjects
from include.evergreen.platform import Platform
from include.evergreen.settings import ObjectStoreSettings, Settings

if TYPE_CHECKING:
    from include.evergreen.lake.memory import MemoryLake
    from include.evergreen.promotion.memory import MemoryRegistry


class MemoryPlatform(Platform):
    """Objects, lake and registry in memory; the mart in its settings' SQLite file."""

    @cached_property
    def landing(self) -> MemoryObjects:
        return MemoryObjects(self.settings.object_store.landing_bucket)

    @cached_property
    def objects(self) -> MemoryObjects:
        return MemoryObjects(self.settings.object_store.lake_bucket)

    @cached_property
    def lake(self) -> MemoryLake:
        from include.evergreen.lake.memory import MemoryLake

        return MemoryLake()

    @cached_property
    def registry(self) -> MemoryRegistry:
        from include.evergreen.promotion.memory import MemoryRegistry

        return MemoryRegistry()


def memory_platform(tmp_path: Path) -> MemoryPlatform:
    """A fresh platform; the mart's schema is created in `tmp_path`."""
    platform = MemoryPlatform(
        Settings(
            object_store=ObjectStoreSettings(),
            catalog_uri=f"sqlite:///{tmp_path}/catalog.db",
            mart_uri=f"sqlite:///{tmp_path}/mart.db",
            registry_uri=f"sqlite:///{tmp_path}/registry.db",
        )
    )
    platform.mart.create()
    return platform
