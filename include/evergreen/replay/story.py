"""What the time machine found, as `docs/time-machine.md` and its plot: the same journal gives the same bytes."""

from __future__ import annotations

import datetime as dt
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.evergreen.replay.machine import DETECT_DAYS, Life, Scenario
from include.evergreen.specs import ModelSpec

AFTER_WEEKS = 4
"""Whole weeks after a promotion that say whether it was right."""
MAX_LOSS, MAX_TRAININGS, MAX_ALARMS = 0.005, 0.5, 1.0
COLOURS = {"never": "#9a9a9a", "monthly": "#4c9be8", "weekly": "#e8a24c", "governed": "#2f9e5f"}


@dataclass(frozen=True)
class Found:
    """Everything that was run. `faults` holds (scenario, life) pairs, the one without a fault first."""

    spec: ModelSpec
    policies: list[tuple[Scenario, Life]]
    faults: list[tuple[Scenario, Life]]
    shifts: list[dict[str, Any]]
    placebo: dict[str, Any]
    selftest: dict[str, Any]


def mean_weekly(life: Life) -> float:
    """Mean AUC over the weeks."""
    return statistics.mean(value for week, value in life.auc.items() if week != "all" and value is not None)


def trainings(life: Life) -> list[dict[str, Any]]:
    """Every training but that of the first champion."""
    return life.trainings[1:]


def hindsight(life: Life) -> list[dict[str, Any]]:
    """Per promotion: the mean weekly AUC of the promoted version and of the one it replaced in the weeks after."""
    found = []
    for training in life.promotions()[1:]:
        new, old = (life.versions.get(str(training[name]), {}) for name in ("version", "champion"))
        start = dt.date.fromisoformat(training["effective_from"]).isocalendar()
        first = f"{start.year}-W{start.week:02d}"
        weeks = [w for w in sorted(new) if w not in ("all", first) and w > first and new[w] is not None][:AFTER_WEEKS]
        pairs = [(new[w], old[w]) for w in weeks if old.get(w) is not None]
        gain = statistics.mean(a - b for a, b in pairs if a is not None and b is not None) if pairs else None
        found.append({"as_of": training["as_of"], "version": training["version"], "gain": gain, "weeks": len(pairs)})
    return found


def detection(scenario: Scenario, life: Life) -> tuple[int | None, str]:
    """(days from the fault to the first sign of broken data, what it was); (None, what was seen) without one."""
    fault = scenario.fault
    if fault is None:
        return None, ""
    stopped = [(dt.date.fromisoformat(day), why) for day, why in life.stopped.items()]
    broken = [
        (dt.date.fromisoformat(day), "; ".join(found["guilty"][:3]) or found["reasons"][0])
        for day, found in life.verdicts.items()
        if found["verdict"] == "broken_data"
    ]
    signs = sorted((day, f"stopped: {why}") for day, why in stopped if day >= fault.first)
    signs += sorted((day, f"broken_data: {why}") for day, why in broken if day >= fault.first)
    if not signs:
        return None, "nothing"
    day, what = min(signs, key=lambda sign: sign[0])
    return (day - fault.first).days, what


def asked(scenario: Scenario, life: Life) -> list[str]:
    """Dates of trainings from the fault on."""
    return [t["as_of"] for t in trainings(life) if scenario.fault and t["as_of"] >= scenario.fault.first.isoformat()]


def bars(found: Found) -> list[tuple[str, str, bool]]:
    """(what was promised, what was measured, whether it holds)."""
    lives = {scenario.name: life for scenario, life in found.policies}
    governed, weekly = lives["governed"], lives["weekly"]
    loss = mean_weekly(weekly) - mean_weekly(governed)
    spent = len(trainings(governed)) / max(len(trainings(weekly)), 1)
    clean = {t["as_of"] for t in trainings(found.faults[0][1])} if found.faults else set()
    extra = {s.name: [day for day in asked(s, life) if day not in clean] for s, life in found.faults[1:]}
    promoted = {
        s.name: [t["as_of"] for t in life.promotions()[1:] if t["as_of"] in extra[s.name]]
        for s, life in found.faults[1:]
    }
    missed = [s for s in found.shifts if s["delay"] is None]
    noticed = len(found.shifts) - len(missed)
    who = ", ".join(sorted({s["feature"] for s in missed})) or "none missed"
    return [
        (
            f"governed loses at most {MAX_LOSS} mean weekly AUC to weekly",
            f"{loss:+.4f} ({mean_weekly(governed):.4f} against {mean_weekly(weekly):.4f})",
            loss <= MAX_LOSS,
        ),
        (
            "with at most half of its trainings",
            f"{len(trainings(governed))} of {len(trainings(weekly))}",
            spent <= MAX_TRAININGS,
        ),
        (
            "no training on any data fault",
            _named(extra) or "none that the same days without a fault did not have",
            not any(extra.values()),
        ),
        ("no promotion on any data fault", _named(promoted) or "none", not any(promoted.values())),
        (
            f"every shift of half a standard deviation or more in a top-10 feature noticed within {DETECT_DAYS} days",
            f"{noticed} of {len(found.shifts)} ({who})",
            not missed,
        ),
        (
            f"at most {MAX_ALARMS:g} false alarm a month on placebo months",
            f"{found.placebo['a_month']:.2f} on {found.placebo['months']} months drawn anew; "
            f"{found.spec.calibration.false_alarms if found.spec.calibration else float('nan'):.2f} at calibration",
            found.placebo["a_month"] <= MAX_ALARMS,
        ),
        (
            "no wrong promotion of twins and worse models beyond the gate's confidence",
            f"{found.selftest['false_accepts']:.1%} of {found.selftest['trials']} trials a rival "
            f"({1 - found.spec.gate.confidence:.0%} allowed)",
            found.selftest["false_accepts"] <= 1 - found.spec.gate.confidence,
        ),
    ]


