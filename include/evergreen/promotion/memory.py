"""The in-memory twin of the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from include.evergreen.errors import NotFound
from include.evergreen.promotion.ports import LINEAGE, TrainingRecord, Version, attachment_name
from include.evergreen.training.bundle import ModelBundle, manifest_sha256


class MemoryRegistry:
    """Keeps files as bytes, so that a load goes through the same checks as the real one."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, int], dict[str, bytes]] = {}
        self._versions: dict[str, list[Version]] = {}
        self.records: dict[str, TrainingRecord] = {}

    def register(self, bundle: ModelBundle, record: TrainingRecord) -> Version:
        known = self._versions.setdefault(bundle.model, [])
        for version in known:
            if version.run_id == record.key:
                return version
        files = bundle.files()
        tags = {"bundle_sha256": manifest_sha256(files)}
        version = Version(bundle.model, len(known) + 1, bundle.as_of, record.key, bundle.sha256, tags=tags)
        known.append(version)
        lineage = json.dumps({**record.lineage, "params": record.params}, default=str).encode()
        self._files[bundle.model, version.number] = {**files, LINEAGE: lineage}
        self.records[record.key] = record
        return version

    def _stored(self, model: str, number: int) -> dict[str, bytes]:
        if (model, number) not in self._files:
            raise NotFound(f"model {model}: expected version {number}, found {len(self.versions(model))} version(s)")
        return self._files[model, number]

    def load(self, model: str, number: int) -> ModelBundle:
        files = self._stored(model, number)
        expected = next(v.tags["bundle_sha256"] for v in self._versions[model] if v.number == number)
        return ModelBundle.from_files(files, expected, f"{model} version {number}")

    def champion(self, model: str) -> Version | None:
        return next((v for v in self.versions(model) if "champion" in v.aliases), None)

    def set_alias(self, model: str, number: int, alias: str) -> None:
        versions = self._versions.get(model, [])
        if not any(v.number == number for v in versions):
            raise NotFound(f"model {model}: expected version {number}, found {len(versions)} version(s)")
        for index, v in enumerate(versions):
            others = tuple(a for a in v.aliases if a != alias)
            versions[index] = replace(v, aliases=(*others, alias) if v.number == number else others)

    def versions(self, model: str) -> list[Version]:
        return list(self._versions.get(model, []))

    def lineage(self, model: str, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._stored(model, number)[LINEAGE])
        return found

    def attach(self, model: str, number: int, name: str, data: bytes, content_type: str) -> str:
        self._stored(model, number)[attachment_name(name)] = data
        return f"memory://{model}/{number}/{name}"

    def attachment(self, model: str, number: int, name: str) -> bytes:
        files = self._stored(model, number)
        if attachment_name(name) not in files:
            raise NotFound(f"model {model} version {number}: expected the file {name}, found {sorted(files)}")
        return files[name]
