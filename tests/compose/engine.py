"""A container engine for the tests alone, and its programs: Debian's `dockerd` with folders, socket and id of its own.

An engine that answers already is used as it is; its images, containers and volumes of other names are left alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORAGE_DRIVERS = ("overlay2", "fuse-overlayfs", "vfs")
"""By preference; which of them work depends on the kernel and on the file system of the data root."""
LABEL = "evergreen.test-compose=1"


class NoEngine(Exception):
    """No container engine answers, and none could be started: says what each try said."""


class CommandFailed(Exception):
    """A program of the engine failed; its output is in the message."""


def run(argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 60) -> str:
    """Standard output. Raises CommandFailed with the end of what it said."""
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        said = (done.stdout + done.stderr)[-6000:]
        raise CommandFailed(f"{' '.join(argv[:6])}: expected exit code 0, found {done.returncode}:\n{said}")
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """Calls of `docker` and of compose on one engine."""

    host: str | None
    """The socket's URL; None: as the environment says."""
    own: bool

    @property
    def environment(self) -> dict[str, str]:
        """BuildKit is a package of its own; the classic builder is in every engine."""
        found = {**os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        return {**found, "DOCKER_HOST": self.host} if self.host else found

    def docker(self, *arguments: str, timeout: float = 60, cwd: Path | None = None) -> str:
        return run(["docker", *arguments], self.environment, cwd, timeout)

    def build(self, folder: Path, image: str, timeout: float = 1800, **arguments: str) -> None:
        """An image from a folder's Dockerfile. On the host's network: its package registries may be on loopback."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        given += [f"--build-arg={name}" for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ]
        command = ["build", "--quiet", "--network=host", f"--label={LABEL}", f"--tag={image}", *given, "."]
        self.docker(*command, timeout=timeout, cwd=folder)

    def inspect(self, name: str) -> dict[str, Any]:
        [found] = json.loads(self.docker("inspect", name))
        return dict(found)

    @property
    def compose(self) -> list[str]:
        """The plugin (v2) where it is there, else the program of its own name. Raises NoEngine."""
        if not subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60).returncode:
            return ["docker", "compose"]
        if program := shutil.which("docker-compose"):
            return [program]
        raise NoEngine("expected `docker compose` or `docker-compose`, found neither: make compose-tools")


def answers(environment: dict[str, str] | None = None) -> bool:
    try:
        argv = ["docker", "info", "--format", "{{.ServerVersion}}"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


@contextmanager
def engine(folder: Path, data: Path) -> Iterator[Engine]:
    """The engine that answers, else one in `folder` with its images in `data`, ended by its id afterwards.

    Raises:
        NoEngine: none answers and none starts.
    """
    if answers():
        yield Engine(None, own=False)
        return
    if os.geteuid():
        raise NoEngine("expected an engine that answers `docker info`, found none; only root can start one")
    if shutil.which("dockerd") is None:
        raise NoEngine("expected an engine that answers `docker info` or the program dockerd, found neither")
    tried = {}
    for driver in STORAGE_DRIVERS:
        started = Engine(f"unix://{folder}/docker.sock", own=True)
        log = folder / f"dockerd-{driver}.log"
        process = _start(folder, data, driver, log)
        try:
            if _wait(process, started):
                with _weight():
                    yield started
                return
            tried[driver] = log.read_text(errors="replace")[-1500:]
        finally:
            _end(process)
            # dockerd leaves this mount behind, and the folder could not be deleted
            if (left := folder / "exec" / "netns" / "default").exists():
                subprocess.run(["umount", str(left)], capture_output=True)
    raise NoEngine("\n".join(f"dockerd with {driver} did not start:\n{said}" for driver, said in tried.items()))


def _start(folder: Path, data: Path, driver: str, log: Path) -> subprocess.Popen[bytes]:
    argv = ["dockerd", f"--storage-driver={driver}", f"--data-root={data}", f"--exec-root={folder}/exec"]
    argv += [f"--host=unix://{folder}/docker.sock", f"--pidfile={folder}/docker.pid"]
    with log.open("wb") as file:
        return subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], started: Engine, timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if answers(started.environment):
            return True
        time.sleep(0.2)
    return False


@contextmanager
def _weight() -> Iterator[None]:
    """The containers together get the processor's time of ten processes, instead of that of one.

    The kernel shares by control groups, and an engine without systemd puts all containers into one: on a busy machine
    they would get a tenth of what the same services get as processes. As it was before, afterwards.
    """
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    file = root / "docker" / "cpu.weight" if unified else root / "cpu" / "docker" / "cpu.shares"
    former = None
    with suppress(OSError):  # no right to, or no such controller: slower, not wrong
        file.parent.mkdir(exist_ok=True)
        former = file.read_text()
        file.write_text("1000" if unified else "10240")
    try:
        yield
    finally:
        if former is not None:
            file.write_text(former)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends its containers and its containerd first."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
