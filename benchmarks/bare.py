"""The loop as a script of DuckDB and XGBoost: no lake, no registry, no retry, no record. The yardstick of `loop`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from benchmarks import data

TABLES = ("schedules", "actuals", "weather", "planes")
TYPES = {"string": "varchar", "integer": "bigint", "number": "double", "date": "date", "boolean": "boolean"}


def rule(expectation: Any) -> str:
    """An expectation as the SQL that a person would write. A null breaks none."""
    args, kind = expectation.args, expectation.type
    column = args.get("column")
    if kind == "expect_column_values_to_match_regex":
        return f"({column} is null or regexp_matches({column}, '{args['regex']}'))"
    if kind == "expect_column_values_to_be_in_set":
        values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in args["value_set"])
        return f"({column} is null or {column} in ({values}))"
    if kind == "expect_column_values_to_be_between":
        low, high = args.get("min_value", "-infinity"), args.get("max_value", "infinity")
        return f"({column} is null or {column} between '{low}'::double and '{high}'::double)"
    if kind == "expect_column_pair_values_a_to_be_greater_than_b":
        left, right = args["column_A"], args["column_B"]
        sign = ">=" if args.get("or_equal") else ">"
        return f"({left} is null or {right} is null or {left} {sign} {right})"
    return "true"


def typed(table: Any) -> str:
    """The delivered columns with their types, and the derived ones."""
    columns = [
        f"try_cast({name} as timestamptz) at time zone 'UTC' as \"{name}\""
        if column.type == "timestamp"
        else f'try_cast({name} as {TYPES[column.type]}) as "{name}"'
        for name, column in table.columns.items()
    ]
    return ", ".join(columns)


def take_in(connection: Any, landing: Path, folder: Path) -> dict[str, int]:
    """Every table: read, type, check, write what is sound and what is not. Returns rows and sound rows of flights."""
    counts = {}
    for name in TABLES:
        table = data.source().tables[name]
        checks = [rule(expectation) for expectation in table.expectations if expectation.severity == "error"]
        checks += [f"{column} is not null" for column, spec in table.columns.items() if not spec.nullable]
        checks += [f"{table.date_column} = partition_date"] if table.date_column else []
        derived = "".join(f", {expression} {column}" for column, expression in table.derive.items())
        hours, delivered = table.available.hours_after, dict.fromkeys(table.columns, "varchar")
        connection.execute(
            f"create table {name}_all as with raw as (select *, "
            "regexp_extract(filename, '(\\d{4}-\\d\\d-\\d\\d)\\.csv', 1)::date partition_date "
            f"from read_csv('{landing}/nyc_flights/{name}/*.csv.gz', header = true, auto_detect = false, "
            f"nullstr = 'NA', filename = true, columns = {delivered})), "
            f"typed as (select {typed(table)}, partition_date from raw) "
            f"select *, coalesce({' and '.join(checks)}, false) sound, "
            f"partition_date + interval ({hours}) hour available_at from (select *{derived} from typed)"
        )
        shown = f"* exclude ({', '.join(['sound', *table.derive])})"
        connection.execute(f"create table {name} as select {shown} from {name}_all where sound")
        for part, where in (("trusted", "sound"), ("quarantine", "not sound")):
            target = folder / f"{part}-{name}.parquet"
            connection.execute(f"copy (select {shown} from {name}_all where {where}) to '{target}'")
        key = ", ".join(table.key)
        total, sound, distinct = connection.execute(
            f"select count(*), count(*) filter (sound), count(distinct ({key})) filter (sound) from {name}_all"
        ).fetchall()[0]
        if sound != distinct:
            raise ValueError(f"{name}: expected each key once, found {sound - distinct} twice")
        counts[name] = total
        connection.execute(f"drop table {name}_all")
    return counts


def rows(connection: Any, since: dt.date, until: dt.date) -> Any:
    """Labelled features of as-of dates, as a frame; the label is null where it is not known."""
    spec = data.spec()
    keys = ", ".join(spec.entity.key)
    connection.execute(
        f"create or replace table entities as select {keys}, partition_date::timestamp as as_of from schedules "
        f"where partition_date between '{since}' and '{until}'"
    )
    named = ", ".join(
        f"cast({name} as {'varchar' if feature.type == 'category' else 'float'}) as {name}"
        for name, feature in spec.features.items()
    )
    return connection.sql(
        f"select f.as_of::date as_of, {named}, label from ({spec.sql}) f left join (select {keys}, "
        f"({spec.label.expression}) label from actuals) l using ({keys}) order by as_of, {keys}"
    ).df()


def loop(landing: Path, folder: Path) -> dict[str, Any]:
    """All of it. Returns rows and the AUC of the newest days. Raises ValueError: not good enough."""
    import duckdb
    import numpy as np
    import pandas as pd
    import xgboost
    from sklearn.metrics import roc_auc_score

    from include.evergreen.training.fit import params_of

    spec, day = data.spec(), data.DAY
    names = list(spec.features)
    connection = duckdb.connect()
    connection.execute("set threads = 2; set timezone = 'UTC'; set enable_progress_bar = false")
    counts = take_in(connection, landing, folder)

    whole = rows(connection, spec.start_date, day)
    days = pd.to_datetime(whole["as_of"])
    kinds = {name: pd.CategoricalDtype(sorted(whole[name].dropna().unique())) for name in spec.categories}
    whole = whole.astype(kinds)
    today, known = whole[days == pd.Timestamp(day)], whole["label"].notna() & (days < pd.Timestamp(day))
    holdout_from = pd.Timestamp(day) - pd.Timedelta(days=spec.training.holdout_days)
    validation_from = holdout_from - pd.Timedelta(days=spec.training.validation_days)
    frozen = {one for one in days.unique() if spec.gate.frozen.holds(one.date()) and one < holdout_from}
    kept = known & ~days.isin(frozen)
    train, validation = kept & (days < validation_from), kept & (days >= validation_from) & (days < holdout_from)
    holdout = known & (days >= holdout_from)

    def matrix(where: Any, **more: Any) -> Any:
        label = whole.loc[where, "label"].astype("int8")
        return xgboost.QuantileDMatrix(whole.loc[where, names], label=label, enable_categorical=True, nthread=2, **more)

    made = matrix(train)
    booster = xgboost.train(
        params_of(spec, None),
        made,
        spec.training.num_boost_round,
        evals=[(matrix(validation, ref=made), "validation")],
        early_stopping_rounds=spec.training.early_stopping_rounds,
        verbose_eval=False,
    )
    auc = float(
        roc_auc_score(whole.loc[holdout, "label"].astype("int8"), booster.inplace_predict(whole.loc[holdout, names]))
    )
    if auc < spec.gate.floors["auc"]:
        raise ValueError(f"expected an AUC of {spec.gate.floors['auc']}, found {auc:.3f}")
    booster.save_model(folder / "model.ubj")

    scored = xgboost.DMatrix(today[names], enable_categorical=True)
    effects = booster.predict(scored, pred_contribs=True)[:, :-1]
    strongest = np.argsort(-np.abs(effects), axis=1)[:, : spec.scoring.reasons]
    out = today.assign(probability=booster.predict(scored), reasons=[[names[i] for i in row] for row in strongest])
    out.to_parquet(folder / "predictions.parquet")

    drift = distances(whole.loc[train, names], today[names])
    (folder / "report.html").write_text(pd.Series(drift).to_frame("distance").to_html(), encoding="utf-8")
    return {"rows": counts["schedules"], "auc": auc, "trees": booster.num_boosted_rounds()}


def distances(reference: Any, current: Any) -> dict[str, float]:
    """Jensen-Shannon distance of a category, Wasserstein distance of a number in its standard deviations."""
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    found = {}
    for name in reference:
        if reference[name].dtype == "category":
            shares = [one[name].value_counts(normalize=True, sort=False) for one in (reference, current)]
            found[name] = float(jensenshannon(shares[0].to_numpy(), shares[1].to_numpy(), base=2))
        else:
            left, right = reference[name].dropna().to_numpy(), current[name].dropna().to_numpy()
            found[name] = float(wasserstein_distance(left, right) / max(left.std(), 1e-9))
    return found
