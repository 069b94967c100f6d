"""The registry port: model versions, their bytes, their aliases."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Protocol

from include.evergreen.training.bundle import ModelBundle


@dataclass(frozen=True)
class Version:
    """One registered version of a model. `as_of` is the date it was trained as of."""

    model: str
    number: int
    as_of: dt.date
    run_id: str
    sha256: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRecord:
    """Everything that made a model: written to the tracking server, read back for lineage.

    `key` names the training (one per DAG run): registering twice under one key yields one version.
    """

    key: str
    params: dict[str, Any]
    metrics: dict[str, float]
    lineage: dict[str, Any]
    importances: dict[str, float]


class Registry(Protocol):
    def register(self, bundle: ModelBundle, record: TrainingRecord) -> Version:
        """Store the bundle and its record; idempotent by `record.key`. Raises Unavailable."""

    def load(self, model: str, number: int) -> ModelBundle:
        """Raises NotFound, ChecksumMismatch (bytes differ from those registered), Unavailable."""

    def champion(self, model: str) -> Version | None:
        """The version with the alias `champion`."""

    def set_alias(self, model: str, number: int, alias: str) -> None:
        """Move `alias` (`champion` or `challenger`) to a version. Raises NotFound."""

    def versions(self, model: str) -> list[Version]:
        """All versions, oldest first."""
