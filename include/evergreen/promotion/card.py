"""The model card: what a version is, how good, on which rows, and why it was accepted or refused.

`card` gathers it as plain JSON; `page` draws that as one HTML page without a script or an outside resource; `text` says
it in a few lines. The same inputs give the same bytes.
"""

from __future__ import annotations

import datetime as dt
import html
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle

if TYPE_CHECKING:
    from include.evergreen.training.rows import Rows

HOLDOUTS = {
    "fresh": "the newest days: the challenger must gain",
    "frozen": "kept from every training: it must not lose",
    "pooled": "both together: floors, baseline, calibration, slices",
}
NAMES = {"auc": "AUC", "average_precision": "average precision", "log_loss": "log loss", "brier": "Brier score"}
LEAD = {"accepted": "Accepted", "refused": "Refused", "cannot_decide": "Cannot decide"}
SIGNS = {"accepted": "✓", "refused": "✕", "cannot_decide": "?"}
SHOWN_SLICES, SHOWN_BARS = 30, 15


# --- the facts -------------------------------------------------------------------------------------------------------


def shap_importance(bundle: ModelBundle, rows: Rows, most: int = 2000) -> dict[str, float]:
    """Mean absolute SHAP value per feature in log-odds, largest first, over at most `most` evenly taken rows.

    Empty without rows.
    """
    import numpy as np

    if rows.num_rows == 0:
        return {}
    taken = rows.take(np.linspace(0, rows.num_rows - 1, min(most, rows.num_rows)).astype("int64"))
    mean = np.abs(bundle.contributions(taken)[:, :-1].astype("float64")).mean(axis=0)
    return dict(_ranked(dict(zip(bundle.features, mean.tolist(), strict=True))))


def _ranked(shap: Mapping[str, float | None]) -> list[tuple[str, float]]:
    return sorted(((name, value or 0.0) for name, value in shap.items()), key=lambda item: (-item[1], item[0]))


def card(
    spec: ModelSpec,
    version: int,
    bundle: ModelBundle,
    decision: Mapping[str, Any],
    lineage: Mapping[str, Any],
    shap: Mapping[str, float],
) -> dict[str, Any]:
    """Everything worth knowing of one version, as plain JSON; a number that is not finite is null.

    Args:
        decision: {outcome, reasons, evidence} of the gate, as the ledger holds it.
        lineage: what the version is registered with.
        shap: see `shap_importance`.
    """
    facts, evidence = bundle.facts, decision["evidence"]
    measured = {name: evidence[name] for name in HOLDOUTS if evidence[name]}
    since, until = (dt.date.fromisoformat(facts[name]) for name in ("train_from", "trained_until"))
    validation_from = until - dt.timedelta(days=spec.training.validation_days - 1)
    found = {
        "model": spec.name,
        "version": version,
        "description": spec.description,
        "predicts": spec.label.description or spec.label.expression,
        "owner": spec.owner,
        "as_of": bundle.as_of,
        "outcome": decision["outcome"],
        "reasons": decision["reasons"],
        "metric": evidence["metric"],
        "confidence": evidence["confidence"],
        "champion_version": evidence["champion_version"],
        "data": {
            "source": spec.source,
            "train_from": facts["train_from"],
            "validation_from": validation_from,
            "trained_until": until,
            "rows": facts["rows"],
            "days": {
                "train": _days(spec, since, validation_from - dt.timedelta(days=1)),
                "validation": _days(spec, validation_from, until),
            },
            "positives": bundle.baseline,
            "holdouts": {
                name: {key: holdout[key] for key in ("first", "last", "days", "rows")}
                for name, holdout in measured.items()
            },
            "frozen_from": evidence.get("frozen_from"),
        },
        "features": [_feature(spec, facts, name, shap.get(name)) for name in bundle.features],
        "metrics": {
            name: {who: holdout[who] for who in ("challenger", "champion", "baseline")}
            for name, holdout in measured.items()
        },
        "gain": {
            name: {over: holdout[over] for over in ("over_champion", "over_baseline")}
            for name, holdout in measured.items()
        },
        "slices": evidence["slices"],
        "calibration": evidence["calibration"],
        "shap": dict(shap),
        "threshold": facts.get("threshold", spec.scoring.threshold),
        "costs": spec.costs.model_dump(mode="json") if spec.costs else None,
        "value": {who: (evidence["pooled"][who] or {}).get("value") for who in ("challenger", "champion", "baseline")}
        if spec.costs
        else None,
        "trees": facts["trees"],
        "params": facts["params"],
        "model_mb": evidence["model_mb"],
        "ms_per_1k": evidence["ms_per_1k"],
        "leak_rows": evidence["leak_rows"],
        "rules": evidence["rules"],
        "lineage": {
            **{key: value for key, value in lineage.items() if key not in ("spec", "decision", "decision_reasons")},
            "model_sha256": bundle.sha256,
        },
    }
    plain: dict[str, Any] = _plain(found)
    return {"verdict": verdict(plain), **plain}


