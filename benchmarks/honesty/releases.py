"""Claims about the judge of releases: how often an equal package is sent back, and a worse one within the rows that were said to tell."""

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.base.arrays import Array
from loopwright.deploy.experiment import goal_state, rows_needed
from loopwright.deploy.judge import answer_of
from loopwright.deploy.strategies import ExperimentGoal
from loopwright.records.package import Output
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered
from loopwright.tasks.metrics.estimate import statistics_of
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import (
    ArmDifference,
    arm_difference,
    halvings_of,
    level_of,
    share_difference,
    share_of,
    unit_sums,
)

AP = "average_precision"
GUARDS = (AP, "log_loss", "roc_auc")
SHARES = 3
PLANNED = 4000.0
PHASE = 2 * 0.05 / 2
"""The judge's level for the canaries of a plan: of a two-sided sequence, shared with the full stage."""

Arm = tuple[Array, Array, Array]


def arm(rng: np.random.Generator, n: int, rate: float, noise: float, of_unit: int = 1) -> Arm:
    """Truth, score and unit of n rows that one arm answers; units of several rows share a base rate."""
    unit = np.arange(n) // of_unit
    own = rng.normal(size=n // of_unit + 1)[unit] if of_unit > 1 else 0.0
    truth = rng.random(n) < 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + own)))
    return truth, 1 / (1 + np.exp(-(rng.normal(size=n) * noise + 1.5 * truth))), unit


def difference(metric: str, new: Arm, old: Arm, n: int, alpha: float) -> ArmDifference:
    """A metric of the first n rows of two arms."""
    sides = []
    for truth, score, unit in (new, old):
        answers, units = Answered(score[:n], score[:n] >= 0.5), Units(unit[:n], len(unit[:n]))
        sides.append((statistics_of([metric], truth[:n], answers, Output(), None, None, None)[0], units))
    (of_new, new_units), (of_old, old_units) = sides
    return arm_difference(of_new, new_units, of_old, old_units, alpha=alpha, planned=PLANNED)


def _equal(name: str, rate: float, most: int, of_unit: int = 1, trials: int = 400) -> Claim:
    """A release of an equal package, judged about 40 times, by three guards of quality and three shares of rare rows."""
    looks = [int(n) for n in np.unique(np.geomspace(100, most, 40).astype(int))]

    def trial(rng: np.random.Generator) -> Verdict:
        new, old = (arm(rng, most, rate, 1.0, of_unit) for _ in range(2))
        alpha = PHASE / (len(GUARDS) + SHARES)
        flags = [[np.repeat(rng.random(most // of_unit + 1) < 0.005, of_unit)[:most] for _ in range(2)] for _ in range(SHARES)]
        for n in looks:
            found = [difference(metric, new, old, n, alpha) for metric in GUARDS]
            answers = [answer_of(each, 0.0, higher=metrics.metric(m).higher) for m, each in zip(GUARDS, found, strict=True)]
            for of_new, of_old in flags:
                shares = [share_of(unit_sums(each[:n], new[2][:n])) for each in (of_new, of_old)]
                answers.append(answer_of(share_difference(*shares, alpha=alpha), 0.0, higher=False))
            if "worse" in answers:
                return Verdict(True, False)
        return Verdict(True, True)

    return Claim(f"release, equal package, {name}", "is not sent back at any of 40 looks", trial, trials, least=0.95)


def _halved(name: str, most: int, rows: int, trials: int = 300) -> Claim:
    """An equal package, judged 60 times on a sample of the units with at most so many rows of each arm, by one guard."""

    def trial(rng: np.random.Generator) -> Verdict:
        arms = [(arm(rng, rows, 0.3, 1.0), rng.random(rows)) for _ in range(2)]
        for n in np.unique(np.geomspace(200, rows, 60).astype(int)):
            halvings = halvings_of(int(n), most)
            parts: list[Arm] = []
            for (truth, score, unit), hashes in arms:
                mine = hashes[:n] < 0.5**halvings
                parts.append((truth[:n][mine], score[:n][mine], unit[:n][mine]))
            found = difference(AP, parts[0], parts[1], rows, level_of(PHASE, halvings))
            if answer_of(found, 0.0, higher=True) == "worse":
                return Verdict(True, False)
        return Verdict(True, True)

    return Claim(f"release, equal package, {name}", "is not sent back at any of 60 looks", trial, trials, least=0.95)


def _worse(name: str, rate: float, of_unit: int = 1, trials: int = 200) -> Claim:
    """A package that is worse by just the tolerance of a guard, on 1.3 times the rows that were said to tell."""
    rng = np.random.default_rng(0)
    loss = np.mean(
        [
            metrics.compute(AP, *arm(rng, 200_000, rate, 1.0, of_unit)[:2])
            - metrics.compute(AP, *arm(rng, 200_000, rate, 1.6, of_unit)[:2])
            for _ in range(3)
        ]
    )
    alpha = PHASE / (1 + SHARES)

    def trial(rng: np.random.Generator) -> Verdict:
        first = difference(AP, arm(rng, 1500, rate, 1.6, of_unit), arm(rng, 1500, rate, 1.0, of_unit), 1500, alpha)
        needed = rows_needed(first, float(loss), 1500, alpha, PLANNED)
        if needed is None:
            return Verdict(False, True)
        most = int(1.3 * needed)
        new, old = arm(rng, most, rate, 1.6, of_unit), arm(rng, most, rate, 1.0, of_unit)
        answers = [
            answer_of(difference(AP, new, old, n, alpha), float(loss), higher=True)
            for n in np.linspace(100, most, 20).astype(int)
        ]
        return Verdict(True, "worse" in answers and "within" not in answers[: answers.index("worse")])

    return Claim(
        f"release, worse by the tolerance, {name}",
        "is sent back within 1.3 times the rows that were said to tell",
        trial,
        trials,
        nominal=0.9,
        least=0.85,
        definite=0.9,
    )


def _experiment(name: str, new_noise: float, what: str, least: float, nominal: float) -> Claim:
    """An experiment with a goal in AP, looked at 25 times until it has ended; the effect is that of `new_noise`, or none."""
    rng = np.random.default_rng(1)
    large = [np.mean([metrics.compute(AP, *arm(rng, 200_000, 0.3, noise)[:2]) for _ in range(3)]) for noise in (1.0, 0.7)]
    goal, alpha = ExperimentGoal(AP, float(large[1] - large[0])), PHASE / (1 + SHARES)

    def trial(rng: np.random.Generator) -> Verdict:
        new, old = arm(rng, 30_000, 0.3, new_noise), arm(rng, 30_000, 0.3, 1.0)
        for n in np.unique(np.geomspace(200, 30_000, 25).astype(int)):
            found = goal_state(goal, difference(AP, new, old, int(n), alpha), int(n), None, alpha, PLANNED)
            if found.reached or found.ended:
                return Verdict(True, found.reached == (new_noise < 1.0))
        return Verdict(False, True)

    return Claim(f"experiment, {name}", what, trial, 300, nominal=nominal, least=least, definite=0.95)


CLAIMS = [
    _experiment("equal package", 1.0, "is not called better", 0.95, 0.95),
    _experiment("effect of the smallest size", 0.7, "is called better", 0.78, 0.8),
    _equal("30 % positive", 0.3, 6000),
    _equal("2 % positive", 0.02, 20_000, trials=200),
    _equal("units of 20 rows", 0.3, 6000, of_unit=20),
    _halved("a sample of the units", 1000, 16_000),
    _worse("30 % positive", 0.3),
    _worse("units of 5 rows", 0.3, of_unit=5),
]
