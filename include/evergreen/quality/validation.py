"""Great Expectations behind one call: which rows break which rule, which partitions must stop, and a page to read.

Rules come from the spec: those it declares, and those it implies (types, nulls, the date, row counts, freshness, the
share of bad rows). Row rules run once over all rows; partition rules run over one summary row per partition, so that
one bad partition stops alone, in a bulk load as on a single day.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import SpecError
from include.evergreen.lake.ports import PARTITION
from include.evergreen.quality.accounting import winners
from include.evergreen.quality.casting import UNCAST, uncast
from include.evergreen.specs import Expectation, TableSpec

ROW = "__row"
ROW_RULES = (
    "expect_column_values_",
    "expect_column_pair_values_",
    "expect_multicolumn_",
    "expect_compound_",
    "expect_select_",
)
EXAMPLES = 5
FEW = 3
"""Recent partitions it takes to speak of a usual row count."""


@dataclass(frozen=True)
class Finding:
    """One rule and what it found.

    Attributes:
        rule: the GX expectation's snake_case type; `args` its arguments.
        level: `row` or `partition`.
        severity: `error` quarantines rows or stops partitions; `warning` is shown.
        count: rows or partitions that break it; `examples` some of them, as text.
    """

    rule: str
    args: dict[str, Any]
    level: str
    severity: str
    because: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Validation:
    """The result for a batch of one or more partitions.

    Attributes:
        bad: row position -> every reason it is quarantined.
        stopped: partition -> every reason it publishes nothing.
        warnings: partition-free sentences.
        findings: all rules, also those that hold.
        rows: per partition.
    """

    bad: dict[int, tuple[str, ...]]
    stopped: dict[dt.date, tuple[str, ...]]
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...]
    rows: dict[dt.date, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """An expectation to run, with the words for a row that breaks it."""

    type: str
    args: dict[str, Any]
    severity: str = "error"
    because: str = ""
    said: str = ""

    @property
    def columns(self) -> list[str]:
        names = [self.args[k] for k in ("column", "column_A", "column_B") if k in self.args]
        return [*names, *self.args.get("column_list", [])]

    def expectation(self) -> Any:
        """The GX object. Raises SpecError for a type or an argument that GX does not know."""
        import great_expectations.expectations as gxe

        name = "".join(part.capitalize() for part in self.type.split("_"))
        try:
            return getattr(gxe, name)(**self.args)
        except AttributeError as error:
            raise SpecError(f"expectations: Great Expectations has no {self.type!r}") from error
        except ValueError as error:
            raise SpecError(f"expectations: {self.type} with {self.args}: {error}") from error


def row_rules(table: TableSpec) -> list[Rule]:
    """The rules a row must keep: types, nulls and the date first, then the declared ones."""
    rules = [
        Rule("expect_column_values_to_be_null", {"column": uncast(name, table)}, said=f"{name}: expected {column.type}")
        for name, column in table.columns.items()
        if column.type != "string"
    ]
    rules += [
        Rule("expect_column_values_to_not_be_null", {"column": name}, said=f"{name}: expected a value")
        for name, column in table.columns.items()
        if not column.nullable
    ]
    if table.date_column:
        rules.append(
            Rule(
                "expect_column_pair_values_to_be_equal",
                {"column_A": table.date_column, "column_B": PARTITION, "ignore_row_if": "either_value_is_missing"},
                said=f"{table.date_column}: expected the date of the partition",
            )
        )
    return rules + [_declared(e) for e in table.expectations if e.type.startswith(ROW_RULES)]


def _declared(expectation: Expectation) -> Rule:
    args = dict(expectation.args)
    if expectation.type.startswith("expect_column_pair_values_"):
        args.setdefault("ignore_row_if", "either_value_is_missing")
    return Rule(expectation.type, args, expectation.severity, expectation.because, _words(expectation.type, args))


def _words(kind: str, args: Mapping[str, Any]) -> str:
    """What a rule expects, for a person."""
    column = args.get("column")
    low, high = args.get("min_value"), args.get("max_value")
    match kind:
        case "expect_column_values_to_be_in_set":
            return f"{column}: expected one of {args['value_set']}"
        case "expect_column_values_to_be_between":
            return (
                f"{column}: expected {'' if low is None else f'{low} <= '}value{'' if high is None else f' <= {high}'}"
            )
        case "expect_column_values_to_match_regex":
            return f"{column}: expected to match {args['regex']}"
        case "expect_column_pair_values_a_to_be_greater_than_b":
            sign = ">=" if args.get("or_equal") else ">"
            return f"expected {args['column_A']} {sign} {args['column_B']}"
        case "expect_column_pair_values_to_be_equal":
            return f"expected {args['column_A']} = {args['column_B']}"
    shown = {name: value for name, value in args.items() if name != "ignore_row_if"}
    return f"{kind.removeprefix('expect_').replace('_', ' ')} {json.dumps(shown, default=str)}"


class Engine:
    """GX's pandas engine in memory: no files, no telemetry, no progress bars."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_pandas("memory")
        self._batches = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")

    def run(self, frame: pd.DataFrame, rules: Sequence[Rule]) -> list[list[int]]:
        """Positions (column `__row` of the frame) of the rows that break each rule.

        Rules that hold are settled without listing rows; rows are asked for only of those that do not.
        Raises SpecError for a rule that cannot be evaluated.
        """
        broken: list[list[int]] = [[] for _ in rules]
        if frame.empty or not rules:
            return broken
        batch = self._batches.get_batch(batch_parameters={"dataframe": frame})
        failed = [i for i, ok in enumerate(self._validate(batch, rules, "BOOLEAN_ONLY")) if not ok.success]
        complete = {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": [ROW],
            "return_unexpected_index_query": False,
        }
        for i, result in zip(failed, self._validate(batch, [rules[i] for i in failed], complete), strict=True):
            broken[i] = sorted(int(found[ROW]) for found in result.result["unexpected_index_list"])
        return broken

    @staticmethod
    def _validate(batch: Any, rules: Sequence[Rule], result_format: Any) -> list[Any]:
        from great_expectations.core.expectation_suite import ExpectationSuite

        if not rules:
            return []
        # an id keeps two equal rules apart and the results in order
        expectations = []
        for rule in rules:
            expectation = rule.expectation()
            expectation.meta = {"position": len(expectations)}
            expectations.append(expectation)
        suite = ExpectationSuite(name="rules", expectations=expectations)
        outcome = batch.validate(suite, result_format=result_format)
        results = sorted(outcome.results, key=lambda r: r.expectation_config.meta["position"])
        for rule, result in zip(rules, results, strict=True):
            if result.exception_info and _raised(result.exception_info):
                raise SpecError(f"expectations: {rule.type} with {rule.args}: {_raised(result.exception_info)}")
        return results


