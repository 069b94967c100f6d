"""The contract with analysts: names and types of their views, frozen in a file per model, with a version.

A column may be added. One that is removed, renamed or retyped, or a view that goes, needs a person to raise `version`
in the file, and `make dictionary` to freeze the new shape. `seal` tells the two apart: it covers version and views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from include.evergreen.errors import Refused, SpecError
from include.evergreen.mart.dictionary import View
from include.evergreen.specs import PROJECT

COMMON = Path(__file__).with_name("contract.yaml")
HEAD = (
    "# What analysts build on: frozen by `make dictionary`, checked by the tests.\n"
    "# Something taken away or changed? Raise `version`, then run `make dictionary`.\n"
)

Views = Mapping[str, Mapping[str, str]]
"""{view: {column: type}}"""


@dataclass(frozen=True)
class Contract:
    """A frozen shape. `sealed`: as `freeze` wrote it; not so once a person raised the version."""

    version: int
    views: Views
    sealed: bool


def path(model: str, root: Path = PROJECT) -> Path:
    """Where the contract of a model is kept."""
    return root / "include" / "models" / model / "contract.yaml"


def shape(views: Iterable[View]) -> Views:
    """What the views are now."""
    return {view.name: {column.name: column.type for column in view.columns} for view in views}


def read(file: Path) -> Contract:
    """A frozen contract. Raises SpecError: no such file, or another shape of file."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        version, views = int(found["version"]), found["views"]
        return Contract(version, views, found["seal"] == _seal(version, views))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{file}: expected version, seal and views, found: {error!r}; run make dictionary") from error


def breaks(frozen: Views, now: Views) -> list[str]:
    """What analysts would miss: views and columns that are gone or have another type."""
    found = []
    for view, columns in frozen.items():
        if view not in now:
            found.append(f"{view}: expected the view, found none")
            continue
        for column, kind in columns.items():
            if now[view].get(column) != kind:
                found.append(f"{view}.{column}: expected {kind}, found {now[view].get(column, 'no such column')}")
    return found


def check(file: Path, views: Iterable[View]) -> None:
    """Compare the views with their contract; added columns are welcome.

    Raises:
        Refused: a breaking change; says what to do.
        SpecError: no contract, or one that `freeze` did not write.
    """
    frozen = read(file)
    broken = breaks(frozen.views, shape(views))
    if broken:
        raise Refused(f"{'; '.join(broken)}. Bump the contract's version in {file}, then run make dictionary")
    if not frozen.sealed:
        raise SpecError(f"{file}: expected the seal of version {frozen.version}, found another; run make dictionary")


def freeze(file: Path, views: Iterable[View]) -> None:
    """Write the contract as the views are now, under the version in the file.

    Raises Refused: a breaking change under the same version.
    """
    made = list(views)
    version = 1
    if file.exists():
        frozen = read(file)
        version = frozen.version
        if frozen.sealed:
            check(file, made)
    found = shape(made)
    body = {"version": version, "seal": _seal(version, found), "views": found}
    file.write_text(HEAD + yaml.safe_dump(body, sort_keys=False, width=120), encoding="utf-8")


def _seal(version: int, views: Views) -> str:
    return hashlib.sha256(json.dumps([version, views], sort_keys=True).encode()).hexdigest()[:16]