def _days(spec: ModelSpec, first: dt.date, last: dt.date) -> int:
    """Days of a part of the training: the frozen ones are in none."""
    return sum(not spec.gate.frozen.holds(first + dt.timedelta(days=i)) for i in range((last - first).days + 1))


def _feature(spec: ModelSpec, facts: Mapping[str, Any], name: str, shap: float | None) -> dict[str, Any]:
    declared = spec.features.get(name)
    return {
        "name": name,
        "type": declared.type if declared else "",
        "description": declared.description if declared else "",
        "values": facts["categories"].get(name),
        "shap": shap,
    }


def _plain(value: Any) -> Any:
    """`value` as JSON holds it, keys in order: the same facts give the same page, from wherever they were read."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def verdict(card: Mapping[str, Any]) -> str:
    """The decision in one sentence."""
    outcome, who = card["outcome"], card["champion_version"]
    lead = LEAD.get(outcome, outcome)
    if outcome != "accepted":
        return f"{lead}: {card['reasons'][0].removeprefix('cannot decide: ')}"
    on, over = ("fresh", "over_champion") if who is not None else ("pooled", "over_baseline")
    told = f"{_said(card['gain'][on][over], card['metric'])} {_unit(card)}"
    rows = f"{card['data']['holdouts'][on]['rows']:,}"
    if who is None:
        return f"{lead}: beats the baseline by {told} on {rows} rows; there was no champion yet"
    return f"{lead}: beats champion {who} by {told} on the same {rows} fresh rows"


# --- words and numbers -----------------------------------------------------------------------------------------------


def _name(metric: str) -> str:
    return NAMES.get(metric, "saved per 1,000" if metric == "value" else metric)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unit(card: Mapping[str, Any]) -> str:
    if card["metric"] != "value":
        return _name(card["metric"])
    return " ".join(part for part in ((card["costs"] or {}).get("unit"), "per 1,000 rows") if part)


def _number(value: float | None, metric: str = "", sign: bool = False) -> str:
    if value is None:
        return "unknown"
    digits = 4 if metric != "value" else 1 if abs(value) < 100 else 0
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")  # noqa: RUF001 - a minus is as wide as a plus


def _bounds(estimate: Mapping[str, Any], metric: str = "", sign: bool = False) -> str:
    if estimate["low"] is None and estimate["high"] is None:
        return "bounds unknown"
    return f"[{_number(estimate['low'], metric, sign)}, {_number(estimate['high'], metric, sign)}]"


def _said(estimate: Mapping[str, Any], metric: str = "", sign: bool = False) -> str:
    return f"{_number(estimate['value'], metric, sign)} {_bounds(estimate, metric, sign)}"


def _dates(first: str, last: str) -> str:
    return f"{first} to {last}" if first else "none"


def _worst_first(slices: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    def gain(found: Mapping[str, Any]) -> float:
        value = (found["over_champion"] or {}).get("value")
        return math.inf if value is None else float(value)

    return sorted(slices, key=lambda found: (gain(found), found["column"], str(found["value"])))


def _champion(card: Mapping[str, Any]) -> str:
    return f"champion {card['champion_version']}"


# --- a few lines -----------------------------------------------------------------------------------------------------


MAX_TEXT = 500
"""Characters of one name or reason."""


def escaped(text: Any) -> str:
    """One line of plain text in Markdown: names and reasons hold values from the data."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    short = textwrap.shorten(line, MAX_TEXT, placeholder=" ...")
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&$])", r"\\\1", short)


