"""Stages of a release plan: how a new package takes over from the one that serves, step by step."""

from loopwright.records.declarations.declaration import Declaration


class PlanStage(Declaration, frozen=True, kw_only=True, tag_field="stage", tag=str.lower):
    """Base of the stages of `Release.plan`."""


class Shadow(PlanStage, frozen=True, kw_only=True):
    """The new package answers logged requests again, beside the package that serves; no client sees its answers.

    A process of its own, with the lowest priority, reads the prediction log and logs the answers under the same ids in a log of shadows.
    What it cannot keep up with is left out, and counted. The judge compares row by row: fall-back, flags, latency, flips (another label), and,
    where outcomes are in, the guards on the same rows. The stage ends when its time is over, its rows are in, and nothing is worse.

    Attributes:
        share: Share of the keys whose requests are answered again, above 0 and at most 1.
        time: How long the stage lasts at least.
        rows: How many rows both packages answer at least.
        flips: How large the share of rows with another label may be, overall and on each slice; without it flips are shown and not judged.

    Example:
        Shadow(time="6h", rows=5000, flips=0.02)
    """

    share: float = 1.0
    time: str = "1h"
    rows: int = 1000
    flips: float | None = None


class Canary(PlanStage, frozen=True, kw_only=True):
    """The new package answers a share of the units, and the judge compares them with as many units that the old package answers at the same time.

    The stage ends when its time is over, both arms have their rows, and every guard is surely within its tolerance. Outcomes that
    cannot arrive within `time` (`Outcome.wait`) are judged in later stages.

    Attributes:
        share: Share of the units, above 0 and at most 0.5. A unit that had the new package keeps it while the share grows.
        time: How long the stage lasts at least.
        rows: How many rows each of the two arms answers at least.

    Example:
        Canary(share=0.05, time="1h", rows=1000)
    """

    share: float
    time: str = "1h"
    rows: int = 500


class AB(PlanStage, frozen=True, kw_only=True):
    """An experiment: the new package must be surely better in one metric, planned for a smallest effect, or the old one stays.

    It ends early when the new package is surely better (after `time`) or surely worse; without an effect when so many rows with an outcome
    are in that the smallest effect would have been seen in 80 % of experiments. Guards stop it, but are not what it is decided by. A package
    without an effect is not marked bad.

    Attributes:
        metric: The one metric that decides: of rows, or `value_per_prediction`.
        minimum_effect: The smallest difference worth seeing, in units of the metric.
        share: Share of the units that the new package answers, above 0 and at most 0.5.
        time: How long it lasts at least: whole weeks, where weekdays differ.

    Example:
        AB(metric="value_per_prediction", minimum_effect=0.5, time="14d")
    """

    metric: str
    minimum_effect: float
    share: float = 0.5
    time: str = "7d"


class Full(PlanStage, frozen=True, kw_only=True):
    """The new package answers all units but a hold-back, still watched; the way back to the old package is armed.

    Attributes:
        watch: How long the new package is watched.
        hold_back: Share of the units that the old package answers meanwhile, at most 0.2; 0: none, so that nothing is compared.

    Example:
        Full(watch="24h", hold_back=0.02)
    """

    watch: str = "24h"
    hold_back: float = 0.02


AnyStage = Shadow | Canary | AB | Full
"""Every kind of stage that a plan may have."""
