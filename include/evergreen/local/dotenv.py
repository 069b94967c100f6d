"""`make env`: `.env` for `docker-compose.yaml`, every secret random. Standard library only.

python -m include.evergreen.local.dotenv [PATH]
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import sys
from pathlib import Path

from include.evergreen.errors import Refused
from include.evergreen.local.layout import PROJECT

EXAMPLE = PROJECT / ".env.example"
SECRET = re.compile(r"^([A-Z0-9_]*(?:PASSWORD|KEY|SECRET))=$", re.MULTILINE)


def secret(name: str) -> str:
    """A random value that needs no quoting in a URL, a header or a file; a Fernet key where one is due."""
    if "FERNET" in name:
        return base64.urlsafe_b64encode(os.urandom(32)).decode()
    return secrets.token_hex(64 if "JWT" in name else 24)  # HS512 signs with at least 64 bytes


def create(path: Path) -> None:
    """Write the example with its secrets filled in, readable by its owner only.

    Raises:
        Refused: the file exists: its secrets are in use.
    """
    text = SECRET.sub(lambda match: f"{match[1]}={secret(match[1])}", EXAMPLE.read_text(encoding="utf-8"))
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(f"{path}: expected no file, found one; databases and volumes know its secrets") from None
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(text)


def read(path: Path) -> dict[str, str]:
    """The variables of a file that `create` wrote."""
    return dict(re.findall(r"^([A-Za-z0-9_]+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def main(argv: list[str]) -> int:
    path = Path(argv[0]) if argv else PROJECT / ".env"
    try:
        create(path)
    except Refused as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{path}: random secrets, mode 600")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
