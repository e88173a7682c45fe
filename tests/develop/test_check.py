from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from tests.develop.flights import COLUMNS, OUTCOME, SCOPE, SLICES, features

from loopwright.develop.check import check
from loopwright.records.declarations import Candidate, Heuristic, Objective, Slice

GOOD: dict[str, Any] = {
    "columns": COLUMNS,
    "features": features,
    "heuristic": SCOPE.heuristic,
    "outcome": OUTCOME,
    "slices": SLICES,
    "candidates": [Candidate("simple", LogisticRegression)],
    "objectives": SCOPE.objectives,
}


def test_a_good_loop_is_well() -> None:
    found = check(**GOOD)
    assert [(name, ok) for name, ok, _ in found.items] == [
        ("features", True), ("heuristic", True), ("slices", True), ("candidate simple", True), ("objectives", True),
    ]  # fmt: skip
    details = {name: detail for name, _, detail in found.items}
    assert details["features"] == "7 features, 2 of them categories, from 7 of 9 columns"
    assert details["heuristic"] == "a graph over delay"
    assert found.features == ["delay", "log_distance", "hub", "wind", "hour", "carrier", "gate"]


def test_everything_wrong_is_named_at_once() -> None:
    found = check(
        **{
            **GOOD,
            "features": lambda f: {"a": f.dealy},
            "heuristic": Heuristic(lambda f: f.carrier),
            "slices": [Slice("delay", lambda f: f.delay)],
            "candidates": [Candidate("ridge", RidgeClassifier)],
            "objectives": [Objective("fair", "partners", "recall_gap:crew", at_most=0.1)],
        }
    )
    assert not any(ok for _, ok, _ in found.items)
    text = " ".join(detail for _, _, detail in found.items)
    for part in ("there is delay", "condition or a number", "string or a condition", "no predict_proba", "no slice 'crew'"):
        assert part in text


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (Objective("late", "ops", "average_precision", at_least=1.5), "at_least=1.5 can never be met, the best there is is 1"),
        (Objective("late", "ops", "log_loss", at_most=-0.1), "at_most=-0.1 can never be met, the best there is is 0"),
        (Objective("fast", "ops", "latency_p99_ms", at_most=-1), "at_most=-1 can never be met, the best there is is 0"),
        (Objective("late", "ops", "average_precision", at_least=1.0), ""),
    ],
)
def test_target_that_no_model_can_meet_is_named(objective: Objective, why: str) -> None:
    *_, (_, ok, detail) = check(**{**GOOD, "objectives": [objective]}).items
    assert (ok, why in detail) == (not why, True)
