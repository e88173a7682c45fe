"""Stage deploy: guards and release."""

from typing import Literal

from loopwright.records.declarations.declaration import Declaration
from loopwright.records.declarations.stages import AnyStage, Canary, Full, Shadow


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
        strategy: How a package that passes the guards takes over, where `plan` is empty: `direct` serves all traffic at once, `canary` serves
            5 %, 25 % and 50 % of the units, then all, each step judged on live traffic, `shadow` first answers logged requests again.
        plan: The stages of a release in order, instead of a strategy. The first release of a loop, and one of a rule, is always direct.
        alpha: The chance that an equal package is sent back by chance in a whole release, however often it is judged.
        guards: Conditions that a package must meet, before its release and on the traffic of each stage.
        cannot_tell: What becomes of a package of which the rows cannot tell whether it is worse than a guard's tolerance: `release`
            releases it unless the estimate itself is worse than the tolerance, `hold` keeps what serves.
        durability: Of the prediction log: `process` survives the death of a process, `disk` also a power cut.
        on_unloggable: Treatment of an answer that cannot be logged: `serve` answers it, flagged, `refuse` answers 503.
        deadline_ms: Milliseconds until a request that the model has not answered is answered by the heuristic, 1 to 600000.
        freeze: Times in which no release begins: `fri 16:00/mon 08:00` each week, `2026-12-20/2027-01-04` once (both days included).
        zone: Time zone of `freeze`, an IANA name.

    Example:
        Release(guards=[Guard("average_precision", tolerance=0.01)], durability="disk")
    """

    strategy: Literal["direct", "canary", "shadow"] = "direct"
    plan: list[AnyStage] = []
    alpha: float = 0.05
    guards: list[Guard] = []
    cannot_tell: Literal["release", "hold"] = "release"
    durability: Literal["process", "disk"] = "process"
    on_unloggable: Literal["serve", "refuse"] = "serve"
    deadline_ms: int = 1000
    freeze: list[str] = []
    zone: str = "UTC"

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        shares = [stage.share for stage in self.plan if isinstance(stage, Canary)]
        if shares != sorted(set(shares)):
            found.append(("plan", f"the shares of its canaries must rise, not {', '.join(map(str, shares))}"))
        shadows = [isinstance(stage, Shadow) for stage in self.plan]
        if shadows != sorted(shadows, reverse=True):
            found.append(("plan", "Shadow comes before the stages in which clients get the new package"))
        if any(isinstance(stage, Full) for stage in self.plan[:-1]):
            found.append(("plan", "Full is its last stage"))
        if self.plan and self.strategy != "direct":
            found.append(("strategy", "leave it off: `plan` says how packages are released"))
        return found
