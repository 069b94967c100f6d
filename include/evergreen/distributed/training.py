"""Train on a Dask cluster: each worker reads its own parts of the staged rows; the client sees counts and the model."""

from __future__ import annotations

import datetime as dt
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from include.evergreen.distributed.apart import apart, end
from include.evergreen.distributed.cluster import connected, objects, watched, workers
from include.evergreen.distributed.parts import bundle_at, read, share
from include.evergreen.errors import Unavailable
from include.evergreen.specs import ModelSpec
from include.evergreen.training.bundle import ModelBundle
from include.evergreen.training.fit import (
    Split,
    categories_of,
    cut,
    described,
    enough,
    label_of,
    params_of,
    predicted,
    tune,
)
from include.evergreen.training.rows import joined

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from include.evergreen.platform import Platform

NAMES = ("training", "validation", "holdout")


@dataclass(frozen=True)
class _Survey:
    """What a part holds. `labels`: rows by part of the split and label."""

    rows: int
    labels: Counter[tuple[str, bool]]
    categories: dict[str, tuple[str, ...]]


def _split(spec: ModelSpec, key: str, as_of: dt.date) -> Split:
    return cut(read(key), as_of, spec.training, spec.gate.frozen)


def _survey(spec: ModelSpec, key: str, as_of: dt.date) -> _Survey:
    parts = _split(spec, key, as_of)
    labels: Counter[tuple[str, bool]] = Counter()
    for name, part in zip(NAMES, (parts.train, parts.validation, parts.holdout), strict=True):
        for label, count in zip(*np.unique(label_of(part), return_counts=True), strict=True):
            labels[name, bool(label)] += int(count)
    return _Survey(sum(labels.values()), labels, categories_of(spec, parts.train))


def _frame(
    spec: ModelSpec, draft: ModelBundle, as_of: dt.date, key: str, name: str, number: int, pieces: int
) -> pd.DataFrame:
    """One of the pieces of a part's training or validation rows, as XGBoost trains on them."""
    parts = _split(spec, key, as_of)
    rows = parts.train if name == NAMES[0] else parts.validation
    first, last = rows.num_rows * number // pieces, rows.num_rows * (number + 1) // pieces
    rows = rows.slice(first, last - first)
    frame: pd.DataFrame = draft.matrix(rows)
    return frame.assign(label=label_of(rows))


def _predicted(spec: ModelSpec, key: str, as_of: dt.date, model: str, sha256: str) -> np.ndarray:
    parts = _split(spec, key, as_of)
    return predicted(bundle_at(model, sha256), joined([parts.train, parts.validation, parts.holdout]))


def _described(
    spec: ModelSpec,
    keys: Sequence[str],
    as_of: dt.date,
    model: str,
    sha256: str,
    params: dict[str, Any],
    compute: dict[str, Any],
    prediction: list[np.ndarray],
) -> dict[str, bytes]:
    """The whole bundle, made by one worker: the rows on its disk, one column of them in its memory."""
    from include.evergreen.pipeline.training_rows import fetched

    with fetched(objects(), keys) as rows:
        parts = cut(rows, as_of, spec.training, spec.gate.frozen)
        bundle = bundle_at(model, sha256)
        return described(spec, bundle, params, parts, compute, np.concatenate(prediction)).files()


def _placed(client: Client, tasks: Sequence[tuple[Any, ...]], addresses: Sequence[str]) -> Any:
    """A data frame of `_frame` of each of the tasks, spread evenly over the workers."""
    from dask import dataframe

    spec, draft, *_ = tasks[0]
    frames = [
        client.submit(_frame, *task, workers=[addresses[number % len(addresses)]], pure=False)
        for number, task in enumerate(tasks)
    ]
    empty = pa.table({name: pa.array([], _TYPES[feature.type]) for name, feature in spec.features.items()})
    meta = draft.matrix(empty).assign(label=np.empty(0, dtype="int8"))
    return dataframe.from_delayed(frames, meta=meta, verify_meta=False)


def _settle(client: Client, matrix: Any, addresses: Sequence[str]) -> None:
    """Bring each part to the worker it was meant for. Dask gives parts of a slow worker to the others, and XGBoost
    refuses a worker that has none."""
    from distributed import wait

    held = {part.key: part for parts in matrix.worker_map.values() for part in parts}
    placed: dict[str, list[Any]] = {address: [] for address in addresses}
    for key, number in matrix.partition_order.items():
        address = addresses[number % len(addresses)]
        placed[address].append(client.submit(_same, held[key], workers=[address], pure=False))
    wait([part for parts in placed.values() for part in parts])
    matrix.worker_map = placed


def _same(part: Any) -> Any:
    return part


_TYPES = {"number": pa.float32(), "category": pa.string()}


