"""Facts as text and shapes: dates, numbers, sparklines, the data of the timeline. Pure; markup is escaped here."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from include.evergreen.health.facts import Band, Mark, Point

DASH = "\u2013"

VERDICTS: Mapping[str, tuple[str, str, str]] = {
    "ok": ("OK", "well", "circle"),
    "covariate_drift": ("Covariate drift", "uneasy", "wave"),
    "label_drift": ("Label drift", "uneasy", "half"),
    "prediction_drift": ("Prediction drift", "unwell", "diamond"),
    "performance_drop": ("Performance drop", "ill", "fall"),
    "broken_data": ("Broken data", "ill", "cross"),
    "unknown": ("Never monitored", "quiet", "dashed"),
}
"""verdict -> (its words, its tone, its shape). Tones colour it; words and shapes say it without colour."""

OUTCOMES: Mapping[str, str] = {
    **dict.fromkeys(("accepted", "promoted", "approved", "ok", "equal", "allowed", "published"), "well"),
    **dict.fromkeys(("refused", "rejected", "expired", "cannot_decide", "label_drift", "covariate_drift"), "uneasy"),
    **dict.fromkeys(("halted", "rolled_back", "prediction_drift"), "unwell"),
    **dict.fromkeys(("broken_data", "performance_drop", "different", "stopped"), "ill"),
}
"""outcome of a decision, or status of a partition -> tone; others are quiet."""


@dataclass(frozen=True)
class Look:
    """How a verdict is shown."""

    words: str
    tone: str
    shape: str


def look(verdict: str) -> Look:
    """A verdict of another age is shown by its own words, quietly."""
    return Look(*VERDICTS.get(verdict, (verdict.replace("_", " ").capitalize(), "quiet", "dashed")))


def tone(outcome: str) -> str:
    return OUTCOMES.get(outcome, "quiet")


def words(name: str) -> str:
    """`retrain_halted` as words."""
    return name.replace("_", " ")


def day(value: dt.date | None) -> str:
    """17 Jun 2013."""
    return DASH if value is None else f"{value.day} {value:%b %Y}"


def short_day(value: dt.date | None) -> str:
    """17 Jun."""
    return DASH if value is None else f"{value.day} {value:%b}"


def moment(value: dt.datetime | None) -> str:
    """17 Jun 2013, 04:05 UTC."""
    return DASH if value is None else f"{day(value)}, {value:%H:%M} UTC"


def number(value: float | None, digits: int = 3) -> str:
    """0.731; a dash for what is not known."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """+0.021, or -0.004 with a real minus."""
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "\u2212")


def percent(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def count(value: int | None) -> str:
    """12 345, with a narrow space that does not break."""
    return DASH if value is None else f"{value:,}".replace(",", "\u202f")


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 day`, `2 days`."""
    return f"{count(number)}\u00a0{one if number == 1 else many or one + 's'}"


def sparkline(points: Sequence[Point], band: Band, width: int = 132, height: int = 30) -> Markup:
    """AUC of matured cohorts as a line over the champion's reference band. A gap where a cohort has none."""
    values = [point.auc for point in points]
    known = [value for value in values if value is not None]
    if not known:
        return Markup('<span class="none">no matured labels</span>')
    bounds = [bound for bound in (band.low, band.value, band.high) if bound is not None]
    low, high = min([*known, *bounds]), max([*known, *bounds])
    spread = max(high - low, 0.02)
    low, high = (low + high - spread) / 2, (low + high + spread) / 2
    step = (width - 8) / max(len(values) - 1, 1)

    def at(value: float) -> float:
        return round(3 + (height - 6) * (1 - (value - low) / (high - low)), 1)

    path, drawing = [], False
    for index, value in enumerate(values):
        if value is not None:
            path.append(f"{'L' if drawing else 'M'}{4 + index * step:.1f} {at(value)}")
        drawing = value is not None
    last = max(index for index, value in enumerate(values) if value is not None)
    parts = []
    if band.low is not None and band.high is not None:
        top, bottom = at(band.high), at(band.low)
        parts.append(f'<rect class="band" x="0" y="{top}" width="{width}" height="{max(bottom - top, 1):.1f}" rx="2"/>')
    if band.value is not None:
        parts.append(f'<line class="reference" x1="0" x2="{width}" y1="{at(band.value)}" y2="{at(band.value)}"/>')
    says = f"AUC of {len(known)} matured dates, {number(known[0])} to {number(known[-1])}"
    if band.low is not None and band.high is not None:
        says += f"; reference {number(band.low)} to {number(band.high)}"
    below = band.low is not None and known[-1] < band.low
    parts.append(f'<path class="line" d="{"".join(path)}"/>')
    parts.append(
        f'<circle class="{"last below" if below else "last"}" cx="{4 + last * step:.1f}" cy="{at(known[-1])}" r="2.6"/>'
    )
    return Markup(  # noqa: S704 - numbers and our own words only
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{says}">{"".join(parts)}</svg>'
    )


def heat_level(score: float | None) -> str:
    """A class for a drift score in units of its threshold: calm below half of it, three steps above it."""
    if score is None or not math.isfinite(score):
        return "h-none"
    bounds = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
    return f"h{sum(score >= bound for bound in bounds)}"


def timeline(
    points: Sequence[Point],
    marks: Sequence[Mark],
    verdicts: Mapping[dt.date, str],
    band: Band,
    drift: Mapping[dt.date, float | None],
) -> dict[str, Any]:
    """What the timeline draws, as plain JSON: one entry per date, oldest first.

    Returns:
        {days, auc, drift, versions, verdicts, band, marks}: `days` are ISO dates, `drift` the worst column's score in
        units of its threshold, `marks` [{day, kind, text, link}].
    """
    days = sorted({*(point.as_of for point in points), *verdicts, *(mark.as_of for mark in marks)})
    of = {point.as_of: point for point in points}
    return {
        "days": [one.isoformat() for one in days],
        "auc": [of[one].auc if one in of else None for one in days],
        "drift": [drift.get(one) for one in days],
        "versions": [of[one].version if one in of else None for one in days],
        "verdicts": [look(verdicts[one]).words if one in verdicts else None for one in days],
        "band": [band.low, band.value, band.high],
        "marks": [
            {"day": mark.as_of.isoformat(), "kind": mark.kind, "text": mark.text, "link": mark.link} for mark in marks
        ],
    }


def worst(dates: Sequence[dt.date], score: Mapping[str, Sequence[float | None]]) -> dict[dt.date, float | None]:
    """The worst column's score of each date; None where no column has one."""
    found: dict[dt.date, float | None] = {}
    for index, date in enumerate(dates):
        known = [row[index] for row in score.values()]
        found[date] = max((one for one in known if one is not None), default=None)
    return found