def text(card: Mapping[str, Any]) -> str:
    """The card in about 15 lines of Markdown, for a request for approval."""
    card = _plain(card)
    metrics, data = card["metrics"]["pooled"], card["data"]
    who = ["challenger", *(["champion"] if metrics["champion"] is not None else []), "baseline"]
    head = {"challenger": f"version {card['version']}", "champion": _champion(card), "baseline": "baseline"}
    lines = [
        f"{escaped(card['model'])}, version {card['version']}, trained as of {card['as_of']}.",
        "",
        f"**{escaped(card['verdict'])}**",
        "",
        *(f"- {escaped(reason)}" for reason in card["reasons"]),
        "",
        f"| {data['holdouts']['pooled']['rows']:,} rows held out | {' | '.join(head[w] for w in who)} |",
        f"|---|{'---|' * len(who)}",
        *(
            f"| {_name(m)} | {' | '.join(_said(metrics[w][m], m) if m in (metrics[w] or {}) else '' for w in who)} |"
            for m in metrics["challenger"]
        ),
        "",
        f"- Trained on {data['rows']['train']:,} rows, {_dates(data['train_from'], data['trained_until'])}; "
        + "; ".join(
            f"{name} {held['rows']:,} rows, {_dates(held['first'], held['last'])}"
            for name, held in data["holdouts"].items()
            if name != "pooled"
        ),
    ]
    if card["shap"]:
        lines.append(f"- Leans most on {', '.join([name for name, _ in _ranked(card['shap'])][:5])}")
    compared = [found for found in card["slices"] if found["over_champion"]]
    if compared:
        worst = _worst_first(compared)[0]
        lines.append(
            f"- Weakest of {len(compared)} slices: {escaped(worst['column'])} = {escaped(worst['value'])}, gain "
            f"{_said(worst['over_champion'], card['metric'], sign=True)} on {worst['rows']:,} rows"
        )
    if card["lineage"].get("reason"):
        lines.append(f"- Trained because: {escaped(card['lineage']['reason'])}")
    return "\n".join(lines) + "\n"


# --- the page --------------------------------------------------------------------------------------------------------


class Html(str):
    """Text that is markup already; everything else is escaped."""


def _el(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element. Children are escaped unless they are `Html`; None is left out; `class_` is `class`."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{named}>{_join(children)}</{tag}>")


def _join(children: Iterable[Any]) -> Html:
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None))


