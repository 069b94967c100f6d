"""The loop with the engine's libraries as a person would call them, a process for each step.

python -m benchmarks.by_process <step> <landed> <folder>
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import bare, data


def take_in(landed: Path, folder: Path) -> None:
    """Read every file with pandas, one table a Parquet file."""
    import pandas as pd

    for name in bare.TABLES:
        files = sorted((landed / "s3/landing/nyc_flights" / name).glob("*.csv.gz"))
        frames = [
            pd.read_csv(file, na_values=["NA"], keep_default_na=False).assign(partition_date=file.name[:10])
            for file in files
        ]
        frame = pd.concat(frames, ignore_index=True)
        table = data.source().tables[name]
        for column, spec in table.columns.items():
            if spec.type == "timestamp":
                frame[column] = pd.to_datetime(frame[column], utc=True).dt.tz_localize(None)
            elif spec.type == "date":
                frame[column] = pd.to_datetime(frame[column])
            elif spec.type == "integer":
                frame[column] = frame[column].astype("Int64")
        frame["partition_date"] = pd.to_datetime(frame["partition_date"])
        hours = pd.Timedelta(hours=table.available.hours_after)
        frame.assign(available_at=frame["partition_date"] + hours).to_parquet(folder / f"{name}.parquet")


def validate(landed: Path, folder: Path) -> None:
    """Every rule of the source by Great Expectations, on pandas."""
    import duckdb
    import great_expectations as gx

    for name in bare.TABLES:
        table = data.source().tables[name]
        derived = "".join(f", {expression} {column}" for column, expression in table.derive.items())
        frame = duckdb.sql(f"select *{derived} from '{folder / name}.parquet'").df()
        context: Any = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        batch = (
            context.data_sources.add_pandas("memory")
            .add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe("all")
        )
        suite = gx.ExpectationSuite(name=name)
        for expectation in table.expectations:
            made = getattr(gx.expectations, "".join(part.capitalize() for part in expectation.type.split("_")))
            suite.add_expectation(made(**expectation.args))
        for column, spec in table.columns.items():
            if not spec.nullable:
                suite.add_expectation(gx.expectations.ExpectColumnValuesToNotBeNull(column=column))
        found = batch.get_batch({"dataframe": frame}).validate(suite, result_format="BOOLEAN_ONLY")
        failed = [
            str(one.expectation_config.type) for one in found.results if one.exception_info.get("raised_exception")
        ]
        if failed:
            raise ValueError(f"{name}: expected every rule to run, found errors in {failed}")


def _rows(folder: Path) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("set threads = 2; set timezone = 'UTC'; set enable_progress_bar = false")
    for name in bare.TABLES:
        connection.execute(f"create view {name} as select * from '{folder / name}.parquet'")
    return bare.rows(connection, data.spec().start_date, data.DAY)


def train(landed: Path, folder: Path) -> None:
    """Features, XGBoost, the metric, registration with MLflow."""
    import mlflow
    import pandas as pd
    import xgboost
    from mlflow.models import infer_signature
    from sklearn.metrics import roc_auc_score

    from include.evergreen.training.fit import params_of

    spec = data.spec()
    whole = _rows(folder)
    whole.to_parquet(folder / "rows.parquet")
    names, days = list(spec.features), pd.to_datetime(whole["as_of"])
    whole = whole.astype(dict.fromkeys(spec.categories, "category"))
    known = whole["label"].notna() & (days < pd.Timestamp(data.DAY))
    holdout_from = pd.Timestamp(data.DAY) - pd.Timedelta(days=spec.training.holdout_days)
    validation_from = holdout_from - pd.Timedelta(days=spec.training.validation_days)
    parts = {
        "train": known & (days < validation_from),
        "validation": known & (days >= validation_from) & (days < holdout_from),
        "holdout": known & (days >= holdout_from),
    }
    made = {
        name: xgboost.DMatrix(
            whole.loc[where, names], whole.loc[where, "label"].astype("int8"), enable_categorical=True
        )
        for name, where in parts.items()
    }
    booster = xgboost.train(
        params_of(spec, None),
        made["train"],
        spec.training.num_boost_round,
        evals=[(made["validation"], "validation")],
        early_stopping_rounds=spec.training.early_stopping_rounds,
        verbose_eval=False,
    )
    auc = float(roc_auc_score(made["holdout"].get_label(), booster.predict(made["holdout"])))
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("loop", (folder / "mlflow").as_uri()))
    with mlflow.start_run():
        mlflow.log_params(spec.training.params)
        mlflow.log_metric("auc", auc)
        few = whole.loc[parts["holdout"], names].head(100)
        mlflow.xgboost.log_model(
            booster,
            name="model",
            registered_model_name="loop",
            model_format="ubj",
            signature=infer_signature(few.astype(dict.fromkeys(spec.categories, "str"))),
            pip_requirements=["xgboost"],
        )
    (folder / "auc").write_text(str(auc), encoding="ascii")


def score(landed: Path, folder: Path) -> None:
    """One day with the registered model, with the reasons."""
    import mlflow
    import numpy as np
    import pandas as pd
    import xgboost

    spec = data.spec()
    whole = pd.read_parquet(folder / "rows.parquet").astype(dict.fromkeys(spec.categories, "category"))
    names = list(spec.features)
    today = whole[pd.to_datetime(whole["as_of"]) == pd.Timestamp(data.DAY)]
    booster = mlflow.xgboost.load_model("models:/loop/1")
    matrix = xgboost.DMatrix(today[names], enable_categorical=True)
    effects = booster.predict(matrix, pred_contribs=True)[:, :-1]
    strongest = np.argsort(-np.abs(effects), axis=1)[:, : spec.scoring.reasons]
    today.assign(
        probability=booster.predict(matrix), reasons=[[names[i] for i in row] for row in strongest]
    ).to_parquet(folder / "predictions.parquet")


def monitor(landed: Path, folder: Path) -> None:
    """Evidently's preset: the scored day against all rows before it."""
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    names = list(data.spec().features)
    whole, today = pd.read_parquet(folder / "rows.parquet"), pd.read_parquet(folder / "predictions.parquet")
    reference = whole[pd.to_datetime(whole["as_of"]) < pd.Timestamp(data.DAY)]
    current = today[names].astype(dict.fromkeys(data.spec().categories, "str"))
    report = Report([DataDriftPreset()]).run(current, reference[names])
    report.save_html(str(folder / "report.html"))


if __name__ == "__main__":
    {"take_in": take_in, "validate": validate, "train": train, "score": score, "monitor": monitor}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
