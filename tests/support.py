"""What tests build on: a platform without a network."""

from __future__ import annotations

from include.evergreen.replay.world import MemoryPlatform, memory_platform

__all__ = ["MemoryPlatform", "memory_platform"]