STYLE = """
:root{color-scheme:light dark;--ink:#1b2420;--soft:#5c6963;--line:#dfe5e1;--back:#f4f6f4;--panel:#fff;
--accent:#1f7a4d;--good:#1f7a4d;--bad:#b5352a;--open:#8a5a00}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e4ebe7;--soft:#97a69e;--line:#2a3530;--back:#0f1412;
--panel:#161d1a;--accent:#5cc78f;--good:#5cc78f;--bad:#ff8f80;--open:#e6b252}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Liberation Sans",sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 20px 64px}
h1{margin:0;font-size:30px;line-height:1.2;letter-spacing:-.01em;overflow-wrap:anywhere}
h1 span{color:var(--soft);font-weight:400}
h2{margin:0 0 4px;font-size:17px}
p{margin:0}
header p{margin-top:6px;max-width:760px}
.soft,.note,.meta,small{color:var(--soft)}
.note{font-size:13px;margin-bottom:12px}
.meta{font-size:13px}
.panel,.verdict,.tiles>div{background:var(--panel);border:1px solid var(--line);border-radius:12px}
.panel{padding:20px 22px;margin-top:16px;min-width:0}
.verdict{margin-top:22px;padding:18px 22px;border-left:5px solid var(--tone)}
.verdict b{display:block;font-size:17px;line-height:1.4;font-weight:600;overflow-wrap:anywhere}
.verdict b i{color:var(--tone);font-style:normal;margin-right:10px}
.verdict ul{margin:10px 0 0;padding-left:20px;overflow-wrap:anywhere}
.accepted{--tone:var(--good)}.refused{--tone:var(--bad)}.cannot_decide{--tone:var(--open)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:16px}
.tiles>div{padding:14px 16px}
.tiles strong{display:block;font-size:23px;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}
.tiles small{display:block;font-size:12.5px;line-height:1.4}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px;margin-top:16px}
.two .panel{margin-top:0}
svg{display:block}
.plot{width:100%;height:auto;max-width:460px;margin:0 auto}
svg text{fill:currentColor;font-size:12px;font-variant-numeric:tabular-nums}
svg .dim{fill:var(--soft)}
.grid{stroke:var(--line)}.rule{stroke:var(--soft);stroke-dasharray:4 4}
.dot{fill:var(--accent);fill-opacity:.75;stroke:var(--panel)}.link{stroke:var(--accent);stroke-opacity:.45;fill:none}
.bar{fill:var(--accent)}
.gain{color:var(--soft)}.gain.up{color:var(--good)}.gain.down{color:var(--bad)}
.gain line{stroke:currentColor;stroke-width:2.5;stroke-linecap:round}.gain circle{fill:currentColor}
.gain .zero{stroke:var(--soft);stroke-width:1}.gain .limit{stroke:var(--bad);stroke-width:1;stroke-dasharray:2 2}
.box{overflow-x:auto;margin:0 -22px;padding:0 22px}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:7px 18px 7px 0;border-bottom:1px solid var(--line);vertical-align:baseline}
th:last-child,td:last-child{padding-right:0}
tbody:last-child tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:500;font-size:13px;white-space:nowrap}
tbody th{font-weight:500}
tbody .group{padding-top:16px;color:var(--soft);font-size:13px}
.group b{color:var(--ink);margin-right:8px}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.n small{margin-left:8px;font-size:12px}
td.g{width:190px;vertical-align:middle}.g svg{margin-left:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 22px;margin:10px 0 0;font-size:14px}
dt{color:var(--soft)}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
dd span{display:inline-block;margin-right:14px}
@media (max-width:760px){.n small{display:block;margin:0;line-height:1.3}}
@media (max-width:600px){main{padding:24px 14px 48px}h1{font-size:25px}.panel,.verdict{padding:16px}
.box{margin:0;padding:0}tbody th[scope=row]{position:sticky;left:0;background:var(--panel)}
th,td{padding-right:12px}td.g{width:auto}.g svg{width:120px}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}
.tiles{grid-template-columns:1fr 1fr}.tiles>div:last-child:nth-child(odd){grid-column:1/-1}
.tiles strong{font-size:20px}}
@media print{@page{margin:14mm}body{background:none;font-size:12px}main{max-width:none;padding:0}
.panel,.verdict,.tiles>div{border-radius:0}.panel{padding:12px 14px}.box{overflow:visible;margin:0;padding:0}
tr,svg,.verdict,.tiles{break-inside:avoid}h2,.note{break-after:avoid}table{font-size:11.5px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(110px,1fr))}.tiles>div{padding:8px 10px}
.note,.meta,thead th,tbody .group{font-size:11px}.tiles strong{font-size:16px}
.tiles small{font-size:10.5px}.two{grid-template-columns:1fr 1fr}th,td{padding-top:5px;padding-bottom:5px}}
"""


def page(card: Mapping[str, Any]) -> bytes:
    """The card as one standalone HTML page, UTF-8: light and dark, on a phone and on paper."""
    card = _plain(card)
    title = f"{card['model']}, version {card['version']}"
    body = _el(
        "main",
        _header(card),
        _verdict(card),
        _tiles(card),
        _el(
            "div",
            _panel("Calibration", _calibration_note(card), _calibration(card["calibration"]["bins"])),
            _panel("What it leans on", "Mean absolute SHAP value, in log-odds.", _bars(card["shap"])),
            class_="two",
        ),
        _metrics(card),
        _gains(card),
        _slices(card),
        _value(card),
        _data(card),
        _features(card),
        _lineage(card),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{_el('title', title)}<style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    ).encode()


