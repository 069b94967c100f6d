"""What a task needs to know of its run: the as-of date, a key that names the run, who started it."""

from __future__ import annotations

import datetime as dt
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk import get_current_context, get_parsing_context

from include.evergreen.errors import Refused
from include.evergreen.orchestration.assets import date_of
from include.evergreen.specs import ModelSpec, SourceSpec, model, source, survey, survey_sources


def wanted(dag_id: str) -> bool:
    """False when this file is parsed for one task of another DAG: a factory can skip the rest."""
    only = get_parsing_context().dag_id
    return only is None or only == dag_id


def models(*verbs: str) -> Iterator[tuple[ModelSpec, SourceSpec]]:
    """The models that this parse makes DAGs `<verb>__<model>` of, with their sources.

    That is one in the process of a task, and no other spec is read; else every sound one: `dags/specs.py` tells of the
    others. Raises SpecError: the one is wrong.
    """
    only = get_parsing_context().dag_id
    verb, _, name = (only or "").partition("__")
    if only is None:
        with _uncollected():
            yield from survey().pairs
    elif verb in verbs:
        spec = model(name)
        yield spec, source(spec.source)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for while DAGs are made, nor ever among them: a tenth of the time.

    They live as long as the process: one of the DAG processor that ends with its file.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def sources(verb: str) -> list[SourceSpec]:
    """The sources that this parse makes DAGs `<verb>__<source>` of, as `models` does. Raises SpecError."""
    only = get_parsing_context().dag_id
    if only is None:
        return list(survey_sources()[0].values())
    of, _, name = only.partition("__")
    return [source(name)] if of == verb else []


def as_of() -> dt.date:
    """The run's as-of date: its partition key, else the param `as_of`.

    Raises:
        Refused: the run has neither, or what it has is no date.
    """
    context: Any = get_current_context()
    found = context["dag_run"].partition_key or context["params"].get("as_of")
    if not found:
        raise Refused("expected a partition key or the param as_of (YYYY-MM-DD), found neither")
    try:
        return date_of(str(found))
    except ValueError as error:
        raise Refused(f"expected an as-of date (YYYY-MM-DD), found {found!r}") from error


def params() -> dict[str, Any]:
    """The run's params."""
    context: Any = get_current_context()
    return dict(context["params"])


def reason(asked_by: Any) -> str:
    """Why this run was started: the param `reason`, else what the event of the asset `asked_by` says.

    Raises:
        Refused: a run by hand that gives none.
    """
    context: Any = get_current_context()
    if said := context["params"].get("reason"):
        return str(said)
    events = context["triggering_asset_events"].get(asked_by, [])
    reasons = [str(one) for event in events for one in event.extra["reasons"]]
    if not reasons:
        raise Refused("expected the param reason: a training by hand says why, found none")
    return "; ".join(dict.fromkeys(reasons))


def person() -> str | None:
    """Who started this run by hand and gave a reason; None for a run that an event or a schedule started."""
    return actor() if params().get("reason") else None


def payloads(asked_by: Any) -> list[dict[str, Any]]:
    """What the events of the asset `asked_by` carry that started this run; empty for a run by hand."""
    context: Any = get_current_context()
    return [dict(event.extra) for event in context["triggering_asset_events"].get(asked_by, [])]


def run_key() -> str:
    """`key_of` this run."""
    context: Any = get_current_context()
    return key_of(context["run_id"])


def key_of(run_id: str) -> str:
    """A run id with only characters that are safe in object keys, tags and SQL strings."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)


def actor() -> str:
    """Who started this run: the user who did it by hand, else `airflow`. At most as long as the ledger's column."""
    context: Any = get_current_context()
    return str(context["dag_run"].triggering_user_name or "airflow")[:64]


def emit(asset: Any, key: str, **extra: Any) -> None:
    """Put a partition key and a payload on the event of a task's outlet."""
    context: Any = get_current_context()
    event = context["outlet_events"][asset]
    event.add_partitions(key)
    event.extra = extra