def _named(days: dict[str, list[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in days.items() if found)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    plain = [[" ".join(cell.replace("|", "/").split()) for cell in row] for row in [head, *rows]]
    top, *rest = (f"| {' | '.join(row)} |" for row in plain)
    return [top, f"|{'---|' * len(head)}", *rest]


def _policy_rows(found: Found) -> list[list[str]]:
    rows = []
    for scenario, life in found.policies:
        after = hindsight(life)
        judged = [p for p in after if p["gain"] is not None]
        wrong = [p for p in judged if p["gain"] < 0]
        asked_for, won = trainings(life), life.promotions()[1:]
        rows.append(
            [
                scenario.name,
                f"{mean_weekly(life):.4f}",
                f"{life.auc['all']:.4f}",
                str(len(asked_for)),
                str(len(won)),
                str(len(asked_for) - len(won)),
                f"{len(wrong)} of {len(judged)}",
                f"{statistics.mean(p['gain'] for p in judged):+.4f}" if judged else "",
            ]
        )
    return rows


def text(found: Found, picture: str) -> str:
    """The page; `picture` is the file name of the plot."""
    first, last = found.policies[0][0].first, found.policies[0][0].last
    spec, calibration = found.spec, found.spec.calibration
    lines = [
        "# The time machine",
        "",
        f"Written by `make time-machine`. The life of `{spec.name}` from {first} to {last}, day by day, in one "
        "process, with the functions that the DAGs call; seeded, so that it comes out the same again. Thresholds were "
        f"calibrated and the first champion trained on what came before {first}. Every training goes through the gate, "
        "whatever the policy.",
        "",
        "## What was promised",
        *_table(
            ["bar", "measured", "met"],
            [[bar, measured, "yes" if met else "**no**"] for bar, measured, met in bars(found)],
        ),
        "",
        "## Policies",
        *_table(
            [
                "policy",
                "mean weekly AUC",
                "AUC of all rows",
                "trainings",
                "promotions",
                "lost to the champion",
                "wrong promotions",
                "gain of a promotion in hindsight",
            ],
            _policy_rows(found),
        ),
        "",
        f"A promotion is wrong when, over the {AFTER_WEEKS} whole weeks after it, the version that it replaced would "
        "have had the better mean weekly AUC; both are measured on all rows of those weeks, which nobody had then.",
        "",
        f"![AUC by week]({picture})",
        "",
        "## What the governor did",
        *_table(["as of", "verdict", "answer of the gate", "why"], _governed_rows(found)),
        "",
        f"Verdicts: {_verdicts(_governed(found))}.",
        "",
    ]
    if found.faults:
        lines += [
            "## Faults of known date",
            f"Governed, from {found.faults[0][0].first} to {found.faults[0][0].last}; the fault is on "
            f"{found.faults[1][0].fault.first if found.faults[1][0].fault else ''} or from then on.",
            "",
            *_table(
                [
                    "fault",
                    "noticed after",
                    "as",
                    "trainings from then on",
                    "without the fault",
                    "verdicts from then on",
                ],
                _fault_rows(found),
            ),
            "",
        ]
    lines += [
        "## Shifts",
        f"Every number among the ten most important features (by mean absolute SHAP), shifted on "
        f"{len({s['date'] for s in found.shifts})} dates by half a standard deviation up and down, and by a whole one. "
        "Categories have no standard deviation.",
        "",
        *_table(
            ["feature", "noticed within 3 days", "mean delay in days", "named first", "verdict"], _shift_rows(found)
        ),
        "",
        "What is missed is what no habit of the training days speaks of: columns whose mean does not follow from the "
        "others and whose values seldom repeat ([ADR 15](adr/0015-triage-before-action.md)). Their weeks differ by "
        "more than the shift.",
        "",
        "## False alarms",
        f"Placebo months: a model trained without a part of the history watches weeks of that part. On "
        f"{found.placebo['months']} months drawn anew: {found.placebo['a_month']:.2f} a month "
        f"({', '.join(f'{kind} {rate:.2f}' for kind, rate in found.placebo['by_kind'].items())}), "
        f"{found.placebo['alarm_days']:.1%} of days in alarm.",
        "",
        "## The gate",
        f"As of {calibration.as_of if calibration else first}, {found.selftest['trials']} resamples of "
        f"{found.selftest['fresh_days']} fresh and {found.selftest['frozen_days']} frozen days for each rival.",
        "",
        *_table(["rival", "accepted", "mean gain"], found.selftest["rows"]),
        "",
        f"False rejects: {found.selftest['false_rejects']:.1%}. The smallest gain that is accepted in four of five "
        f"trials: {found.selftest['smallest_gain']:.4f} {spec.gate.metric}.",
        "",
    ]
    return "\n".join(lines)


def _governed(found: Found) -> Life:
    return next(life for scenario, life in found.policies if scenario.policy == "governed")


def _governed_rows(found: Found) -> list[list[str]]:
    life, rows = _governed(found), []
    for t in trainings(life):
        gain = next((r for r in t["reasons"] if "champion" in r), t["reasons"][0])
        answer = f"version {t['version']} promoted" if t["effective_from"] else t["outcome"].replace("_", " ")
        rows.append([t["as_of"], t["reason"], answer, gain])
    return rows


def _verdicts(life: Life) -> str:
    kinds = [found["verdict"] for found in life.verdicts.values()]
    ranked = sorted(sorted(set(kinds)), key=kinds.count, reverse=True)
    return ", ".join(f"{kind} on {kinds.count(kind)} days" for kind in ranked)


def _fault_rows(found: Found) -> list[list[str]]:
    clean = [t["as_of"] for t in trainings(found.faults[0][1])]
    rows = []
    for scenario, life in found.faults[1:]:
        fault = scenario.fault
        if fault is None:
            continue
        days, what = detection(scenario, life)
        after = Life("after", verdicts={d: v for d, v in life.verdicts.items() if d >= fault.first.isoformat()})
        rows.append(
            [
                f"{fault.name}: {fault.says}",
                f"{days} days" if days is not None else "harmless, nothing to notice" if fault.harmless else "never",
                what[:160],
                ", ".join(asked(scenario, life)) or "none",
                ", ".join(day for day in clean if day >= fault.first.isoformat()) or "none",
                _verdicts(after),
            ]
        )
    return rows


def _shift_rows(found: Found) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(s["feature"] for s in found.shifts):
        mine = [s for s in found.shifts if s["feature"] == name]
        seen = [s for s in mine if s["delay"] is not None]
        rows.append(
            [
                f"`{name}`",
                f"{len(seen)} of {len(mine)}",
                f"{statistics.mean(s['delay'] for s in seen):.1f}" if seen else "",
                f"{sum(s['named'] for s in seen)} of {len(seen)}",
                ", ".join(sorted({s["verdict"] for s in seen})),
            ]
        )
    return rows


def plot(found: Found, path: Path) -> None:
    """AUC by week and policy, promotions as dots; SVG without a date in it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "evergreen", "font.size": 9, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
        for scenario, life in found.policies:
            line: dict[Any, float] = {
                dt.date.fromisocalendar(int(week[:4]), int(week[6:]), 1): value
                for week, value in sorted(life.auc.items())
                if week != "all" and value is not None
            }
            colour = COLOURS[scenario.policy]
            wide = 2.0 if scenario.policy == "governed" else 1.2
            axes.plot([*line], [*line.values()], color=colour, linewidth=wide, label=scenario.name)
            promoted = [dt.date.fromisoformat(p["effective_from"]) for p in life.promotions()[1:]]
            mondays: list[Any] = [day - dt.timedelta(days=day.weekday()) for day in promoted]
            dots = [day for day in mondays if day in line]
            axes.scatter(dots, [line[day] for day in dots], color=colour, s=28, zorder=3)
        axes.set_ylabel("AUC of the week")
        axes.set_title("Dots: weeks with a promotion", fontsize=9, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=4, loc="lower right")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