def _panel(title: str, note: Any, *content: Any) -> Html:
    return _el("section", _el("h2", title), _el("p", note, class_="note"), *content, class_="panel")


def _table(head: Iterable[tuple[str, str]], *groups: Iterable[Html]) -> Html:
    top = _el("thead", _el("tr", *(_el("th", name, class_=kind or None, scope="col") for name, kind in head)))
    return _el("div", _el("table", top, *(_el("tbody", *rows) for rows in groups)), class_="box")


def _cell(estimate: Mapping[str, Any] | None, metric: str, sign: bool = False) -> Html:
    if not estimate:
        return _el("td", "–", class_="n soft")  # noqa: RUF001
    bounds = _el("small", _bounds(estimate, metric, sign))
    return _el("td", _number(estimate["value"], metric, sign), bounds, class_="n")


def _group(width: int, title: str, told: str | None = None) -> Html:
    return _el("tr", _el("th", _el("b", title), told, colspan=width, class_="group", scope="rowgroup"))


def _header(card: Mapping[str, Any]) -> Html:
    return _el(
        "header",
        _el("h1", card["model"], " ", _el("span", f"version {card['version']}")),
        _el("p", card["description"]),
        _el("p", f"Label: {card['predicts']}", class_="meta"),
        _el("p", f"As of {card['as_of']}. Owner: {card['owner']}.", class_="meta"),
    )


def _verdict(card: Mapping[str, Any]) -> Html:
    outcome = card["outcome"]
    more = card["reasons"] if outcome == "accepted" or len(card["reasons"]) > 1 else []
    return _el(
        "section",
        _el("b", _el("i", SIGNS.get(outcome, "?"), aria_hidden="true"), card["verdict"]),
        _el("ul", *(_el("li", reason) for reason in more)) if more else None,
        class_=f"verdict {outcome if outcome in SIGNS else 'cannot_decide'}",
    )


def _tiles(card: Mapping[str, Any]) -> Html:
    metric, fresh = card["metric"], card["metrics"]["fresh"]["challenger"].get(card["metric"])
    over = card["gain"]["fresh"]["over_champion"]
    error = card["calibration"]["error"]
    speed = "unknown" if card["ms_per_1k"] is None else f"{card['ms_per_1k']:.1f} ms"
    tiles = [
        (f"{_capital(_name(metric))} on fresh rows", _number(fresh["value"], metric), _bounds(fresh, metric))
        if fresh
        else None,
        (f"Gain over {_champion(card)}", _number(over["value"], metric, True), _bounds(over, metric, True))
        if over
        else None,
        ("Calibration error", _number(error["value"]), _bounds(error)),
        ("To score 1,000 rows", speed, f"{card['model_mb']:.2f} MB, {card['trees']:,} trees"),
        ("Rows fitted on", f"{card['data']['rows']['train']:,}", f"{card['data']['positives']:.1%} positive"),
    ]
    return _el(
        "div",
        *(_el("div", _el("small", t[0]), _el("strong", t[1]), _el("small", t[2])) for t in tiles if t),
        class_="tiles",
    )


def _metrics(card: Mapping[str, Any]) -> Html:
    champion = card["champion_version"] is not None
    head = [("Metric", ""), ("This version", "n"), *([(_capital(_champion(card)), "n")] if champion else [])]
    head.append(("Baseline", "n"))
    groups = []
    for on, found in card["metrics"].items():
        held = card["data"]["holdouts"][on]
        told = f"{held['rows']:,} rows, {held['days']} days, {_dates(held['first'], held['last'])}"
        who = ("challenger", "champion", "baseline") if champion else ("challenger", "baseline")
        groups.append(
            [
                _group(len(head), on.capitalize(), told),
                *(
                    _el(
                        "tr",
                        _el("th", _capital(_name(m)), scope="row"),
                        *(_cell((found[w] or {}).get(m), m) for w in who),
                    )
                    for m in found["challenger"]
                ),
            ]
        )
    note = f"All on the same rows. Each bound holds with {card['confidence']:.0%}."
    return _panel("Metrics", note, _table(head, *groups))


