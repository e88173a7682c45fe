"""Measured quality: results of `develop` for `deploy`, `monitor`, `business` and the leaderboard."""

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import ClassVar

import msgspec

from loopwright.records.entries import Record
from loopwright.records.package import Calibration, Histogram


class Estimate(msgspec.Struct, frozen=True):
    """A value with a 95 % interval [low, high] from `n` rows; NaN is written as null.

    `too_few`: too few events (positives of a recall, or rows that outweigh the others) tell it, so no verdict rests on it.
    """

    value: float
    low: float
    high: float
    n: int
    too_few: bool = False


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)

Z_95 = 1.959964
"""Half the width of a 95 % interval in standard errors, of a normal distribution."""


def standard_error(estimate: Estimate) -> float:
    """The standard error of a 95 % interval."""
    return (estimate.high - estimate.low) / (2 * Z_95)


def moved(estimate: Estimate, by: float) -> Estimate:
    """The estimate and its interval, moved."""
    return Estimate(estimate.value + by, estimate.low + by, estimate.high + by, estimate.n, estimate.too_few)


def t_95(freedom: float) -> float:
    """Half the width of a 95 % interval in standard errors that are known with so many degrees of freedom (Student's t).

    Exact up to ten, then by the expansion of Fisher & Cornish (1960): what shows intervals loads no SciPy.
    """
    if freedom <= len(_T_95):
        least = max(1, math.floor(freedom))
        part = (1 / least - 1 / max(freedom, 1)) / (1 / least - 1 / (least + 1))
        return _T_95[least - 1] + part * (_T_95[min(least, len(_T_95) - 1)] - _T_95[least - 1])
    z, v = Z_95, float(freedom)
    second, third = 5 * z**5 + 16 * z**3 + 3 * z, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * v) + second / (96 * v**2) + third / (384 * v**3)


_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def added(estimates: Sequence[Estimate]) -> Estimate:
    """The sum of estimates of windows with its 95 % interval. What is independent are windows: a week's weather moves all of its rows.

    The interval is that of Student's t over the windows, of what each is off the mean per row; never narrower than rows alone make it.
    One window shows no spread between windows: it has its own interval.
    """
    rows, count, value = sum(e.n for e in estimates), len(estimates), sum(e.value for e in estimates)
    spread = Z_95 * math.hypot(*(standard_error(e) for e in estimates))
    if count > 1:
        between = math.hypot(*(e.value - value * (e.n / rows if rows else 1 / count) for e in estimates))
        spread = max(spread, t_95(count - 1) * between * math.sqrt(count / (count - 1)))
    return Estimate(value, value - spread, value + spread, rows, count == 1 and estimates[0].too_few)


def running(estimates: Sequence[Estimate]) -> list[Estimate]:
    """The sums of the first window, the first two and so on, each with the spread between windows that all of them show."""
    whole, sums = added(estimates), accumulate(e.value for e in estimates)
    half = [(whole.high - whole.low) / 2 * math.sqrt((i + 1) / len(estimates)) for i in range(len(estimates))]
    return [Estimate(value, value - side, value + side, whole.n) for value, side in zip(sums, half, strict=True)]


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A suspicious feature or column: the columns behind it, why (a sentence), and the measured value with the lower end of its interval.

    `kind` is `tells` (predicts the label by itself, or in a part of the rows), `encodes` (a mean of these very labels), `decides` (some of its values do), `missing` (its missing values do),
    `together` (columns that predict it only together), `perfect` (without an error, on few rows), `names` or `order`. `used`: whether it reaches the features.
    """

    feature: str
    columns: list[str]
    kind: str
    why: str
    measure: float
    low: float
    used: bool = True

    @property
    def what(self) -> str:
        """The suspicious thing, in words."""
        if self.kind == "together":
            return f"columns {', '.join(self.columns)}"
        return f"{'column' if self.kind in ('missing', 'decides') or not self.used else 'feature'} {self.feature}"


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True):
    """Validation rows with scores from `low` to `high`: the mean of their scores, and the share of them that is positive."""

    low: float
    high: float
    score: float
    share: Estimate


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Every metric, overall and on every slice, with intervals; latencies in microseconds for a single row in process.

    `load_ms` is the load time of the graph there, and `memory_bytes` the memory that it then uses (with its session), on the machine
    in the manifest's environment; None in packages made before these were measured.

    `slices` maps slice name -> slice value -> metric -> estimate. `value_per_prediction` is in the scope's currency,
    relative to no model. `baseline` values are on the same rows. `suspects` are features of the package that leak the label.
    `small_groups` maps slice name -> the values with too few rows to be shown by themselves -> their rows; gaps count them.
    `reliability` is the curve of a probability, from the lowest scores on; empty for other tasks.
    `shrunk` has the metrics that are better than they will be on other rows, because the best of several candidates was looked for: as
    they are expected there. `may_be_best`: of the candidates measured together it may be the best (95 %).
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
    load_ms: float | None = None
    memory_bytes: int | None = None
    suspects: list[Suspect] = []
    small_groups: dict[str, dict[str, int]] = {}
    reliability: list[ReliabilityBin] = []
    shrunk: dict[str, Estimate] = {}
    may_be_best: bool = False

    @property
    def promised(self) -> dict[str, Estimate]:
        """Every metric as it is expected on other rows."""
        return {**self.metrics, **self.shrunk}

    @property
    def package_measures(self) -> dict[str, float]:
        """Measures of the package itself by metric name: latency, size, training, and loading if measured."""
        measured = {
            "latency_p50_us": self.latency_p50_us,
            "latency_p99_us": self.latency_p99_us,
            "latency_p50_ms": self.latency_p50_us / 1000,
            "latency_p99_ms": self.latency_p99_us / 1000,
            "size_bytes": float(self.size_bytes),
            "train_seconds": self.train_seconds,
            "load_ms": self.load_ms,
            "memory_bytes": self.memory_bytes,
        }
        return {name: float(value) for name, value in measured.items() if value is not None}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A paired comparison on the same rows: `difference` is challenger minus incumbent in `metric`.

    `adjusted_p` is the chance of such a gain, or a larger one, in any comparison between phases where no candidate is better; None within
    a phase, and on leaderboards of earlier versions. `money` is the same in money per prediction, in the scope's currency; None without a value table.
    """

    challenger: str
    incumbent: str
    metric: str
    difference: Estimate
    latency_difference_us: float
    money: Estimate | None = None
    adjusted_p: float | None = None


