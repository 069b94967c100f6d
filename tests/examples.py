"""A small world for tests: a source `shop` with two tables, a model `late_order`, rows with a known pattern."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from include.evergreen.specs import ModelSpec, SourceSpec

FIRST = dt.date(2024, 1, 1)

SQL = """
select e.order_id, e.as_of, o.region, o.amount, r.late as late_before
from entities e
join orders o on o.order_id = e.order_id and o.available_at <= e.as_of
left join (
    select d.as_of, avg(case when x.took > 3 then 1.0 else 0.0 end) as late
    from (select distinct as_of from entities) d
    join outcomes x on x.available_at <= d.as_of and x.day >= d.as_of::date - 5
    group by d.as_of
) r on r.as_of = e.as_of
"""


def source() -> SourceSpec:
    """`orders` are known at midnight of their day, `outcomes` a day later."""
    return SourceSpec.model_validate(
        {
            "name": "shop",
            "description": "A shop",
            "owner": "tests",
            "start_date": FIRST,
            "tables": {
                "orders": {
                    "description": "Orders of a day",
                    "path": "shop/orders/{date}.csv",
                    "date_column": "day",
                    "key": ["order_id"],
                    "columns": {
                        "day": {"type": "date", "nullable": False},
                        "order_id": {"type": "integer", "nullable": False},
                        "region": {"type": "string"},
                        "amount": {"type": "number"},
                    },
                },
                "outcomes": {
                    "description": "What became of them",
                    "path": "shop/outcomes/{date}.csv",
                    "lag_days": 1,
                    "date_column": "day",
                    "key": ["order_id"],
                    "available": {"hours_after": 24},
                    "columns": {
                        "day": {"type": "date", "nullable": False},
                        "order_id": {"type": "integer", "nullable": False},
                        "took": {"type": "integer"},
                    },
                },
            },
        }
    )


def model(**changes: Any) -> ModelSpec:
    """`late_order`: will an order take more than three days?"""
    return ModelSpec.model_validate(
        {
            "name": "late_order",
            "description": "Will an order be late?",
            "owner": "tests",
            "source": "shop",
            "start_date": FIRST,
            "entity": {"table": "orders", "key": ["order_id"]},
            "label": {"table": "outcomes", "expression": "took > 3"},
            "lookback_days": 6,
            "features": {"region": {"type": "category"}, "amount": {}, "late_before": {}},
            "training": {
                "window_days": 60,
                "validation_days": 5,
                "holdout_days": 5,
                "min_rows": 100,
                "params": {"max_depth": 3, "eta": 0.3},
                "num_boost_round": 20,
                "early_stopping_rounds": 5,
                "threads": 1,
            },
            "gate": {
                "min_holdout_rows": 100,
                "max_ms_per_1k": 10_000,
                "baseline_by": "region",
                "frozen": {"every_days": 5, "min_days": 2},
                "slices": ["region"],
                "min_slice_rows": 100,
            },
            "monitoring": {"sketch_rows": 500, "min_matured_rows": 100},
            "sql": SQL,
            **changes,
        }
    )


def rows(days: int, per_day: int = 60, seed: int = 1) -> tuple[pa.Table, pa.Table]:
    """(orders, outcomes) as trusted tables hold them: the region and the amount decide, with noise."""
    random = np.random.default_rng(seed)
    count = days * per_day
    offset = np.repeat(np.arange(days), per_day)
    day = np.datetime64(FIRST) + offset
    region = random.choice(["north", "south", "west"], count)
    amount = random.gamma(2.0, 50.0, count)
    odds = -1.5 + 2.0 * (region == "south") + 0.012 * (amount - 100)
    late = random.random(count) < 1 / (1 + np.exp(-odds))
    key = np.arange(count)
    midnight = day.astype("datetime64[us]")
    shared = {
        "day": pa.array(day, pa.date32()),
        "order_id": pa.array(key, pa.int64()),
        "partition_date": pa.array(day, pa.date32()),
        "source_file": pa.array(["f"] * count),
        "source_row": pa.array(key + 1, pa.int64()),
    }
    orders = pa.table({**shared, "region": region, "amount": amount, "available_at": pa.array(midnight)})
    outcomes = pa.table(
        {
            **shared,
            "took": pa.array(np.where(late, 5, 2), pa.int64()),
            "available_at": pa.array(midnight + np.timedelta64(1, "D")),
        }
    )
    return orders, outcomes


def dates(days: int) -> list[dt.date]:
    return [FIRST + dt.timedelta(days=i) for i in range(days)]


def fill(lake: Any, days: int, **options: Any) -> None:
    """Write `days` days of the shop into a lake."""
    orders, outcomes = rows(days, **options)
    lake.write("trusted.orders", orders, dates(days))
    lake.write("trusted.outcomes", outcomes, dates(days))