def _gains(card: Mapping[str, Any]) -> Html:
    rules = card["rules"]
    limits = {"fresh": rules["min_gain"], "frozen": -rules["max_frozen_drop"]}
    head: list[tuple[str, str]] = [("Rows", ""), ("Gain", "n"), ("", "g")]
    groups = []
    for over in ("over_champion", "over_baseline"):
        gains = {on: found[over] for on, found in card["gain"].items() if found[over]}
        reach = _reach(gains.values())
        rows = [
            _el(
                "tr",
                _el("th", on.capitalize(), scope="row"),
                _cell(gain, card["metric"], sign=True),
                _el("td", _interval(gain, reach, limits.get(on) if over == "over_champion" else None), class_="g"),
            )
            for on, gain in gains.items()
        ]
        whom = _champion(card) if over == "over_champion" else "the baseline"
        if rows:
            groups.append([_group(len(head), f"Over {whom}"), *rows])
    note = f"In {_unit(card)}, positive is better, from paired draws of whole days."
    if card["champion_version"] is not None:
        note += (
            f" Dashed, what the gate asks: a gain of more than {rules['min_gain']:g} on fresh rows, a loss of at most "
            f"{rules['max_frozen_drop']:g} on frozen ones."
        )
    return _panel("Gain", note, _table(head, *groups))


def _slices(card: Mapping[str, Any]) -> Html | None:
    if not card["slices"]:
        return None
    champion = card["champion_version"] is not None
    ranked = _worst_first(card["slices"])
    shown, metric = ranked[:SHOWN_SLICES], card["metric"]
    reach = _reach(found["over_champion"] for found in shown if found["over_champion"])
    limit = -card["rules"]["max_slice_drop"]
    head = [("Slice", ""), ("Rows", "n"), ("Days", "n"), ("This version", "n")]
    head += [(_capital(_champion(card)), "n"), ("Gain", "n"), ("", "g")] if champion else []

    def row(found: Mapping[str, Any]) -> Html:
        gain = found["over_champion"]
        compared = (
            _el("td", _number(found["champion"], metric), class_="n"),
            _cell(gain, metric, sign=True),
            _el("td", _interval(gain, reach, limit) if gain else None, class_="g"),
        )
        return _el(
            "tr",
            _el("th", _el("span", f"{found['column']} = ", class_="soft"), found["value"], scope="row"),
            _el("td", f"{found['rows']:,}", class_="n"),
            _el("td", found["days"], class_="n"),
            _el("td", _number(found["challenger"], metric), class_="n"),
            *(compared if champion else ()),
        )

    note = f"{_capital(_name(metric))} on fresh and frozen rows together" + (
        ", weakest gain first." if champion else "."
    )
    if champion:
        note += f" Dashed: a loss of {card['rules']['max_slice_drop']:g}; a slice surely beyond it is refused."
    if len(ranked) > len(shown):
        note += f" The first {len(shown)} of {len(ranked)}; card.json has all."
    return _panel("Slices", note, _table(head, [row(found) for found in shown]))


def _value(card: Mapping[str, Any]) -> Html | None:
    costs = card["costs"]
    if not costs:
        return None
    rows = [
        ("This version", card["value"]["challenger"]),
        *([(_capital(_champion(card)), card["value"]["champion"])] if card["champion_version"] is not None else []),
        ("Baseline", card["value"]["baseline"]),
    ]
    unit = f" {costs['unit']}" if costs["unit"] else ""
    note = (
        f"What acting at a probability of {card['threshold']:.3f} or more saves against never acting. A hit costs "
        f"{costs['hit']:g}{unit}, a miss {costs['miss']:g}{unit}, a false alarm {costs['false_alarm']:g}{unit}."
    )
    table = _table(
        [("", ""), (f"Saved per 1,000 rows{f', {unit.strip()}' if unit else ''}", "n")],
        [_el("tr", _el("th", name, scope="row"), _cell(found, "value")) for name, found in rows],
    )
    return _panel("Value", note, table)


