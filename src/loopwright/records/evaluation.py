"""Measured quality: what `develop` hands to `deploy`, `monitor`, `business` and the leaderboard."""

from datetime import datetime
from typing import ClassVar

import msgspec

from loopwright.records.ledger.record import Record


class Estimate(msgspec.Struct, frozen=True):
    """A value with a 95 % interval [low, high] from `n` rows; NaN is written as null."""

    value: float
    low: float
    high: float
    n: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Every metric, overall and on every slice, with intervals; latencies in microseconds for a single row in process.

    `slices` maps slice name -> slice value -> metric -> estimate. `value_per_prediction` is in the scope's currency,
    relative to no model. `baseline` values are on the same rows.
    """

    rows: int
    positives: int
    threshold: float
    metrics: dict[str, Estimate]
    slices: dict[str, dict[str, dict[str, Estimate]]]
    latency_p50_us: float
    latency_p99_us: float
    size_bytes: int
    train_seconds: float
    value_per_prediction: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A paired comparison on the same rows: `difference` is challenger minus incumbent in `metric`."""

    challenger: str
    incumbent: str
    metric: str
    difference: Estimate
    latency_difference_us: float


class LeaderboardRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: its package, every measure by metric name, which objectives it meets, its weighted score in [0, 1]."""

    rank: int
    candidate: str
    phase: int
    package: str
    measures: dict[str, float]
    intervals: dict[str, Estimate]
    met: dict[str, bool]
    score: float


class Leaderboard(Record, frozen=True, kw_only=True):
    """All candidates of one turn, measured on the same validation rows."""

    kind: ClassVar[str] = "leaderboard"
    turn: str
    as_of: datetime
    examples: str
    rows: list[LeaderboardRow]
    comparisons: list[Comparison]
    weights: dict[str, float]
    verdict: str
    winner: str
