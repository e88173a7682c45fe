"""Claims about choosing among many: the ladder among equal challengers, a fleet among equal segments, and the figure of who was chosen."""

from functools import lru_cache

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict
from benchmarks.honesty.guards import AP, world

from loopwright.develop.fleet import choose
from loopwright.develop.leaderboard import climb, compared, rank
from loopwright.records.declarations import Objective
from loopwright.records.evaluation import LeaderboardRow, SegmentModel
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered, Contest

Array = np.ndarray
Rng = np.random.Generator

NOISE, BETTER = 0.8, 0.5
"""Noise of the scores of equal models, and of one that is better."""


class Board:
    """A leaderboard of models on n rows, by the noise of their scores: the first is the heuristic, the others are of phases 2, 3, 4, 2 ..."""

    def __init__(self, rng: Rng, n: int, noises: list[float], metric: str = AP) -> None:
        drawn = list(world(rng, n, *noises))
        self.truth, self.given, self.metric = drawn[0][0], [given for _, given in drawn], metric
        self.contest = contest(metric, self.truth, self.given)
        found = [metrics.compute(metric, self.truth, *given) for given in self.given]
        measured = [{metric: value, "latency_p50_us": 50.0} for value in found]
        rows = [
            LeaderboardRow(rank=0, candidate=f"{i}", phase=1 if not i else 2 + (i - 1) % 3, package=f"{i}", measures=each, intervals={}, met={}, score=0)
            for i, each in enumerate(measured)
        ]  # fmt: skip
        self.rows = rank(rows, [Objective("good", "x", metric, at_least=0.5)], {})
        self.comparisons = compared(metric, rows, self.contest, None)

    @property
    def winner(self) -> int:
        """The model that the ladder ends at."""
        return int(climb(self.rows, self.comparisons)[0].candidate)


def contest(metric: str, truth: Array, given: list[Answered]) -> Contest:
    """Models side by side."""
    return metrics.contest(metric, truth, given, seed=1, output=Output())


@lru_cache
def true_value(noise: float, metric: str = AP) -> float:
    """A metric of a model with so much noise, on endless rows."""
    [(truth, given)] = world(np.random.default_rng(0), 400_000, noise)
    return metrics.compute(metric, truth, *given)


def _stays(count: int, metric: str = AP) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, Board(rng, 1000, [NOISE] * (count + 1), metric).winner == 0)

    return Claim(f"ladder, {count} challengers equal to the heuristic: {metric}", "the heuristic stays", trial, 400, least=0.95)


def _simplest(count: int) -> Claim:
    """The heuristic is surely worse than all, which are equal: the climb ends at the first rung."""

    def trial(rng: Rng) -> Verdict:
        board = Board(rng, 1000, [2.5] + [NOISE] * count)
        return Verdict(board.winner > 0, (board.winner - 1) % 3 == 0)

    name = f"ladder, {count} equal challengers over a poor heuristic"
    return Claim(name, "the climb ends at the first rung", trial, 400, least=0.95, definite=0.95)


def found_better(rng: Rng, others: int, rows: int = 3000) -> bool:
    """Whether the ladder ends at the one that is better, the others being equal to the heuristic."""
    return Board(rng, rows, [NOISE, BETTER] + [NOISE] * others).winner == 1


def _finds(others: int, least: float) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, found_better(rng, others))

    name = f"ladder, one better candidate and {others} equal to the heuristic, 3,000 rows"
    return Claim(name, "the better one wins", trial, 400, nominal=least, least=least)


def _has_the_best(count: int) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, 0 in Board(rng, 1000, [0.7] + [NOISE] * count).contest.confidence_set())

    return Claim(f"confidence set of {count + 1} candidates", "has the best one", trial, 400, least=0.95)


def promised(rng: Rng, count: int, *, shrink: bool = True) -> tuple[float, float, float]:
    """What is promised of the best of equal models: low end, value, high end."""
    truth_and_given = list(world(rng, 1000, *[NOISE] * count))
    truth, given = truth_and_given[0][0], [each for _, each in truth_and_given]
    side, values = contest(AP, truth, given), [metrics.compute(AP, truth, *each) for each in given]
    best, among = int(np.argmax(values)), side.confidence_set()
    by = dict(zip(among, side.winners_curse(among), strict=True))[best] if shrink else 0.0
    found = metrics.intervals([AP], truth, *given[best], seed=1)[AP]
    return found.low + by, found.value + by, found.high + by


def _promise(count: int) -> Claim:
    def trial(rng: Rng) -> Verdict:
        low, _, high = promised(rng, count)
        return Verdict(True, low <= true_value(NOISE) <= high)

    return Claim(f"promise of the best of {count} equal candidates", "its 95 % interval has the truth", trial, 400)


def segments(rng: Rng, count: int, rows: int, better: int, metric: str) -> list[SegmentModel]:
    """So many segments, the first `better` of which have a better model of their own."""
    found = []
    for i in range(count):
        (truth, whole), (_, own) = world(rng, rows, NOISE, 0.0 if i < better else NOISE)
        side = contest(metric, truth, [own, whole])
        found.append(SegmentModel(turn="t", segment=f"{i}", package=f"{i}", rows=rows, judged=rows, chance=side.p(0, 1)))
    return found


def _none_taken(metric: str) -> Claim:
    def trial(rng: Rng) -> Verdict:
        return Verdict(True, not choose(segments(rng, 300, 100, 0, metric)))

    return Claim(f"fleet, 300 equal segments of 100 rows: {metric}", "none gets a model", trial, 200, least=0.95)


def _few_false(metric: str, rows: int) -> Claim:
    """One of the chosen is drawn: the share of false ones among them, on average, is the false discovery rate."""

    def trial(rng: Rng) -> Verdict:
        taken = list(choose(segments(rng, 300, rows, 60, metric)))
        return Verdict(bool(taken), bool(taken) and int(rng.choice(taken)) < 60)

    name = f"fleet, 60 of 300 segments of {rows} rows differ: {metric}"
    return Claim(name, "a chosen segment differs", trial, 100, least=0.95)


def _expected(chosen: int) -> Claim:
    """Gains of 200 segments around .02, each measured with an error of .03; the largest are chosen."""

    def trial(rng: Rng) -> Verdict:
        true = rng.normal(0.02, 0.02, 200)
        measured = [metrics.total(rng.normal(t, 0.3, 100) / 100) for t in true]
        of = int(np.argsort([-one.value for one in measured])[rng.integers(chosen)])
        return Verdict(True, (found := metrics.pooled(measured)[of]).low <= true[of] <= found.high)

    return Claim(
        f"expected gain of the {chosen} largest of 200 segments", "the 95 % interval has the truth", trial, 400, least=0.9
    )


CLAIMS = [
    *(_stays(count) for count in (1, 5, 10, 30)),
    *(_stays(10, metric) for metric in ("recall", "brier", "roc_auc")),
    _simplest(9),
    _finds(0, 0.8),
    _finds(9, 0.7),
    _has_the_best(10),
    *(_promise(count) for count in (2, 5, 30)),
    *(_none_taken(metric) for metric in (AP, "recall", "brier", "log_loss")),
    *(_few_false(metric, rows) for metric in (AP, "recall") for rows in (100, 400)),
    _expected(20),
]