def _data(card: Mapping[str, Any]) -> Html:
    data = card["data"]
    before = (dt.date.fromisoformat(data["validation_from"]) - dt.timedelta(days=1)).isoformat()
    parts = [
        ("Training", "what it was fitted on", data["train_from"], before, data["days"]["train"], data["rows"]["train"]),
        (
            "Validation",
            "where fitting stopped",
            data["validation_from"],
            data["trained_until"],
            data["days"]["validation"],
            data["rows"]["validation"],
        ),
        *(
            (name.capitalize(), HOLDOUTS[name], held["first"], held["last"], held["days"], held["rows"])
            for name, held in data["holdouts"].items()
        ),
    ]
    rows = [
        _el(
            "tr",
            _el("th", name, scope="row"),
            _el("td", what),
            _el("td", _dates(first, last), class_="n"),
            _el("td", f"{days:,}", class_="n"),
            _el("td", f"{count:,}", class_="n"),
        )
        for name, what, first, last, days, count in parts
    ]
    head = [("Part", ""), ("Use", ""), ("As-of dates", "n"), ("Days", "n"), ("Rows", "n")]
    note = f"Source {data['source']}. No feature saw the future in {card['leak_rows']:,} rows of the leak check."
    return _panel("Data", note, _table(head, rows))


def _features(card: Mapping[str, Any]) -> Html:
    rows = [
        _el(
            "tr",
            _el("th", found["name"], scope="row"),
            _el("td", found["type"], None if found["values"] is None else f", {found['values']:,} values"),
            _el("td", found["description"]),
            _el("td", _number(found["shap"]) if found["shap"] is not None else "–", class_="n"),  # noqa: RUF001
        )
        for found in card["features"]
    ]
    head = [("Feature", ""), ("Type", ""), ("Meaning", ""), ("Mean |SHAP|", "n")]
    return _panel("Features", f"{len(rows)} columns of the feature query.", _table(head, rows))


def _lineage(card: Mapping[str, Any]) -> Html:
    entries = {
        **card["lineage"],
        "params": card["params"],
        "gate_rules": card["rules"],
        **({} if "frozen" in card["lineage"] else {"frozen": card["data"]["frozen_from"]}),
    }
    pairs = [
        item
        for name, value in entries.items()
        if value not in (None, "", {}, [])
        for item in (_el("dt", name.replace("_", " ")), _el("dd", _inline(value)))
    ]
    return _panel("Lineage", "What made this version, enough to make it again.", _el("dl", *pairs))


def _inline(value: Any) -> Any:
    """A value in a line: the pairs of a mapping and the items of a list side by side."""
    if isinstance(value, Mapping):
        return _join(
            _el("span", _el("small", f"{key} "), _inline(item))
            for key, item in value.items()
            if item not in (None, {}, [])
        )
    if isinstance(value, list):
        return _join(_el("span", _inline(item)) for item in value)
    return value if isinstance(value, Html) else str(value)


# --- plots -----------------------------------------------------------------------------------------------------------


def _reach(estimates: Iterable[Mapping[str, Any]]) -> float:
    """The largest distance from zero: half the width of a scale that the intervals share."""
    seen = [abs(e[key]) for e in estimates for key in ("value", "low", "high") if e[key] is not None]
    return max(seen, default=0.0) or 1.0


def _interval(gain: Mapping[str, Any], reach: float, limit: float | None) -> Html:
    """A gain with its bounds around zero; dashed, the limit."""
    wide, high = 170, 16

    def x(value: float) -> str:
        return f"{wide / 2 + value / reach * (wide / 2 - 6):.1f}"

    def line(at: str, until: str, kind: str | None = None, top: int = 1) -> Html:
        flat = kind is None
        return _el("line", x1=at, x2=until, y1=8 if flat else top, y2=8 if flat else high - top, class_=kind)

    low, high_bound, value = gain["low"], gain["high"], gain["value"]
    tone = "up" if low is not None and low > 0 else "down" if high_bound is not None and high_bound < 0 else ""
    return _el(
        "svg",
        line(x(0), x(0), "zero"),
        line(x(limit), x(limit), "limit") if limit and abs(limit) <= reach else None,
        line(x(low), x(high_bound)) if low is not None and high_bound is not None else None,
        _el("circle", cx=x(value), cy=8, r=4) if value is not None else None,
        viewBox=f"0 0 {wide} {high}",
        width=wide,
        height=high,
        class_=f"gain {tone}".strip(),
        aria_hidden="true",
    )