def _raised(info: Mapping[str, Any]) -> str:
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(e["exception_message"]) for e in entries if e.get("raised_exception")), "")


def to_frame(rows: pa.Table) -> pd.DataFrame:
    """Rows for GX: dates as datetime64, integers nullable, `__row` their position."""
    types: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    dates = [f.name for f in rows.schema if pa.types.is_date(f.type)]
    for name in dates:
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.timestamp("s")))
    # a column of integers without nulls is quicker as numpy's
    plain = {f.name for f in rows.schema if f.type == pa.int64() and rows[f.name].null_count == 0}
    frame = rows.to_pandas(types_mapper=types.get)
    frame = frame.astype(dict.fromkeys(plain, "int64"))
    frame[ROW] = np.arange(len(frame))
    return frame


def validate(
    rows: pa.Table,
    table: TableSpec,
    recent: Mapping[dt.date, Sequence[int]] | None = None,
    days: Sequence[dt.date] = (),
) -> Validation:
    """Validate typed rows (`casting.cast`) of one or more partitions.

    Args:
        recent: per partition, the row counts of partitions before this batch, newest first; the batch's own earlier
            partitions are added.
        days: partitions of the batch; one without rows is judged too.
    """
    engine = Engine()
    frame = to_frame(rows)
    rules = row_rules(table)
    broken = engine.run(frame, rules)
    partition_of = rows[PARTITION].to_pylist()
    reasons: dict[int, list[str]] = {}
    warnings: list[str] = []
    findings: list[Finding] = []
    for rule, positions in zip(rules, broken, strict=True):
        said = rule.said + (f" ({rule.because})" if rule.because else "")
        values = _values(rows, rule, positions)
        findings.append(
            Finding(rule.type, rule.args, "row", rule.severity, rule.because, len(positions), tuple(values[:EXAMPLES]))
        )
        if rule.severity == "warning" and positions:
            warnings.append(f"{len(positions)} rows: {said}, found for example {values[0]}")
        elif rule.severity == "error":
            for position, value in zip(positions, values, strict=True):
                reasons.setdefault(position, []).append(f"{said}, found {value}")
    stopped, more, partition_findings = _partitions(engine, rows, frame, table, reasons, recent or {}, days)
    counts = dict.fromkeys(days, 0) | pd.Series(partition_of).value_counts().to_dict()
    return Validation(
        bad={position: tuple(found) for position, found in sorted(reasons.items())},
        stopped=stopped,
        warnings=(*warnings, *more),
        findings=(*findings, *partition_findings),
        rows={day: int(n) for day, n in sorted(counts.items())},
    )


