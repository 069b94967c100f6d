"""The registry port: model versions, their bytes, their aliases."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from include.evergreen.errors import Refused
from include.evergreen.training.bundle import FILES, ModelBundle

LINEAGE, IMPORTANCES = "lineage.json", "importances.json"
REGISTERED = (*FILES, LINEAGE, IMPORTANCES)
"""The files that `register` stores: no attachment replaces them."""


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
        """Move `alias` (`champion`, `challenger` or `withdrawn`) to a version. Raises NotFound."""

    def versions(self, model: str) -> list[Version]:
        """All versions, oldest first."""

    def lineage(self, model: str, number: int) -> dict[str, Any]:
        """What was recorded at registration: the record's lineage in its order, and its `params`.

        Raises NotFound, Unavailable.
        """

    def attach(self, model: str, number: int, name: str, data: bytes, content_type: str) -> str:
        """Store a further file beside a version, replacing one of the same name. Returns its URI.

        Raises NotFound (version), Refused (see `attachment_name`), Unavailable.
        """

    def attachment(self, model: str, number: int, name: str) -> bytes:
        """Raises NotFound (version, file), Refused (see `attachment_name`), Unavailable."""


def attachment_name(name: str) -> str:
    """`name` as given. Raises Refused: no plain file name, or one of the files that `register` stores."""
    if name in REGISTERED or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise Refused(f"attachment: expected a plain file name other than {', '.join(REGISTERED)}, found {name!r}")
    return name
