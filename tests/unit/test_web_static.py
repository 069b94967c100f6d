"""What is shipped: the chart library unchanged, its licence, nothing inline, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path

from include.evergreen.web.pages import STATIC

WEB = Path(str(files("include.evergreen.web")))
TEMPLATES = sorted((WEB / "templates").glob("*.html"))


def test_the_chart_library_is_what_its_readme_says() -> None:
    folder = WEB / "static/uplot"
    listed = dict(re.findall(r"`(uPlot\.[\w.]+)` \| `([0-9a-f]{64})`", (folder / "README.md").read_text()))
    assert set(listed) == {"uPlot.iife.min.js", "uPlot.min.css"}
    for name, checksum in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert "1.6.32" in (folder / "uPlot.iife.min.js").read_text()[:400]


def test_every_listed_file_is_there_and_every_file_is_listed() -> None:
    found = {path.relative_to(WEB / "static").as_posix() for path in (WEB / "static").rglob("*") if path.is_file()}
    assert found - {"uplot/README.md", "uplot/LICENSE"} == set(STATIC)


def test_templates_hold_no_inline_script_or_style() -> None:
    assert len(TEMPLATES) > 15
    for path in TEMPLATES:
        text = path.read_text(encoding="utf-8")
        for script in re.findall(r"<script[^>]*>[^<]*", text):
            assert re.fullmatch(r'<script src="\{\{ base \}\}/static/[\w./]+"( defer)?>', script), (path.name, script)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path.name


def test_nothing_comes_from_elsewhere() -> None:
    for path in [*TEMPLATES, WEB / "static/page.js", WEB / "static/theme.js", WEB / "static/style.css"]:
        assert "//" not in re.sub(
            r"^\s*//.*$|\s// .*$|http://www\.w3\.org/2000/svg", "", path.read_text("utf-8"), flags=re.M
        ), path.name


def test_only_escaped_text_is_marked_safe() -> None:
    """`|safe` is for literals of the template."""
    for path in TEMPLATES:
        for before in re.findall(r"(\S*)\|safe", path.read_text(encoding="utf-8")):
            assert before.endswith("'"), (path.name, before)