def _values(rows: pa.Table, rule: Rule, positions: Sequence[int]) -> list[str]:
    """What a rule found in the rows that break it."""
    if not positions:
        return []
    names = [name for name in rule.columns if name in rows.column_names]
    taken = rows.select(names).take(pa.array(positions, pa.int64())).to_pylist()
    shown = []
    for row in taken:
        pairs = {name.split(UNCAST)[0]: _text(value) for name, value in row.items()}
        shown.append(next(iter(pairs.values())) if len(pairs) == 1 else ", ".join(f"{k} {v}" for k, v in pairs.items()))
    return shown


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value.isoformat() if isinstance(value, (dt.date, dt.datetime)) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _partitions(
    engine: Engine,
    rows: pa.Table,
    frame: pd.DataFrame,
    table: TableSpec,
    bad: Mapping[int, Sequence[str]],
    recent: Mapping[dt.date, Sequence[int]],
    days: Sequence[dt.date],
) -> tuple[dict[dt.date, tuple[str, ...]], list[str], list[Finding]]:
    """Judge one summary row per partition."""
    summary = _summary(rows, table, bad, recent, days)
    rules = [
        Rule(
            "expect_column_pair_values_a_to_be_greater_than_b", {"column_A": a, "column_B": b, "or_equal": True}, said=s
        )
        for a, b, s in (
            ("rows", "min_rows", "rows: expected at least {min_rows:g}{usual}, found {rows:g}"),
            ("max_rows", "rows", "rows: expected at most {max_rows:g}{usual}, found {rows:g}"),
            (
                "max_bad",
                "bad_share",
                "bad rows: expected at most {max_bad:.1%}, found {bad_share:.1%} ({bad:g}): {why}",
            ),
            (
                "newest_hours",
                "min_hours",
                "{fresh}: expected to reach {min_hours:g} h of the day, found {newest_hours:.1f} h",
            ),
        )
    ]
    rules = [
        Rule(r.type, {**r.args, "ignore_row_if": "either_value_is_missing"}, said=r.said)
        for r in rules
        if not summary.empty and summary[[r.args["column_A"], r.args["column_B"]]].notna().all(axis=1).any()
    ]
    stopped: dict[dt.date, list[str]] = {}
    findings, warnings = [], []
    facts = summary.to_dict("records")
    for rule, positions in zip(rules, engine.run(summary, rules), strict=True):
        said = {position: rule.said.format(**facts[position]) for position in positions}
        for position, text in said.items():
            stopped.setdefault(facts[position]["day"], []).append(text)
        findings.append(
            Finding(rule.type, rule.args, "partition", "error", "", len(positions), tuple(said.values())[:EXAMPLES])
        )
    aggregates = [e for e in table.expectations if not e.type.startswith(ROW_RULES)]
    for day in sorted({fact["day"] for fact in facts}) if aggregates else []:
        mine = frame[frame[PARTITION] == pd.Timestamp(day)]
        for expectation in aggregates:
            rule = _declared(expectation)
            if mine.empty or engine_holds(engine, mine, rule):
                continue
            text = f"{rule.said}{f' ({rule.because})' if rule.because else ''}: not so"
            if rule.severity == "error":
                stopped.setdefault(day, []).append(text)
            else:
                warnings.append(f"{day}: {text}")
            findings.append(Finding(rule.type, rule.args, "partition", rule.severity, rule.because, 1, (str(day),)))
    return {day: tuple(found) for day, found in sorted(stopped.items())}, warnings, findings


def engine_holds(engine: Engine, frame: pd.DataFrame, rule: Rule) -> bool:
    """Whether an aggregate expectation (of a whole partition) holds."""
    batch = engine._batches.get_batch(batch_parameters={"dataframe": frame})
    return bool(engine._validate(batch, [rule], "BOOLEAN_ONLY")[0].success)


