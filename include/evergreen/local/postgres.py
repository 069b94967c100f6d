"""A PostgreSQL server from the installed programs, on loopback, for a cluster of processes."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from include.evergreen.errors import SettingsError
from include.evergreen.local.layout import LOOPBACK

ADMIN = "postgres"


def programs() -> Path:
    """The folder of the newest installed server's programs. Raises SettingsError."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        raise SettingsError("expected PostgreSQL's programs, found none: `make cluster-tools` installs them")
    return found[-1].parent if found else Path(str(on_path)).parent


def owner() -> pwd.struct_passwd:
    """Who runs the server: it refuses to run as root."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def as_owner() -> dict[str, Any]:
    """Arguments of `subprocess` that run a program as the owner, with nothing of this environment."""
    found = owner()
    who = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    return {"env": {"PATH": os.defpath, "LC_ALL": "C", "HOME": found.pw_dir}, **who}


def home(var: Path) -> Path:
    """Where the server of a `var` keeps its files: `var` itself is closed to a server that is not run by its owner."""
    if os.geteuid() != 0:
        return var / "postgres"
    return Path(tempfile.gettempdir()) / f"evergreen-postgres-{hashlib.sha256(str(var).encode()).hexdigest()[:16]}"


def make(folder: Path, password: str) -> None:
    """Make the server's files unless they are there. Raises SettingsError when the folder is another user's."""
    found = owner()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid not in {found.pw_uid, os.geteuid()}:
        raise SettingsError(f"{folder}: expected a folder of {found.pw_name}, found another's")
    os.chown(folder, found.pw_uid, found.pw_gid)
    if (folder / "data" / "PG_VERSION").is_file():
        return
    told = folder / "password"
    told.touch(mode=0o600)
    told.write_text(password, encoding="utf-8")
    os.chown(told, found.pw_uid, found.pw_gid)
    try:
        command = [str(programs() / "initdb"), f"--pgdata={folder / 'data'}", f"--username={ADMIN}", "--no-sync"]
        command += ["--auth=scram-sha-256", f"--pwfile={told}", "--encoding=UTF8", "--locale=C"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, **as_owner())
    finally:
        told.unlink()


def command(folder: Path, port: int) -> list[str]:
    """argv of the server: TCP on loopback only, no socket file. A commit is on disk when it is answered."""
    options = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return [str(programs() / "postgres"), "-D", str(folder / "data"), *settings]


def ready(port: int) -> bool:
    """Whether the server takes connections."""
    probe = [str(programs() / "pg_isready"), "--quiet", f"--host={LOOPBACK}", f"--port={port}", "--timeout=2"]
    return subprocess.run(probe, check=False).returncode == 0
