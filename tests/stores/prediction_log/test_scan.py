"""Samples of the units of a log: nested, keyed, and the same rows and outcomes as reading everything and keeping those units."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from tests.deploy.loops import LOOP
from tests.deploy.rollouts import Rollout

from loopwright.stores.outcomes.labelled import with_truth
from loopwright.stores.prediction_log.scan import LogPart, UnitSample, known_outcomes

COLUMNS = ["_id", "_at", "_unit", "_arm", "_package", "_score", "origin"]


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    made = Rollout(tmp_path_factory.mktemp("log"), {"weight": 0.0501})
    made.serve(3000, timedelta(minutes=10))
    made.serve(10, timedelta(minutes=50))
    return made


def joined(rollout: Rollout, sample: UnitSample | None) -> dict[str, dict[str, Any]]:
    now = rollout.clock.now()
    found = with_truth(
        rollout.home, LOOP, rollout.loop.outcome, start=now - timedelta(hours=2), end=now, known_at=now, part=LogPart(["canary", "control", "champion"], COLUMNS, sample),
    )  # fmt: skip
    return {row["_id"]: row for row in found.select([*COLUMNS, "_truth", "_known_at", "_stated"]).to_pylist()}


def test_sample_has_the_rows_and_truths_of_its_units_and_fewer_halvings_have_them_too(rollout: Rollout) -> None:
    every = joined(rollout, None)
    parts = [joined(rollout, UnitSample("", "salt", halvings)) for halvings in (0, 1, 2, 3)]
    assert parts[0] == every
    for halvings, part in enumerate(parts):
        share = len(part) / len(every)
        assert share == pytest.approx(0.5**halvings, abs=4 * np.sqrt(0.25 / len(every)))
        assert part.items() <= parts[max(0, halvings - 1)].items()
    assert any(row["_truth"] is not None for row in parts[3].values())


def test_sample_of_another_salt_has_other_units(rollout: Rollout) -> None:
    one, other = (set(joined(rollout, UnitSample("", salt, 1))) for salt in ("one", "other"))
    assert len(one & other) / len(one) == pytest.approx(0.5, abs=0.06)


def test_sample_takes_all_rows_of_a_unit_or_none(rollout: Rollout) -> None:
    every, seen = joined(rollout, None), set()
    for salt in "abcdef":
        part = joined(rollout, UnitSample("origin", salt, 1))
        origins = {row["origin"] for row in part.values()}
        seen.add(len(origins))
        assert part == {id: row for id, row in every.items() if row["origin"] in origins}
    assert seen & {1, 2}


def test_known_outcomes_counts_without_reading_them(rollout: Rollout) -> None:
    now = rollout.clock.now()
    assert known_outcomes(rollout.home, LOOP, since=now - timedelta(days=1), known_by=now) == rollout.home.lake.count(
        f"outcomes.{LOOP}"
    )
    assert known_outcomes(rollout.home, "other", since=now, known_by=now) == 0
