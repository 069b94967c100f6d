"""The gate on real flights: it refuses a twin and worse models, accepts a better one, and says what it can see."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace

import numpy as np
from rich.console import Console

from include.evergreen.promotion.selftest import EXPECTED
from include.evergreen.replay.selftest import measure
from include.evergreen.replay.world import History

AS_OF = dt.date(2013, 6, 1)
TRIALS, RESAMPLES = 200, 500


def test_the_gate_answers_no_no_no_yes(flights: History) -> None:
    year = flights
    spec = year.model.model_copy(update={"gate": year.model.gate.model_copy(update={"resamples": RESAMPLES})})
    allowed = 1 - spec.gate.confidence
    found = measure(replace(year, model=spec), AS_OF, TRIALS, Console(quiet=True))

    accepted = {t.rival: t.accepted / t.trials for t in found.trials}
    assert accepted.keys() == EXPECTED.keys()
    assert all(t.trials == TRIALS for t in found.trials)
    assert accepted["twin"] == 0, "no draw of days makes identical bytes better"
    assert accepted["shuffled_labels"] <= allowed
    assert accepted["half_the_features"] <= allowed
    assert accepted["more_data"] > 0.5
    assert found.false_accepts <= allowed
    assert math.isclose(found.false_rejects, 1 - accepted["more_data"])

    gains = {t.rival: float(np.mean(t.gains)) for t in found.trials}
    assert gains["twin"] == 0
    assert gains["shuffled_labels"] < gains["half_the_features"] < 0 < gains["more_data"]
    assert 0 < found.smallest_gain < 0.1
    assert found.fresh_days == spec.training.holdout_days
    assert found.frozen_days >= spec.gate.frozen.min_days