def _summary(
    rows: pa.Table,
    table: TableSpec,
    bad: Mapping[int, Sequence[str]],
    recent: Mapping[dt.date, Sequence[int]],
    days: Sequence[dt.date],
) -> pd.DataFrame:
    frame = pd.DataFrame({"day": rows[PARTITION].to_pylist()})
    # a file delivered twice does not make a day twice as large
    frame["counted"] = winners(rows, table.key).to_numpy(zero_copy_only=False)
    frame["bad"] = False
    frame.loc[list(bad), "bad"] = True
    if table.freshness:
        newest = pc.subtract(rows[table.freshness.column], rows[PARTITION].cast(pa.timestamp("us")))
        frame["hours"] = newest.cast(pa.int64()).to_numpy(zero_copy_only=False) / 3.6e9
    grouped = frame.groupby("day")
    by_day = dict(list(grouped))
    facts = []
    bounds = table.row_count
    history: list[int] = []
    for day in sorted({*days, *by_day}):
        group = by_day.get(day)
        delivered = 0 if group is None else len(group)
        size = 0 if group is None else int(group["counted"].sum())
        usual = [*reversed(history), *recent.get(day, ())][: bounds.recent_partitions]
        median = statistics.median(usual) if len(usual) >= FEW else None
        low = max(bounds.min, (median or 0) * (bounds.min_ratio or 0))
        highs = [bounds.max, median * bounds.max_ratio if median and bounds.max_ratio else None]
        number = 0 if group is None else int(group["bad"].sum())
        facts.append(
            {
                "day": day,
                "rows": float(size),
                "min_rows": float(low),
                "max_rows": min((float(h) for h in highs if h is not None), default=np.nan),
                "usual": f" (usual: {median:g})" if median is not None else "",
                "bad": number,
                "bad_share": number / delivered if delivered else np.nan,
                "max_bad": table.max_bad_share,
                "why": _commonest(rows, bad, day) if number else "",
                "fresh": table.freshness.column if table.freshness else "",
                "newest_hours": float(group["hours"].max()) if table.freshness and group is not None else np.nan,
                "min_hours": table.freshness.hours if table.freshness and size else np.nan,
            }
        )
        if size:
            history.append(size)
    summary = pd.DataFrame(facts)
    summary[ROW] = np.arange(len(summary))
    return summary


def _commonest(rows: pa.Table, bad: Mapping[int, Sequence[str]], day: dt.date) -> str:
    """The reason that most bad rows of a partition share, with one example."""
    at = rows[PARTITION].to_pylist()
    found: dict[str, list[str]] = {}
    for position, reasons in bad.items():
        if at[position] == day:
            for reason in reasons:
                found.setdefault(reason.split(", found ")[0], []).append(reason)
    said, examples = max(found.items(), key=lambda item: (len(item[1]), item[0]))
    return f"{len(examples)} rows: {examples[0]}" if said else ""


def document(validation: Validation, title: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The result as plain JSON values."""
    return {
        "title": title,
        **facts,
        "success": not validation.stopped and not validation.bad,
        "partitions": {day.isoformat(): n for day, n in validation.rows.items()},
        "stopped": {day.isoformat(): list(reasons) for day, reasons in validation.stopped.items()},
        "quarantined_rows": len(validation.bad),
        "warnings": list(validation.warnings),
        "expectations": [
            {
                "type": f.rule,
                "args": f.args,
                "level": f.level,
                "severity": f.severity,
                "because": f.because,
                "unexpected": f.count,
                "examples": list(f.examples),
            }
            for f in validation.findings
        ],
    }


def page(doc: Mapping[str, Any]) -> bytes:
    """The result as one self-contained page; every value is escaped, nothing on it can run."""

    def row(tag: str, cells: Sequence[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    def table(heads: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
        return f"<table>{row('th', heads)}{''.join(row('td', cells) for cells in body)}</table>" if body else ""

    broken = [e for e in doc["expectations"] if e["unexpected"]]
    held = [e for e in doc["expectations"] if not e["unexpected"]]
    verdict = (
        "Stopped: nothing was published."
        if doc["stopped"]
        else f"{doc['quarantined_rows']} rows quarantined, the others are fit."
    )
    parts = [
        f"<h1>{html.escape(doc['title'])}</h1><p><b>{html.escape(verdict)}</b></p>",
        table(["partition", "why it was stopped"], [(d, "; ".join(r)) for d, r in doc["stopped"].items()]),
        table(["warning"], [(w,) for w in doc["warnings"]]),
        "<h2>Broken rules</h2>" if broken else "<p>No rule was broken.</p>",
        table(
            ["rule", "arguments", "severity", "count", "examples", "because"],
            [
                (
                    e["type"],
                    json.dumps(e["args"], default=str),
                    e["severity"],
                    e["unexpected"],
                    " | ".join(e["examples"]),
                    e["because"],
                )
                for e in broken
            ],
        ),
        f"<h2>Rules that held ({len(held)})</h2>",
        table(["rule", "arguments"], [(e["type"], json.dumps(e["args"], default=str)) for e in held]),
    ]
    style = (
        "body{font:14px sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;margin:1em 0}"
        "td,th{border:1px solid #bbb;padding:4px 8px;text-align:left;vertical-align:top}"
        "@media(prefers-color-scheme:dark){body{background:#16181d;color:#ddd}td,th{border-color:#444}}"
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(doc['title'])}</title><style>{style}</style></head><body>{''.join(parts)}</body></html>"
    ).encode()