def _calibration_note(card: Mapping[str, Any]) -> str:
    error, most = card["calibration"]["error"], card["rules"]["max_calibration_error"]
    return f"Mean distance from the diagonal {_said(error)}; at most {most:g} allowed. A dot's area is its rows."


def _calibration(bins: Iterable[Mapping[str, Any]]) -> Html:
    """What was predicted against what happened, per bin."""
    seen = [b for b in bins if b["predicted"] is not None and b["happened"] is not None]
    if not seen:
        return _el("p", "No rows.", class_="soft")
    left, top, side, most = 46, 12, 330, max(b["rows"] for b in seen)
    end = math.ceil(max(max(b["predicted"], b["happened"]) for b in seen) * 10 + 1e-9) / 10
    step = 0.1 if end <= 0.6 else 0.2
    ticks = [i * step for i in range(round(end / step + 0.499) + 1) if i * step <= end + 1e-9]

    def x(value: float) -> str:
        return f"{left + value / end * side:.1f}"

    def y(value: float) -> str:
        return f"{top + side - value / end * side:.1f}"

    grid = [
        part
        for tick in ticks
        for part in (
            _el("line", x1=x(tick), x2=x(tick), y1=y(0), y2=y(end), class_="grid"),
            _el("line", x1=x(0), x2=x(end), y1=y(tick), y2=y(tick), class_="grid"),
            _el("text", f"{tick:.0%}", x=x(tick), y=top + side + 18, text_anchor="middle", class_="dim"),
            _el("text", f"{tick:.0%}", x=left - 8, y=f"{float(y(tick)) + 4:.1f}", text_anchor="end", class_="dim"),
        )
    ]
    dots = [
        _el(
            "circle",
            _el("title", f"predicted {b['predicted']:.1%}, happened {b['happened']:.1%}, {b['rows']:,} rows"),
            cx=x(b["predicted"]),
            cy=y(b["happened"]),
            r=f"{max(2.5, 8 * math.sqrt(b['rows'] / most)):.1f}",
            class_="dot",
        )
        for b in seen
    ]
    return _el(
        "svg",
        *grid,
        _el("line", x1=x(0), y1=y(0), x2=x(end), y2=y(end), class_="rule"),
        _el("polyline", points=" ".join(f"{x(b['predicted'])},{y(b['happened'])}" for b in seen), class_="link"),
        *dots,
        _el("text", "predicted", x=left + side, y=top + side + 38, text_anchor="end"),
        _el("text", "happened", x=left + 8, y=top + 14),
        viewBox=f"0 0 {left + side + 20} {top + side + 46}",
        class_="plot",
        role="img",
        aria_label="Calibration: predicted against happened",
    )


def _bars(shap: Mapping[str, float | None]) -> Html:
    """The largest importances as horizontal bars."""
    shown = _ranked(shap)[:SHOWN_BARS]
    if not shown:
        return _el("p", "Not measured: there were no rows.", class_="soft")
    left, wide, row = 150, 190, 25
    most = max(value for _, value in shown) or 1.0

    def bar(index: int, name: str, value: float) -> Html:
        long, middle = value / most * wide, index * row + row / 2
        label = name if len(name) <= 21 else f"{name[:20]}…"
        return _el(
            "g",
            _el("title", f"{name}: {value:.4f}"),
            _el("text", label, x=left - 8, y=f"{middle + 4:.1f}", text_anchor="end"),
            _el("rect", x=left, y=f"{middle - 7.5:.1f}", width=f"{max(long, 1):.1f}", height=15, rx=3, class_="bar"),
            _el("text", f"{value:.3f}", x=f"{left + long + 7:.1f}", y=f"{middle + 4:.1f}", class_="dim"),
        )

    return _el(
        "svg",
        *(bar(index, name, value) for index, (name, value) in enumerate(shown)),
        viewBox=f"0 0 {left + wide + 50} {len(shown) * row}",
        class_="plot",
        role="img",
        aria_label="Importance: mean absolute SHAP value per feature",
    )
