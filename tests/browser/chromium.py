"""Debian's Chromium under Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCREENSHOTS = Path(os.environ.get("EVERGREEN_SCREENSHOTS") or Path(__file__).parents[2] / "var" / "screenshots")


def executable() -> str | None:
    """Where Chromium is; `make test-tools` installs it."""
    return os.environ.get("EVERGREEN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        try:
            yield opened
        finally:
            opened.close()


class Watch:
    """What a page did that it must not: dialogs, errors, refused scripts, requests elsewhere, `window.__hacked`."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page, self.origin = page, origin
        self.seen: list[str] = []
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.seen.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _dialog(self, dialog: Any) -> None:
        self.seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        if message.type == "error" and "status of 4" not in message.text:
            self.seen.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:", "about:")):
            self.seen.append(f"request: {request.url}")

    def check(self) -> None:
        """Raises AssertionError with everything that was seen."""
        hacked = self.page.evaluate("window.__hacked")
        assert hacked is None, f"a script of the data ran on {self.page.url}"
        assert not self.seen, f"{self.page.url}: {self.seen}"


def shoot(page: Page, name: str, folder: Path = SCREENSHOTS) -> None:
    """The whole page as it is, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def shoot_all(page: Page, name: str, folder: Path = SCREENSHOTS) -> None:
    """Light and dark, desktop and phone. Leaves the page at desktop width in light."""
    for theme in ("dark", "light"):
        page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        page.evaluate("dispatchEvent(new StorageEvent('storage', {key: 'theme'}))")
        for size in ("phone", "desktop"):
            width, height = SIZES[size]
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            shoot(page, f"{name}-{theme}-{size}", folder)
