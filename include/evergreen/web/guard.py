"""What every answer carries and every form must show: security headers, signed single-use forms, the origin check."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import Request

from include.evergreen.errors import Refused

FORM_HOURS = 12
"""How long an open form may be sent."""
MAX_FORM_BYTES = 16_384
FORM_TYPE = "application/x-www-form-urlencoded"

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-src 'self'; frame-ancestors 'self'; form-action 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # no-referrer would make the Origin of our own forms "null"
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
"""Of our own pages."""

RAW_HEADERS: Mapping[str, str] = {
    **HEADERS,
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
}
"""Of reports that other tools drew from the data: they may draw, they may not act as the viewer."""

DOWNLOAD_HEADERS: Mapping[str, str] = {**HEADERS, "Content-Security-Policy": "default-src 'none'; sandbox"}


@dataclass(frozen=True)
class Form:
    """A form that was sent and is genuine. `nonce` names this one opening of it, at `opened`."""

    nonce: str
    opened: dt.datetime
    fields: Mapping[str, str]

    def text(self, name: str, longest: int = 500, shortest: int = 0) -> str:
        """A field, trimmed; without control characters. Raises Refused when its length is out of bounds."""
        found = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", self.fields.get(name, "")).strip()
        if not shortest <= len(found) <= longest:
            raise Refused(f"{name}: expected {shortest or 'up'} to {longest} characters, found {len(found)}")
        return found


def _mac(secret: bytes, *parts: str) -> str:
    """Of the parts, each with its length, so that no two lists of parts read the same."""
    said = "".join(f"{len(part)}:{part}" for part in parts).encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, b"evergreen form " + said, hashlib.sha256)[:24]).decode()


def sign(secret: bytes, user: str, purpose: str, now: float | None = None) -> str:
    """A token for one opening of one form by one user: issued.nonce.mac."""
    issued, nonce = format(int(time.time() if now is None else now), "x"), secrets.token_hex(8)
    return f"{issued}.{nonce}.{_mac(secret, user, purpose, issued, nonce)}"


def verify(secret: bytes, user: str, purpose: str, token: str, now: float | None = None) -> tuple[str, dt.datetime]:
    """(nonce, when it was opened) of a token that `sign` made for the same user and purpose.

    Raises:
        Refused: it was made for another, it was changed, or it is too old.
    """
    found = re.fullmatch(r"([0-9a-f]{1,12})\.([0-9a-f]{16})\.([\w-]{32})", token, re.ASCII)
    if found is None or not hmac.compare_digest(_mac(secret, user, purpose, *found.group(1, 2)), found.group(3)):
        raise Refused("this form was not opened here by you: open it again and send it from there")
    issued = int(found.group(1), 16)
    age = (time.time() if now is None else now) - issued
    if not -60 <= age <= FORM_HOURS * 3600:
        raise Refused(f"this form was opened more than {FORM_HOURS} hours ago: open it again")
    return found.group(2), dt.datetime.fromtimestamp(issued, dt.UTC)


def same_origin(request: Request, known: Iterable[str]) -> bool:
    """Whether a browser says that one of our own pages sent the request. Clients that are no browser say nothing."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = request.headers.get("origin")
    return origin is None or origin in {f"{request.url.scheme}://{request.headers.get('host', '')}", *known}


async def sent_form(request: Request, secret: bytes, user: str, purpose: str, known: Iterable[str]) -> Form:
    """The form in a POST.

    Raises:
        Refused: from another site, not a form, too large, or not opened by this user for this purpose.
    """
    if not same_origin(request, known):
        raise Refused("this request came from another site")
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != FORM_TYPE:
        raise Refused(f"expected a form ({FORM_TYPE})")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise Refused(f"expected a form of at most {MAX_FORM_BYTES} bytes")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20, errors="strict"))
    except ValueError as error:
        raise Refused("expected a form in UTF-8 with at most 20 fields") from error
    return Form(*verify(secret, user, purpose, fields.pop("token", "")), fields)