class Confusion(msgspec.Struct, frozen=True):
    """Counts of each label (columns) per true label (rows), on the validation rows; `counts` [K][K] in the order of `labels`."""

    labels: list[str]
    counts: list[list[int]]


class TradePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The effect of one threshold on the validation rows: share answered positive, precision, recall, and money per prediction over none.

    `value` is None without a value table, precision and recall if their denominator is 0. `used` marks the
    threshold of the package.
    """

    threshold: float
    rate: float
    precision: float | None
    recall: float | None
    value: float | None
    used: bool


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """Details of a candidate's metrics.

    `importance` is each feature's share of the mean absolute contribution over some validation rows, the largest
    first; empty where answers cannot be explained.
    """

    importance: dict[str, float] = {}
    confusion: Confusion | None = None
    trade: list[TradePoint] = []
    reliability: list[ReliabilityBin] = []
    calibration: Calibration | None = None


class LeaderboardRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: its package, every measure by metric name, which objectives it meets, its weighted score in [0, 1].

    `shrunk` and `may_be_best` as in `Evaluation`.
    """

    rank: int
    candidate: str
    phase: int
    package: str
    measures: dict[str, float]
    intervals: dict[str, Estimate]
    met: dict[str, bool]
    score: float
    detail: Detail | None = None
    """None on leaderboards of earlier versions."""
    shrunk: dict[str, Estimate] = {}
    may_be_best: bool = False


class SegmentModel(Record, frozen=True, kw_only=True):
    """The model of one segment, judged on the segment's own validation rows. Put under the turn's id when it has been made.

    `rows` were trained on, `judged` validated. `own` and `whole` are the metric of its own package and of the global one,
    `difference` own minus global on the same rows; `chance` is the p-value of such a gain. `expected` is the difference that is to be
    expected on other rows (drawn to that of all segments as far as chance explains what differs; known when all segments are).
    `why` is the reason why there is no package ("" when there is one).
    """

    kind: ClassVar[str] = "segment"
    turn: str
    segment: str
    package: str
    rows: int
    judged: int
    own: Estimate = NOTHING
    whole: Estimate = NOTHING
    difference: Estimate = NOTHING
    chance: float = 1.0
    expected: Estimate = NOTHING
    seconds: float = 0.0
    why: str = ""


class FleetBoard(msgspec.Struct, frozen=True, kw_only=True):
    """All segments of one turn, largest first; `serving` maps a segment to its own package, if it has one.

    `gain` is the whole fleet (these segments with their own packages, all else with the global one) minus the global package
    alone, on all validation rows, less what chance adds to segments that were chosen for it; `metrics` and `outputs` are what the whole fleet reached and answered there (empty where none
    of them serves). `rest` are the training rows of segments too small for a model, and of null.
    """

    by: str
    metric: str
    as_of: datetime
    segments: list[SegmentModel]
    serving: dict[str, str]
    gain: Estimate
    rest: int
    verdict: str
    metrics: dict[str, Estimate] = {}
    outputs: list[Histogram] = []


LEAK_SUSPECTED = "LEAK SUSPECTED"
"""Start of a verdict when a feature, or the winner's quality, is too good to be true."""


class Leaderboard(Record, frozen=True, kw_only=True):
    """All candidates of one turn, measured on the same validation rows; with a fleet also the winner's models by segment.

    `left_out` maps each candidate that could not be fitted or converted to the reason.
    `suspects` are features and columns of the examples that leak the label; `doubt` is the start of the verdict
    where one of them, or the winner's quality, is too good to be true.
    """

    kind: ClassVar[str] = "leaderboard"
    turn: str
    as_of: datetime
    examples: str
    rows: list[LeaderboardRow]
    comparisons: list[Comparison]
    weights: dict[str, float]
    verdict: str
    winner: str
    fleet: FleetBoard | None = None
    left_out: dict[str, str] = {}
    suspects: list[Suspect] = []
    doubt: str = ""

    @property
    def leak_suspected(self) -> bool:
        """Whether a feature, or the winner's quality, is too good to be true."""
        return self.doubt.startswith(LEAK_SUSPECTED)
