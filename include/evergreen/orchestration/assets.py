"""Every asset, declared once. Events carry a partition key: the as-of date, or `<model>|<date>` for a retrain."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import Asset

RETRAIN_SEPARATOR = "|"


def trusted(source: str) -> Asset:
    """All tables of a source are in for one as-of date."""
    return Asset(name=f"trusted__{source}", uri=f"x-evergreen://trusted/{source}")


def predictions(model: str) -> Asset:
    """A model's predictions of one as-of date are published."""
    return Asset(name=f"predictions__{model}", uri=f"x-evergreen://predictions/{model}")


def retrain_requested(model: str) -> Asset:
    """The retrain governor allowed a training, or the schedule asked for one."""
    return Asset(name=f"retrain_requested__{model}", uri=f"x-evergreen://retrain_requested/{model}")


def champion(model: str) -> Asset:
    """A new champion is in force."""
    return Asset(name=f"champion__{model}", uri=f"x-evergreen://champion/{model}")


def approval_requested(model: str) -> Asset:
    """A candidate that the gate accepted waits for a person; keyed like a retrain."""
    return Asset(name=f"approval_requested__{model}", uri=f"x-evergreen://approval_requested/{model}")


def retrain_key(model: str, as_of: dt.date) -> str:
    return f"{model}{RETRAIN_SEPARATOR}{as_of.isoformat()}"


def date_of(key: str) -> dt.date:
    """The as-of date in a partition key of any of these assets. Raises ValueError."""
    return dt.date.fromisoformat(key.rsplit(RETRAIN_SEPARATOR, 1)[-1])
