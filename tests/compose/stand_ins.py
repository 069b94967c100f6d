"""Stand-ins for the public images of docker-compose.yaml and of the Dockerfile, from Debian's packages; our own image.

Registries of packages are those of this host: apt sources, settings of pip, certificates go into the stand-ins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from include.evergreen.local import demo, object_store
from include.evergreen.local.layout import PROJECT
from tests.compose.engine import Engine, run
from tests.outside import copy_of_project, unhurried

RECIPES = Path(__file__).parent / "images"
SUITE = "bookworm"
BASE_TAR = Path(os.environ.get("EVERGREEN_COMPOSE_CACHE") or PROJECT / "var" / "test-compose") / f"{SUITE}.tar"
PUBLIC = {"postgres": "postgres", "redis": "redis", "chrislusf/seaweedfs": "object-store"}
"""Public image, without its tag -> recipe."""
OURS = "evergreen"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def tag(recipe: str) -> str:
    return f"evergreen-test/{recipe}:latest"


def public_images() -> dict[str, str]:
    """{service: image} of the compose file."""
    services = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"]
    return {name: service["image"] for name, service in services.items()}


def override() -> dict[str, Any]:
    """A compose file that changes image names and nothing else. Raises KeyError: an image without a stand-in."""
    recipes = {**PUBLIC, OURS: OURS}
    return {
        "services": {name: {"image": tag(recipes[image.rsplit(":", 1)[0]])} for name, image in public_images().items()}
    }


def build_all(engine: Engine, scratch: Path) -> None:
    """Every stand-in, then the project's own Dockerfile on the stand-in of its base."""
    _base(engine, scratch / "debian")
    for recipe in ("python", *PUBLIC.values()):
        folder = scratch / recipe
        shutil.copytree(RECIPES / recipe, folder)
        if recipe == "object-store":
            shutil.copy(object_store.binary(), folder / "rclone")
        engine.build(folder, tag(recipe), BASE=tag("debian"))
    engine.build(_context(scratch / OURS), tag(OURS), BASE=tag("python"))


def _context(folder: Path) -> Path:
    """What the Dockerfile copies, and the gate that does not ask how fast a busy machine scores."""
    folder.mkdir()
    copy_of_project(folder)
    unhurried(folder / "include" / "models" / demo.MODEL / "model.yaml")
    for name in ("Dockerfile", ".dockerignore", "requirements.txt", "requirements-cluster.txt"):
        shutil.copy(PROJECT / name, folder)
    shutil.copytree(PROJECT / "docs" / "runbooks", folder / "docs" / "runbooks")
    return folder


# --- Debian ----------------------------------------------------------------------------------------------------------


def _base(engine: Engine, folder: Path) -> None:
    shutil.copytree(RECIPES / "debian", folder)
    sources = debian_sources()
    if not BASE_TAR.exists():
        _debootstrap(sources[0].split()[1])
    shutil.copy(BASE_TAR, folder / "base.tar")
    host(folder / "host", sources)
    engine.build(folder, tag("debian"))


def _debootstrap(mirror: str) -> None:
    BASE_TAR.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        run(["debootstrap", "--variant=minbase", SUITE, str(root), mirror], timeout=900)
        shutil.rmtree(root / "var" / "cache" / "apt")
        part = BASE_TAR.with_suffix(f".{os.getpid()}")
        run(["tar", "--numeric-owner", "--create", f"--file={part}", f"--directory={root}", "."], timeout=300)
        part.rename(BASE_TAR)


def debian_sources() -> list[str]:
    """Lines of a sources.list: where this host gets Debian from, the suite itself first."""
    argv = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"]
    found = [line.split("|") for line in run([*argv, "Created-By: Packages"]).splitlines()]
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    lines = {(release, uri, part): None for origin, uri, release, part in found if origin == "Debian"}
    kept = sorted((line for line in lines if line[0] in suites), key=lambda line: suites.index(line[0]))
    if not kept or kept[0][0] != SUITE:
        kept.insert(0, (SUITE, "http://deb.debian.org/debian", "main"))
    return [f"deb {uri} {release} {part}" for release, uri, part in kept]


def host(folder: Path, sources: list[str]) -> None:
    """This host's way to registries of packages, as files of a container."""

    def write(path: str, text: str) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    write("etc/apt/sources.list", "".join(f"{line}\n" for line in sources))
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-")
    dump = [line for line in run(["apt-config", "dump"]).splitlines() if line.startswith(wanted)]
    write("etc/apt/apt.conf.d/99host", "".join(f"{line}\n" for line in dump))
    # not where a package would write it anew
    write("etc/host-certificates.crt", CERTIFICATES.read_text() if CERTIFICATES.is_file() else "")
    indexes = _pip_settings()
    write("etc/pip.conf", "[global]\n" + "".join(f"{name} = {value}\n" for name, value in indexes.items()))
    if url := indexes.get("index-url"):
        write("etc/uv/uv.toml", f'[[index]]\nurl = "{url}"\ndefault = true\n')


def _pip_settings() -> dict[str, str]:
    """index-url, extra-index-url, proxy and trusted-host of this host's pip; folders of this host are left out."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    found = {}
    for line in said.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        words = [word for word in value.strip("'\"").split() if not word.startswith("file:")]
        if key in {"index-url", "extra-index-url", "proxy", "trusted-host"} and words:
            found[key] = " ".join(words)
    return found