def fit(
    platform: Platform,
    spec: ModelSpec,
    keys: Sequence[str],
    as_of: dt.date,
    overrides: dict[str, Any] | None,
    prefix: str,
) -> ModelBundle:
    """`training.fit.fit` on a Dask cluster. The same rows give metrics alike, not the same bytes.

    Args:
        keys: the staged parts, sorted by `as_of`. prefix: where the trained model is shared with the workers.

    Raises:
        NotEnoughData, NotFound, Unavailable, SettingsError.
    """
    with connected(platform.settings.dask) as client:
        surveys = watched(client, lambda: client.gather([client.submit(_survey, spec, key, as_of) for key in keys]))
        draft = _draft(spec, surveys, as_of)
        held = {name: [k for k, s in zip(keys, surveys, strict=True) if _count(s, name)] for name in NAMES[:2]}

        params = params_of(spec, overrides)
        with _alone(client):
            addresses = workers(client)
            watched(client, lambda: _idle(client, addresses), together=True)

            def tasks(name: str) -> list[tuple[Any, ...]]:
                pieces = -(-len(addresses) // len(held[name]))  # each worker has a part in it
                return [(spec, draft, as_of, key, name, piece, pieces) for key in held[name] for piece in range(pieces)]

            params, booster = watched(
                client, lambda: _train(client, spec, params, tasks(NAMES[0]), tasks(NAMES[1]), addresses), together=True
            )
        model = ModelBundle(draft.model, as_of, booster, draft.features, draft.categories)
        shared = share(platform.objects, model, f"{prefix}/model")
        compute = {"kind": "dask", "workers": len(addresses), "partitions": len(keys)}

        def finish() -> dict[str, bytes]:
            found = [client.submit(_predicted, spec, key, as_of, shared, model.sha256) for key in keys]
            made = client.submit(_described, spec, keys, as_of, shared, model.sha256, params, compute, found)
            files: dict[str, bytes] = made.result()
            return files

        return ModelBundle.from_files(watched(client, finish))


@contextmanager
def _alone(client: Client) -> Iterator[None]:
    """One training at a time on a cluster, its tracker in a process apart. Raises Unavailable."""
    from distributed import Lock

    lock, ask = Lock("evergreen-training"), client.run_on_scheduler  # a dead client's is free after some 30 s
    watched(client, lock.acquire)
    try:
        watched(client, lambda: ask(_unlock))
        client.run_on_scheduler = lambda function, *arguments: ask(
            apart, client.id, function.__module__, function.__name__, *arguments
        )
        yield
    except Unavailable:
        with suppress(Exception):
            _restart(client)
        raise
    finally:
        client.run_on_scheduler = ask
        with suppress(Exception):  # a silent scheduler, or a closed client
            watched(client, lambda: (ask(end, client.id), lock.release()))


def _restart(client: Client) -> None:
    """Have the workers start anew, without waiting for it: one that was connecting to a lost one waits for ever."""
    left = workers(client)

    def ask() -> None:
        with suppress(Exception, CancelledError):  # the client is closed meanwhile
            client.restart_workers(left, raise_for_error=False)

    Thread(target=ask, daemon=True).start()
    time.sleep(1)  # it is sent: the scheduler goes on without this client


def _idle(client: Client, addresses: Sequence[str]) -> None:
    """Wait for what workers still compute, maybe for a client that was killed."""
    client.gather([client.submit(len, (), workers=[address], pure=False) for address in addresses])


def _unlock(dask_scheduler: Any) -> None:
    """On the scheduler: free the workers that XGBoost locked for a client that was killed since. It does not do so
    itself, and the next training would wait for ever."""
    locks = dask_scheduler.extensions["multi_locks"]
    for held in list(locks.requests):
        locks.release(id=held)


def _count(survey: _Survey, name: str) -> int:
    return sum(count for (part, _), count in survey.labels.items() if part == name)


def _draft(spec: ModelSpec, surveys: Sequence[_Survey], as_of: dt.date) -> ModelBundle:
    """The model to be, with the categories of all parts. Raises NotEnoughData."""
    labels: Counter[tuple[str, bool]] = Counter()
    for survey in surveys:
        labels.update(survey.labels)
    found = {
        name: (labels[name, False] + labels[name, True], (labels[name, False] > 0) + (labels[name, True] > 0))
        for name in NAMES
    }
    none = pa.table({"as_of": pa.array([], pa.date32())})
    bounds = cut(none, as_of, spec.training, spec.gate.frozen)
    enough(found, sum(survey.rows for survey in surveys), bounds, as_of, spec.training)
    return ModelBundle(
        model=spec.name,
        as_of=as_of,
        booster=b"",
        features=tuple(spec.features),
        categories={
            name: tuple(sorted({value for survey in surveys for value in survey.categories[name]}))
            for name in spec.categories
        },
    )


def _train(
    client: Client,
    spec: ModelSpec,
    params: dict[str, Any],
    train: Sequence[tuple[Any, ...]],
    validation: Sequence[tuple[Any, ...]],
    addresses: Sequence[str],
) -> tuple[dict[str, Any], bytes]:
    """The parameters used, and the trained booster as UBJ."""
    from xgboost import dask as on_dask

    rows, held = _placed(client, train, addresses), _placed(client, validation, addresses)
    features = list(spec.features)
    made = on_dask.DaskQuantileDMatrix(client, rows[features], rows["label"], enable_categorical=True)
    unseen = on_dask.DaskQuantileDMatrix(client, held[features], held["label"], enable_categorical=True, ref=made)
    for matrix in (made, unseen):
        _settle(client, matrix, addresses)

    def trained(tried: dict[str, Any]) -> Any:
        return on_dask.train(
            client,
            tried,
            made,
            spec.training.num_boost_round,
            evals=[(unseen, "validation")],
            early_stopping_rounds=spec.training.early_stopping_rounds,
            verbose_eval=False,
        )["booster"]

    if spec.training.trials:
        params = tune(spec, params, lambda tried: float(trained(tried).best_score))
    booster = trained(params)
    return params, bytes(booster[: booster.best_iteration + 1].save_raw("ubj"))
