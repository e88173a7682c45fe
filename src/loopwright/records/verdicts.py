"""Verdicts on the stage of a release: what the judge compared, and whether the release goes on, back, or holds."""

from datetime import datetime, timedelta
from typing import ClassVar, Literal

import msgspec

from loopwright.records.entries import Record
from loopwright.records.releases import ReleaseState

MAX_PAUSE = timedelta(minutes=5)
"""A stage is judged at least so often."""

BUSY_SHARE = 0.05
"""Of millions of rows a judge takes a while: it is busy for at most this share of the time, so that upkeep has the rest."""

SILENT_PAUSES = 2
"""A judge without a verdict for so many of its longest pauses is silent."""

Layer = Literal["system", "behaviour", "quality"]
"""What a finding is about, quickest first: whether it answers, what it answers, whether it is right."""


GuardVerdict = Literal["worse", "within", "cannot tell"]


class GuardFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One guard of a stage: a metric of the new package's arm and of the control arm, on the rows that both answered at the same time.

    `low` and `high` are the ends of the confidence sequence of new less old, valid at every look; None where nothing can be said yet. `tolerance`
    is how much worse the new one may be. `cannot tell` holds the stage: `rows_needed` in each arm would tell, as far as can be foreseen.
    """

    layer: Layer
    metric: str
    higher_is_better: bool
    tolerance: float
    verdict: GuardVerdict
    rows: int
    control_rows: int
    slice: str = ""
    value: str = ""
    new: float | None = None
    old: float | None = None
    low: float | None = None
    high: float | None = None
    rows_needed: int | None = None
    stops_only: bool = False
    """Whether it can send a release back, but does not hold it: money, and parts of the traffic, are seldom certain."""

    @property
    def name(self) -> str:
        """The metric, with the part of the traffic that it is about."""
        return f"{self.metric} on {self.slice} {self.value}" if self.slice else self.metric


class Verdict(Record, frozen=True, kw_only=True):
    """The answer of the judge about one stage at one moment, from records alone.

    `on`: the next stage begins. `back`: the old package serves alone again. `hold`: the stage goes on, because of what is `missing`.
    `provisional`: outcomes are not in yet, so quality was not judged.
    """

    kind: ClassVar[str] = "verdict"
    loop: str
    generation: int
    stage: int
    at: datetime
    answer: Literal["on", "back", "hold"]
    why: str
    package: str
    former: str
    rows: int
    control_rows: int
    with_outcome: int = 0
    control_with_outcome: int = 0
    provisional: bool = False
    missing: list[str] = []
    findings: list[GuardFinding] = []
    sampled: float = 1.0
    """The smallest share of the units on whose rows a metric was compared: below 1 where there were too many."""
    left_out: int = 0
    """Rows that a shadow left out under load; `flips` is the share of its rows with another label, `score_difference` the mean absolute one."""
    flips: float | None = None
    score_difference: float | None = None
    seconds: float = 0.0
    """How long the judge took."""
    shown_by: list[str] = []
    """Ids of predictions that show why it goes back, at most twenty."""

    @property
    def worse(self) -> list[GuardFinding]:
        """The guards in which the new package is surely worse; an experiment without an effect goes back without any."""
        return [finding for finding in self.findings if finding.verdict == "worse"]


def silent_since(state: ReleaseState, last: Verdict | None, at: datetime) -> datetime | None:
    """Since when a plan that is under way has no verdict although several were due (`last` is the newest on its stage); None where that is not so."""
    if state.under_way is None:
        return None
    since, busy = (last.at, last.seconds / BUSY_SHARE) if last is not None else (state.since, 0.0)
    return since if at - since > SILENT_PAUSES * max(MAX_PAUSE, timedelta(seconds=busy)) else None
