"""Stage deploy: guards and release."""

from typing import Literal

from loopwright.records.declarations.declaration import Declaration


class Guard(Declaration, frozen=True):
    """A condition that a package must meet before release: no worse by more than `tolerance` of `metric` than the one that serves.

    The best package of the last year is compared with as well. See `Release.cannot_tell` for rows that cannot tell.

    Attributes:
        metric: Name of a metric.
        tolerance: The margin of non-inferiority: how much worse the new package may be, in units of the metric; None: as much as chance alone makes of the serving
            package's own number on these rows, one standard error of it (the rule of one standard error; Breiman et al. 1984,
            Classification and regression trees), and at least a hundredth of it.
        slices: Slices in which the condition must hold too.

    Example:
        Guard("average_precision", tolerance=0.01)
    """

    metric: str
    tolerance: float | None = None
    slices: list[str] = []


class Release(Declaration, frozen=True, kw_only=True):
    """How packages are released and served.

    Attributes:
        strategy: `direct`: a package that passes the guards serves all traffic.
        guards: Conditions that a package must meet.
        cannot_tell: What becomes of a package of which the rows cannot tell whether it is worse than a guard's tolerance: `release`
            releases it unless the estimate itself is worse than the tolerance, `hold` keeps what serves.
        durability: Of the prediction log: `process` survives the death of a process, `disk` also a power cut.
        on_unloggable: Treatment of an answer that cannot be logged: `serve` answers it, flagged, `refuse` answers 503.
        deadline_ms: Milliseconds until a request that the model has not answered is answered by the heuristic, 1 to 600000.

    Example:
        Release(guards=[Guard("average_precision", tolerance=0.01)], durability="disk")
    """

    strategy: Literal["direct"] = "direct"
    guards: list[Guard] = []
    cannot_tell: Literal["release", "hold"] = "release"
    durability: Literal["process", "disk"] = "process"
    on_unloggable: Literal["serve", "refuse"] = "serve"
    deadline_ms: int = 1000
