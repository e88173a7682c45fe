"""Claims about experiments: how often the intervals of an effect cover the true one."""

from collections.abc import Callable

import numpy as np
from benchmarks.honesty.claims import Claim, Verdict

from loopwright.tasks.metrics.effect import ArmUnits, FixedEffect, adjusted, arm_units, fixed_effect
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import arm_difference
from loopwright.tasks.statistic import mean, ratio

EFFECT, UNITS = 0.1, 400
TRIALS = 4000


def _plain(rng: np.random.Generator, effect: float) -> ArmUnits:
    return arm_units(mean(rng.normal(effect, 1, UNITS)), None)


def _ratio(rng: np.random.Generator, effect: float) -> ArmUnits:
    """Clicks by what was shown to each unit."""
    shown = rng.poisson(5, UNITS) + 1
    return arm_units(ratio(rng.binomial(shown, rng.beta(2, 6, UNITS) * 0.8 + effect), shown), None)


def _clustered(rng: np.random.Generator, effect: float) -> ArmUnits:
    code = np.repeat(np.arange(UNITS), rng.integers(1, 12, UNITS))
    return arm_units(mean(rng.normal(size=UNITS)[code] + rng.normal(size=len(code)) + effect), code)


def _with_past(rng: np.random.Generator, effect: float) -> ArmUnits:
    before = rng.normal(size=UNITS)
    return arm_units(mean(0.7 * before + 0.7 * rng.normal(size=UNITS) + effect), None, before)


def _cuped(new: ArmUnits, old: ArmUnits) -> FixedEffect:
    return fixed_effect(*adjusted(new, old)[:2])


def _covers(
    name: str, draw: Callable[[np.random.Generator, float], ArmUnits], effect: Callable[[ArmUnits, ArmUnits], FixedEffect]
) -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        found = effect(draw(rng, EFFECT), draw(rng, 0.0))
        return Verdict(True, found.low <= EFFECT <= found.high)

    return Claim(f"experiment, {name}", "its 95 % interval covers the effect", trial, TRIALS, nominal=0.95, least=0.94)


def _peeked() -> Claim:
    def trial(rng: np.random.Generator) -> Verdict:
        new, old = rng.normal(EFFECT, 1, 4000), rng.normal(size=4000)
        for n in np.unique(np.geomspace(100, 4000, 25).astype(int)):
            of_new, of_old = mean(new[:n]), mean(old[:n])
            found = arm_difference(of_new, Units(None, n), of_old, Units(None, n), alpha=0.05, planned=4000)
            if not found.low <= EFFECT <= found.high:
                return Verdict(True, False)
        return Verdict(True, True)

    return Claim(
        "experiment, peeking", "the sequence covers the effect at all of 25 looks", trial, 500, nominal=0.95, least=0.95
    )


CLAIMS = [
    _covers("plain mean", _plain, fixed_effect),
    _covers("ratio", _ratio, fixed_effect),
    _covers("clustered rows", _clustered, fixed_effect),
    _covers("CUPED", _with_past, _cuped),
    _peeked(),
]
