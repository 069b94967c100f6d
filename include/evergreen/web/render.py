"""Templates to pages: Jinja2 with everything escaped."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from include.evergreen.web import draw

FILTERS = (
    *("look", "tone", "words", "heat_level", "sparkline"),
    *("day", "short_day", "moment", "number", "signed", "percent", "count", "plural"),
)

LINK = re.compile(r'href="([a-z][a-z-]*)\.md(?:#[\w-]*)?"')


@cache
def environment() -> Environment:
    """The one environment of this process."""
    made = Environment(
        loader=PackageLoader("include.evergreen.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in FILTERS:
        made.filters[name] = getattr(draw, name)
    return made


def render(template: str, **values: Any) -> str:
    return environment().get_template(template).render(**values)


@cache
def _commonmark() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def markdown(text: str) -> Markup:
    """Markdown as markup. HTML in it stays text, and a link to another runbook leads to its page."""
    return Markup(LINK.sub(r'href="\1"', _commonmark().render(text)))  # noqa: S704 - its HTML is escaped
