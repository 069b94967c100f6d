"""Great Expectations behind one call: which rows break which rule, which partitions must stop, and a page to read.

Rules come from the spec: those it declares, and those it implies (types, nulls, the date, row counts, freshness, the
share of bad rows). A rule about a row alone runs once over all rows. A rule about rows together (uniqueness, order,
`mostly`) and a rule about a whole partition run partition by partition over the rows that would be published; counts
run over one summary row per partition. So one bad partition stops alone, in a bulk load as on a single day.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from include.evergreen.errors import SpecError
from include.evergreen.lake.ports import PARTITION
from include.evergreen.lake.rows import per_partition
from include.evergreen.quality.accounting import losers, winners
from include.evergreen.quality.casting import UNCAST, uncast
from include.evergreen.quality.typed import ROW, Typed
from include.evergreen.query import quoted
from include.evergreen.specs import Expectation, TableSpec

ROW_RULES = (
    "expect_column_values_",
    "expect_column_value_lengths_",
    "expect_column_pair_values_",
    "expect_multicolumn_",
    "expect_compound_",
    "expect_select_",
)
TOGETHER = {
    "expect_column_values_to_be_unique",
    "expect_compound_columns_to_be_unique",
    "expect_column_values_to_be_increasing",
    "expect_column_values_to_be_decreasing",
    "expect_column_values_to_not_be_outliers",
}
"""Row rules whose answer depends on the other rows."""
OF_A_COLUMN = {"expect_column_values_to_be_of_type", "expect_column_values_to_be_in_type_list"}
"""Named like row rules, but they judge the column as one."""
MANY = 100_000
"""From this many rows on, rules of a row alone are asked of distinct values: the answer is the same."""
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
        import great_expectations.expectations  # noqa: F401 (fills the registry)
        from great_expectations.exceptions import ExpectationNotFoundError
        from great_expectations.expectations.registry import get_expectation_impl

        try:
            kind = get_expectation_impl(self.type)
        except ExpectationNotFoundError as error:
            raise SpecError(
                f"expectations: expected a type of Great Expectations, found {self.type!r}, which it does not have"
            ) from error
        try:
            return kind(**self.args)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"expectations: {self.type}: expected arguments that it takes, found {self.args}: {error}"
            ) from error


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
    return rules + [_declared(e, table) for e in table.expectations if _level(e) == "row"]


def _level(expectation: Expectation) -> str:
    """What a declared rule judges: a `row` alone, rows `together`, or the `partition`."""
    if not expectation.type.startswith(ROW_RULES) or expectation.type in OF_A_COLUMN:
        return "partition"
    return "together" if expectation.type in TOGETHER or expectation.args.get("mostly", 1) != 1 else "row"


def _comparable(value: Any, is_time: bool) -> Any:
    """Dates and times of a spec as GX can compare them with a column: naive, in UTC."""
    if is_time and isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    return dt.datetime.combine(value, dt.time()) if isinstance(value, dt.date) else value


def _declared(expectation: Expectation, table: TableSpec) -> Rule:
    column = table.columns.get(str(expectation.args.get("column")))
    is_time = column is not None and column.type in ("date", "timestamp")
    args = {
        name: _comparable(value, is_time and name in ("min_value", "max_value"))
        for name, value in expectation.args.items()
    }
    if expectation.type.startswith("expect_column_pair_values_"):
        args.setdefault("ignore_row_if", "either_value_is_missing")
    return Rule(expectation.type, args, expectation.severity, expectation.because, _words(expectation.type, args))


def _words(kind: str, args: Mapping[str, Any]) -> str:
    """What a rule expects, for a person."""
    column = args.get("column")
    low, high = args.get("min_value"), args.get("max_value")
    match kind:
        case "expect_column_values_to_be_in_set" if "value_set" in args:
            return f"{column}: expected one of {args['value_set']}"
        case "expect_column_values_to_be_between":
            return (
                f"{column}: expected {'' if low is None else f'{low} <= '}value{'' if high is None else f' <= {high}'}"
            )
        case "expect_column_values_to_match_regex" if "regex" in args:
            return f"{column}: expected to match {args['regex']}"
        case "expect_column_pair_values_a_to_be_greater_than_b" if "column_A" in args and "column_B" in args:
            sign = ">=" if args.get("or_equal") else ">"
            return f"expected {args['column_A']} {sign} {args['column_B']}"
        case "expect_column_pair_values_to_be_equal" if "column_A" in args and "column_B" in args:
            return f"expected {args['column_A']} = {args['column_B']}"
    shown = {name: value for name, value in args.items() if name != "ignore_row_if"}
    return f"{kind.removeprefix('expect_').replace('_', ' ')} {json.dumps(shown, default=str)}"


class Engine:
    """GX's pandas engine in memory: no files, no telemetry, no progress bars."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx
        from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

        # the default keeps a folder of pages in /tmp for every context, and never deletes it
        config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
        context = gx.get_context(mode="ephemeral", project_config=config)
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_pandas("memory")
        self._batches = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")

    def run(self, frame: pd.DataFrame, rules: Sequence[Rule]) -> list[list[int]]:
        """Positions (column `__row` of the frame) of the rows that break each rule.

        Rules that hold are settled without listing rows; rows are asked for only of those that do not. A rule that
        fails and names no row is broken by all of them. Raises SpecError for a rule that cannot be evaluated.
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
            named = result.result.get("unexpected_index_list") or frame[[ROW]].to_dict("records")
            broken[i] = sorted({int(found[ROW]) for found in named})
        return broken

    def judge(self, frame: pd.DataFrame, rules: Sequence[Rule]) -> list[str | None]:
        """What each rule about a whole partition found, None for one that holds. Raises SpecError."""
        batch = self._batches.get_batch(batch_parameters={"dataframe": frame})
        return [
            None if result.success else _text(result.result.get("observed_value", result.result))
            for result in self._validate(batch, rules, "BASIC")
        ]

    @staticmethod
    def _validate(batch: Any, rules: Sequence[Rule], result_format: Any) -> list[Any]:
        from great_expectations.core.expectation_suite import ExpectationSuite

        if not rules:
            return []
        # an id keeps two equal rules apart and the results in order
        expectations: list[Any] = []
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
    frame: pd.DataFrame = rows.to_pandas(types_mapper=types.get)
    frame = frame.astype(dict.fromkeys(plain, "int64"))
    frame[ROW] = np.arange(len(frame))
    return frame


def validate(
    rows: pa.Table | Typed,
    table: TableSpec,
    recent: Sequence[int] = (),
    days: Sequence[dt.date] = (),
) -> Validation:
    """Validate typed rows (`casting.cast`) of one or more partitions.

    Args:
        recent: the row counts of partitions before this batch, newest first; the batch's own earlier partitions are
            added.
        days: partitions of the batch; one without rows is judged too.

    Raises:
        SpecError: a rule that cannot be evaluated, also when there are no rows.
    """
    engine, rows = Engine(), Typed.of(rows)
    found = _Rows(engine, rows, table)
    stopped, warnings, findings = _partitions(found, recent, days)
    counts = dict.fromkeys(days, 0) | per_partition(rows.select([PARTITION]))
    return Validation(
        bad=found.bad(),
        stopped=stopped,
        warnings=(*found.warnings, *warnings),
        findings=(*found.findings, *findings),
        rows=dict(sorted(counts.items())),
    )


def by_day(frame: pd.DataFrame) -> list[tuple[dt.date, pd.DataFrame]]:
    """The rows of each partition."""
    days: Any = frame.groupby(PARTITION)
    return [(instant.date(), mine) for instant, mine in days]


def bad_rows(rows: pa.Table, table: TableSpec, beside: pa.Table | None = None) -> dict[int, tuple[str, ...]]:
    """Row position -> reasons, by the row rules alone.

    Args:
        beside: rows of the same partitions that are trusted already: rules about rows together see them too.
    """
    return _Rows(Engine(), Typed.of(rows), table, beside).bad()


class _Rows:
    """The row rules over typed rows: those of a row alone first, then those of rows together over what is left."""

    def __init__(self, engine: Engine, rows: Typed, table: TableSpec, beside: pa.Table | None = None) -> None:
        self.engine, self.rows, self.table = engine, rows, table
        self.reasons: dict[int, list[str]] = {}
        self.warnings: list[str] = []
        self.findings: list[Finding] = []
        self.wholes = [_declared(e, table) for e in table.expectations if _level(e) == "partition"]
        self.togethers = [_declared(e, table) for e in table.expectations if _level(e) == "together"]
        alone = row_rules(table)
        for rule in (*alone, *self.togethers, *self.wholes):
            rule.expectation()
        for rule, positions in zip(alone, self._alone(alone), strict=True):
            self._note(rule, positions)
        self.fit = self._winners() if self.wholes else None
        if self.togethers:
            self._together(beside)

    @cached_property
    def frame(self) -> pd.DataFrame:
        return to_frame(self.rows.select())

    def _alone(self, rules: Sequence[Rule]) -> list[list[int]]:
        """Positions of the rows that break each rule of a row alone.

        The answer depends on the values of the rule's columns only: of many rows GX sees each combination once.
        """
        if self.rows.num_rows < MANY:
            return self.engine.run(self.frame, rules)
        known, broken = set(self.rows.column_names), [list[int]() for _ in rules]
        groups: dict[tuple[str, ...], list[int]] = {}
        for at, rule in enumerate(rules):
            # a condition may name any column
            whole = "row_condition" in rule.args or not rule.columns or not known.issuperset(rule.columns)
            groups.setdefault(() if whole else tuple(dict.fromkeys(rule.columns)), []).append(at)
        if whole_rows := groups.pop((), []):
            found = self.engine.run(self.frame, [rules[at] for at in whole_rows])
            broken = [dict(zip(whole_rows, found, strict=True)).get(at, []) for at in range(len(rules))]
        with self.rows.opened() as connection:
            for pack in _apart(groups):
                values = {names: _distinct(connection, names) for names in pack}
                asked = [at for names in pack for at in groups[names]]
                positions = dict(
                    zip(asked, self.engine.run(_side_by_side(values), [rules[at] for at in asked]), strict=True)
                )
                for names, distinct in values.items():
                    for at in groups[names]:
                        last = distinct.num_rows - 1
                        guilty = distinct.take(pa.array(sorted({min(p, last) for p in positions[at]}), pa.int64()))
                        broken[at] = _holding(connection, names, guilty) if guilty.num_rows else []
        return broken

    def bad(self) -> dict[int, tuple[str, ...]]:
        return {position: tuple(reasons) for position, reasons in sorted(self.reasons.items())}

    def _note(self, rule: Rule, positions: Sequence[int]) -> None:
        said = rule.said + (f" ({rule.because})" if rule.because else "")
        values = _values(self.rows, rule, positions)
        self.findings.append(
            Finding(rule.type, rule.args, "row", rule.severity, rule.because, len(positions), tuple(values[:EXAMPLES]))
        )
        if rule.severity == "warning" and positions:
            self.warnings.append(f"{len(positions)} rows: {said}, found for example {values[0]}")
        elif rule.severity == "error":
            for position, value in zip(positions, values, strict=True):
                self.reasons.setdefault(position, []).append(f"{said}, found {value}")

    def _winners(self, beside: pa.Table | None = None) -> Any:
        """Positions of the rows that would be published; those of `beside` follow."""
        if beside is None:
            lost = losers(self.rows, self.table.key, self.reasons)
            at = np.arange(self.rows.num_rows)
            return np.delete(at, np.concatenate([lost, np.fromiter(self.reasons, dtype=np.int64)]))
        shared = [name for name in self.rows.column_names if name in beside.column_names]
        rows = pa.concat_tables([self.rows.select(shared), beside.select(shared)], promote_options="permissive")
        valid = np.ones(rows.num_rows, dtype=bool)
        valid[list(self.reasons)] = False
        at = np.flatnonzero(valid)
        won = winners(rows.take(pa.array(at)), self.table.key)
        return at[won.to_numpy(zero_copy_only=False)]

    def _together(self, beside: pa.Table | None) -> None:
        frame = self.frame
        if beside is not None:
            names = [name for name in self.rows.column_names if name in beside.column_names]
            both = pa.concat_tables([self.rows.select(), beside.select(names)], promote_options="permissive")
            frame = to_frame(both)
        caught: list[set[int]] = [set() for _ in self.togethers]
        known = set(self.reasons)
        while True:
            # where a row falls, an earlier delivery of its key takes its place: until none falls
            fit = frame.iloc[self._winners(beside)]
            fallen: set[int] = set()
            for _, mine in by_day(fit):
                for at, positions in enumerate(self.engine.run(mine, self.togethers)):
                    new = {position for position in positions if position < self.rows.num_rows}
                    caught[at] |= new
                    if self.togethers[at].severity == "error":
                        fallen |= new
            if not fallen - known:
                break
            known |= fallen
            for position in fallen:
                self.reasons.setdefault(position, [])
        for rule, found in zip(self.togethers, caught, strict=True):
            self._note(rule, sorted(found))
        self.fit = self._winners() if self.wholes else None


def _apart(groups: Mapping[tuple[str, ...], Any]) -> list[list[tuple[str, ...]]]:
    """Groups of columns in packs that share no column."""
    packs: list[list[tuple[str, ...]]] = []
    for names in groups:
        free = (pack for pack in packs if not any(set(names) & set(other) for other in pack))
        pack = next(free, None)
        if pack is None:
            packs.append([names])
        else:
            pack.append(names)
    return packs


def _distinct(connection: Any, names: Sequence[str]) -> pa.Table:
    """The combinations of values that occur in `rows`; null is a value."""
    found: pa.Table = connection.sql(f"select distinct {quoted(*names)} from rows").to_arrow_table()
    return found


def _side_by_side(tables: Mapping[tuple[str, ...], pa.Table]) -> pd.DataFrame:
    """Columns of several tables in one frame, the shorter ones filled with their last row."""
    size = max(table.num_rows for table in tables.values())
    columns: dict[str, pa.ChunkedArray] = {}
    for table in tables.values():
        at = pa.array(np.minimum(np.arange(size), table.num_rows - 1))
        columns |= {name: table[name].take(at) for name in table.column_names}
    return to_frame(pa.table(columns))


def _holding(connection: Any, names: Sequence[str], guilty: pa.Table) -> list[int]:
    """Positions of the rows that hold one of these combinations of values."""
    connection.register("guilty", guilty)
    same = " and ".join(f'r."{name}" is not distinct from g."{name}"' for name in names)
    found = connection.sql(f"select r.{ROW} from rows r where exists (select 1 from guilty g where {same}) order by 1")
    positions: list[int] = found.to_arrow_table()[ROW].to_pylist()
    return positions


def _values(rows: Typed, rule: Rule, positions: Sequence[int]) -> list[str]:
    """What a rule found in the rows that break it."""
    if not positions:
        return []
    names = [name for name in rule.columns if name in rows.column_names]
    taken = rows.take(positions, names).to_pylist()
    shown = []
    for row in taken:
        pairs = {name.split(UNCAST)[0]: _text(value) for name, value in row.items()}
        shown.append(next(iter(pairs.values())) if len(pairs) == 1 else ", ".join(f"{k} {v}" for k, v in pairs.items()))
    return shown


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    value = value.item() if isinstance(value, np.generic) else value
    text = value.isoformat() if isinstance(value, (dt.date, dt.datetime)) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _partitions(
    found: _Rows, recent: Sequence[int], days: Sequence[dt.date]
) -> tuple[dict[dt.date, tuple[str, ...]], list[str], list[Finding]]:
    """Judge one summary row per partition, then what would be published of it."""
    facts = _facts(found, recent, days)
    summary = pd.DataFrame(facts)
    summary[ROW] = np.arange(len(summary))
    rules = [
        Rule(
            "expect_column_pair_values_a_to_be_greater_than_b",
            {"column_A": a, "column_B": b, "or_equal": True, "ignore_row_if": "either_value_is_missing"},
            said=said,
        )
        for a, b, said in (
            ("rows", "min_rows", "rows: expected at least {min_rows:g}{usual}, found {rows:g}"),
            ("max_rows", "rows", "rows: expected at most {max_rows:g}{usual}, found {rows:g}"),
            (
                "max_bad",
                "bad_share",
                "bad rows: expected at most {max_bad:.1%}, found {bad_share:.1%} ({bad:g}): {why}",
            ),
            ("newest_hours", "min_hours", "{fresh}: expected to reach {min_hours:g} h of the day, found {newest}"),
        )
        if not summary.empty and summary[[a, b]].notna().all(axis=1).any()
    ]
    stopped: dict[dt.date, list[str]] = {}
    findings, warnings = [], []
    for rule, positions in zip(rules, found.engine.run(summary, rules), strict=True):
        said = {position: rule.said.format(**facts[position]) for position in positions}
        for position, text in said.items():
            stopped.setdefault(facts[position]["day"], []).append(text)
        findings.append(
            Finding(rule.type, rule.args, "partition", "error", "", len(positions), tuple(said.values())[:EXAMPLES])
        )
    if found.fit is not None and found.rows.num_rows:
        broken: list[list[str]] = [[] for _ in found.wholes]
        for day, mine in by_day(found.frame.iloc[found.fit]):
            for at, value in enumerate(found.engine.judge(mine, found.wholes)):
                if value is None:
                    continue
                rule = found.wholes[at]
                text = f"{rule.said}{f' ({rule.because})' if rule.because else ''}, found {value}"
                broken[at].append(f"{day}: {value}")
                if rule.severity == "error":
                    stopped.setdefault(day, []).append(text)
                else:
                    warnings.append(f"{day}: {text}")
        findings += [
            Finding(r.type, r.args, "partition", r.severity, r.because, len(b), tuple(b[:EXAMPLES]))
            for r, b in zip(found.wholes, broken, strict=True)
        ]
    return {day: tuple(reasons) for day, reasons in sorted(stopped.items())}, warnings, findings


def _facts(found: _Rows, recent: Sequence[int], days: Sequence[dt.date]) -> list[dict[str, Any]]:
    """Counts, bounds and freshness of each partition."""
    rows, table, bounds = found.rows, found.table, found.table.row_count
    coded = rows.select([PARTITION])[PARTITION].combine_chunks().dictionary_encode()
    at, known = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()
    bad = np.fromiter(found.reasons, dtype=np.int64, count=len(found.reasons))

    def per_day(positions: Any = slice(None)) -> dict[dt.date, int]:
        return dict(zip(known, np.bincount(at[positions], minlength=len(known)).tolist(), strict=True))

    # a file delivered twice does not make a day twice as large
    sizes, again, spoilt = per_day(), per_day(losers(rows, table.key)), per_day(bad)
    newest_of: dict[dt.date, float] = {}
    if table.freshness:
        hours = _hours(rows, table)
        hours.iloc[bad] = np.nan
        newest_of = {known[code]: float(value) for code, value in hours.groupby(at).max().items()}
    why = _commonest(rows, found.reasons)
    facts: list[dict[str, Any]] = []
    history = list(recent)
    for day in sorted({*days, *known}):
        whole, number = sizes.get(day, 0), spoilt.get(day, 0)
        size = whole - again.get(day, 0)
        usual = history[: bounds.recent_partitions]
        median = statistics.median(usual) if len(usual) >= FEW else None
        low = max(bounds.min, (median or 0) * (bounds.min_ratio or 0))
        highs = [bounds.max, median * bounds.max_ratio if median and bounds.max_ratio else None]
        high = min((float(h) for h in highs if h is not None), default=np.nan)
        share = number / whole if whole else np.nan
        newest, judged = newest_of.get(day, np.nan), table.freshness is not None and number < whole
        facts.append(
            {
                "day": day,
                "rows": float(size),
                "min_rows": float(low),
                "max_rows": high,
                "usual": f" (usual: {median:g})" if median is not None else "",
                "bad": number,
                "bad_share": share,
                "max_bad": table.max_bad_share,
                "why": why.get(day, ""),
                "fresh": table.freshness.column if table.freshness else "",
                "newest": "no value" if np.isnan(newest) else f"{newest:.1f} h",
                "newest_hours": (-np.inf if np.isnan(newest) else float(newest)) if judged else np.nan,
                "min_hours": table.freshness.hours if table.freshness and judged else np.nan,
            }
        )
        # as on single days, a partition that stops is no example for the next
        if low <= size and not size > high and not share > table.max_bad_share and size:
            history.insert(0, size)
    return facts


def _hours(rows: Typed, table: TableSpec) -> pd.Series:
    """Hours from midnight of the partition date to the freshness column, per row."""
    column = table.freshness.column if table.freshness else ""
    kind = rows.schema.field(column).type if column in rows.column_names else None
    if kind is None or not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        found = "no such column" if kind is None else str(kind)
        raise SpecError(f"{table.name}: freshness.column: expected a date or a timestamp, found {column}: {found}")
    instant = pa.timestamp("us")
    times = rows.select([column, PARTITION])
    elapsed = pc.subtract(times[column].cast(instant), times[PARTITION].cast(instant)).cast(pa.int64())
    return pd.Series(elapsed.to_numpy().astype(float)) / 3.6e9


def _commonest(rows: Typed, bad: Mapping[int, Sequence[str]]) -> dict[dt.date, str]:
    """Per partition, the reason that most of its bad rows share, with one example."""
    counted: dict[dt.date, Counter[str]] = {}
    example: dict[tuple[dt.date, str], str] = {}
    positions = sorted(bad)
    of = rows.take(positions, [PARTITION])[PARTITION].to_pylist()
    for day, reasons in zip(of, (bad[position] for position in positions), strict=True):
        for reason in reasons:
            rule = reason.split(", found ")[0]
            counted.setdefault(day, Counter())[rule] += 1
            example.setdefault((day, rule), reason)
    said = {}
    for day, counter in counted.items():
        rule, number = max(counter.items(), key=lambda item: (item[1], item[0]))
        said[day] = f"{number} rows: {example[day, rule]}"
    return said


def document(
    validation: Validation, title: str, facts: Mapping[str, Any], unreadable: Mapping[dt.date, str] | None = None
) -> dict[str, Any]:
    """The result as plain JSON values; `unreadable` partitions are stopped too."""
    stopped = {**validation.stopped, **{day: (reason,) for day, reason in (unreadable or {}).items()}}
    return {
        "title": title,
        **facts,
        "success": not stopped and not validation.bad,
        "partitions": {day.isoformat(): n for day, n in validation.rows.items()},
        "stopped": {day.isoformat(): list(reasons) for day, reasons in sorted(stopped.items())},
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
    verdict = f"{doc['quarantined_rows']} rows broke a rule."
    if doc["stopped"]:
        days = {*doc["partitions"], *doc["stopped"]}
        verdict += f" Stopped: {len(doc['stopped'])} of {len(days)} partitions, of which nothing is published."
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
