"""Forms that were not opened here, by this user, for this purpose, are refused."""

from __future__ import annotations

import datetime as dt

import pytest
from starlette.requests import Request

from include.evergreen.errors import Refused
from include.evergreen.web import guard

SECRET = b"a secret"
NOON = 1_700_000_000.0


def request(**headers: str) -> Request:
    given = {"host": "pages.test", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(
        {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "server": ("pages.test", 80),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
    )


def test_a_token_is_good_for_its_user_and_purpose_only() -> None:
    token = guard.sign(SECRET, "oncall", "retrain a", NOON)
    nonce, opened = guard.verify(SECRET, "oncall", "retrain a", token, NOON + 60)
    assert len(nonce) == 16
    assert opened == dt.datetime.fromtimestamp(NOON, dt.UTC)
    for secret, user, purpose in (
        (b"another", "oncall", "retrain a"),
        (SECRET, "admin", "retrain a"),
        (SECRET, "oncall", "retrain b"),
    ):
        with pytest.raises(Refused, match="not opened here by you"):
            guard.verify(secret, user, purpose, token, NOON + 60)


def test_parts_cannot_be_moved_between_user_and_purpose() -> None:
    token = guard.sign(SECRET, "on", "callretrain", NOON)
    with pytest.raises(Refused):
        guard.verify(SECRET, "oncall", "retrain", token, NOON)


@pytest.mark.parametrize("token", ["", "x", "1.2.3", "6553f100.0123456789abcdef." + "A" * 32, "é.é.é"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(Refused):
        guard.verify(SECRET, "oncall", "retrain a", token, NOON)


@pytest.mark.parametrize("later", [guard.FORM_HOURS * 3600 + 1, -3600])
def test_a_token_has_its_time(later: float) -> None:
    token = guard.sign(SECRET, "oncall", "retrain a", NOON)
    with pytest.raises(Refused, match="hours ago"):
        guard.verify(SECRET, "oncall", "retrain a", token, NOON + later)


def test_two_openings_have_two_nonces() -> None:
    first, second = (guard.sign(SECRET, "oncall", "retrain a", NOON) for _ in range(2))
    assert guard.verify(SECRET, "oncall", "retrain a", first, NOON) != guard.verify(
        SECRET, "oncall", "retrain a", second, NOON
    )


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"origin": "http://pages.test"}, True),
        ({"origin": "https://airflow.example.org"}, True),
        ({"sec_fetch_site": "same-origin", "origin": "http://pages.test"}, True),
        ({"origin": "http://evil.test"}, False),
        ({"origin": "null"}, False),
        ({"origin": "https://pages.test"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site", "origin": "http://pages.test"}, False),
        ({"sec_fetch_site": "none"}, False),
    ],
)
def test_only_our_own_pages_send_forms(headers: dict[str, str], own: bool) -> None:
    assert guard.same_origin(request(**headers), {"https://airflow.example.org"}) is own


def test_fields_are_trimmed_and_bounded() -> None:
    form = guard.Form("n", dt.datetime.now(dt.UTC), {"note": "  two\x00 words\r\n ", "long": "x" * 11})
    assert form.text("note") == "two words"
    with pytest.raises(Refused, match="expected 3 to 10 characters, found 11"):
        form.text("long", 10, shortest=3)
    with pytest.raises(Refused, match="found 0"):
        form.text("absent", 10, shortest=1)
