"""One side of a row in a process of its own: seconds and peak memory of what stands inside `timed`.

    python -m benchmarks.side <row> <side> <scale>

prints one line of JSON: {seconds, peak_mib, ...} and what the side says of its result.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from include.evergreen.platform import Platform

ROOT = Path(__file__).resolve().parents[1] / "var" / "bench"


def peak_mib() -> float:
    """Peak resident memory of this process. `ru_maxrss` would count the parent's too, from before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def busy() -> float:
    """Seconds that all cores were busy so far."""
    ticks = [int(value) for value in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Side:
    """What a side works with: `scale` times the flights of 2013, a folder of its own, a clock."""

    def __init__(self, scale: int, folder: Path) -> None:
        self.scale, self.folder = scale, folder
        self.seconds = self.peak_mib = self.processor = self.others = 0.0

    @contextmanager
    def timed(self, spent: Callable[[], float] = own) -> Iterator[None]:
        """Time the body; its peak memory counts what is loaded before it. `others`: cores that others kept busy.

        Args:
            spent: processor seconds of the side so far.
        """
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        whole, mine = busy(), spent()
        start = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start
        self.peak_mib = peak_mib()
        self.processor = spent() - mine
        self.others = max((busy() - whole - self.processor) / self.seconds, 0.0)

    @contextmanager
    def platform(self, root: Path | None = None) -> Iterator[Platform]:
        """The engine on a real object store (rclone), an Iceberg catalog and a mart, in `root` or a fresh folder."""
        from include.evergreen.lake.objects import S3Objects
        from include.evergreen.local.object_store import command, wait_ready
        from include.evergreen.platform import Platform
        from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts

        root = root or self.folder
        (root / "s3").mkdir(parents=True, exist_ok=True)
        access, secret = secrets.token_hex(8), secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        argv, env = command(root / "s3", port, access, secret)
        with (root / "s3.log").open("wb") as log:
            server = subprocess.Popen(argv, env={**os.environ, **env}, stdout=log, stderr=log)  # noqa: S603
        try:
            wait_ready(port, timeout=30)
            store = ObjectStoreSettings(endpoint=f"http://127.0.0.1:{port}", access_key=access, secret_key=secret)
            for bucket in (store.landing_bucket, store.lake_bucket):
                S3Objects(store, bucket, Timeouts()).ensure_bucket()
            made = Platform(
                Settings(
                    object_store=store,
                    catalog_uri=f"sqlite:///{root}/catalog.db",
                    mart_uri=f"sqlite:///{root}/mart.db",
                    registry_uri=f"sqlite:///{root}/registry.db",
                )
            )
            made.mart.create()
            yield made
        finally:
            server.terminate()
            server.wait()


def main(row: str, side: str, scale: str) -> None:
    module = import_module(f"benchmarks.rows.{row}")
    (ROOT / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "tmp") as folder:
        bench = Side(int(scale), Path(folder))
        says = module.SIDES[side](bench)
    found = {
        "seconds": bench.seconds,
        "processor": bench.processor,
        "peak_mib": bench.peak_mib,
        "others": bench.others,
        **says,
    }
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
