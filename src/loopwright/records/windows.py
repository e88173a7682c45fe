"""Results of monitoring for a time window: inputs, outputs, drift, quality, alerts and triggers."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal

import msgspec

from loopwright.base.text import count
from loopwright.records.entries import Record
from loopwright.records.evaluation import Estimate

State = Literal["ok", "watch", "drift", "no data"]

LEAST_IMPACT = 0.05
"""A column that changes answers by less, as a share of the usual difference of two answers, may drift without harm."""

_UNITS = (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


def edge(moment: datetime, length: timedelta) -> str:
    """The beginning or end of a window of that length: to the day where it takes days, else to the minute or second."""
    seconds = length.total_seconds()
    return (
        f"{moment:%Y-%m-%d}"
        if seconds >= 86_400
        else f"{moment:%Y-%m-%d %H:%M}"
        if seconds >= 60
        else f"{moment:%Y-%m-%d %H:%M:%S}"
    )


def span_to(start: datetime, end: datetime) -> str:
    """A window in words, by its real length: "week to 2024-03-11", "5 minutes to 2024-03-11 09:05"."""
    seconds = max(1, round((end - start).total_seconds()))
    unit, of = next((unit, of) for unit, of in _UNITS if seconds % of == 0)
    number = seconds // of
    return f"{unit if number == 1 else count(number, unit)} to {edge(end, end - start)}"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A measure of a column that moved beyond its limits `low` to `high`; `text` says it to a person."""

    measure: str
    value: float
    low: float
    high: float
    text: str


class ColumnWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One column, feature or answer against the package's reference. Shares are of rows; NaN as null.

    `psi`, `jensen_shannon` and `wasserstein` are effect sizes. `moved` is how far its most moved measure went, as a multiple of
    what counts as drift, `findings` all that went further than 1, `measures` every measure on its scale of comparison.
    A column that is not `used` reaches no feature of the model, and one whose `impact` is small hardly moves its answers: drift in
    it is a note, and changes no state of the window.
    """

    column: str
    role: Literal["request", "context", "feature", "output"]
    state: State
    psi: float | None
    jensen_shannon: float | None
    missing: float
    missing_reference: float
    out_of_range: float
    new_category: float
    mean: float | None
    mean_reference: float | None
    wasserstein: float | None = None
    moved: float = 0.0
    findings: list[Finding] = []
    measures: dict[str, float] = {}
    impact: float | None = None
    used: bool = True

    @property
    def matters(self) -> bool:
        """Whether its drift is drift of the window: it reaches the model, and moves the answers."""
        return self.used and (self.impact is None or self.impact >= LEAST_IMPACT)

    @property
    def text(self) -> str:
        """The column with what moved most, for a person."""
        return f"{self.column} ({self.findings[0].text})" if self.findings else f"{self.column} (PSI {self.psi or 0:.2f})"


class Window(Record, frozen=True, kw_only=True):
    """One monitoring window [start, end) of a loop. `packages` counts rows by package; `degraded` is a share of rows.

    `arms` has one window per arm (name), against the package of that arm, where several answered; then the state of the
    outputs here is the champion's. `skipped` maps columns not watched for drift to the reason. Below `minimum_rows` rows the state is
    `no data`.
    """

    kind: ClassVar[str] = "window"
    start: datetime
    end: datetime
    rows: int
    state: State
    reference: str
    packages: dict[str, int]
    degraded: float
    flags: dict[str, int]
    columns: list[ColumnWindow]
    drifted: list[str]
    skipped: dict[str, str] = {}
    minimum_rows: int = 0
    arms: dict[str, "Window"] = {}

    @property
    def state_text(self) -> str:
        """The state for a person: `too few (N of M)` instead of `no data` for too few rows."""
        return state_text(self.state, self.rows, self.minimum_rows)

    @property
    def noted(self) -> list[str]:
        """Columns that moved and hardly move an answer, or reach no feature: worth a note, and no reason to retrain."""
        return [c.column for c in self.columns if not c.matters and c.state == "drift"]


def state_text(state: str, rows: int, minimum_rows: int) -> str:
    """A state for a person: `too few (N of M)` where that is the reason for `no data`."""
    return f"too few ({rows:,} of {minimum_rows:,})" if state == "no data" and 0 < rows < minimum_rows else state


LONG_SILENCE = 8
"""A window without predictions that is this many usual lengths long splits time in two stretches."""


def newest_stretch(windows: Sequence[Window]) -> list[Window]:
    """The windows, oldest first, since the last long silence (before it if none came after); a chart shows these.

    A year of traffic that ended long ago would be a sliver at the edge of an axis that reaches until today.
    """
    usual = min((w.end - w.start for w in windows), default=None)
    stretches: list[list[Window]] = [[]]
    for window in windows:
        if usual is not None and not window.rows and window.end - window.start >= LONG_SILENCE * usual:
            stretches.append([])
        else:
            stretches[-1].append(window)
    return next((stretch for stretch in reversed(stretches) if any(w.rows for w in stretch)), list(windows))


class Harm(msgspec.Struct, frozen=True, kw_only=True):
    """The mean drop of a package over all its windows, as a share of its promise, with limits that hold at all times at once.

    `squares` is the sum of squares around the mean. `low` and `high` are None while too few windows tell them.
    """

    windows: int
    mean: float
    squares: float
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """The mean and its limits in percent."""
        limits = f" [{self.low:+.1%}, {self.high:+.1%}]" if self.low is not None and self.high is not None else ""
        return f"{self.mean:+.1%}{limits}"


class DecayCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A window's quality against what the evaluation promised. Shares are of the promise; a drop is positive where quality is worse.

    `now` is at the base rate of the evaluation, where the metric moves with that. `p` is the chance of such a drop for an unchanged
    model, `level` the p from which it counts, `spread` the standard deviation between windows that their rows do not explain.
    `cause`: `drop` of this window, or `harm` over all windows since the release; empty: not decayed.
    """

    metric: str
    now: Estimate
    promised: Estimate
    drop: float
    p: float
    level: float
    spread: float
    since_release: Harm
    cause: Literal["", "drop", "harm"] = ""


class Quality(Record, frozen=True, kw_only=True):
    """Quality in a window from the outcomes known at `known_at`; later outcomes revise it with a new record of the same key.

    Measured are predictions whose wait is over. `mature_at`: when it is for all of them; None where it is now. Until then the window is
    provisional, and its state `no data`. `by_arm` has the metrics of each arm (name) where several answered,
    `small_groups` by slice the rows of values with too few of them to be in `slices`. `decay` is what the state rests on, of all rows and
    by package. `arrived` counts predictions with an outcome that arrived; the labels of others are those of its absence.
    """

    kind: ClassVar[str] = "quality"
    start: datetime
    end: datetime
    known_at: datetime
    rows: int
    with_outcome: int
    state: Literal["ok", "decayed", "no data"]
    metrics: dict[str, Estimate]
    slices: dict[str, dict[str, dict[str, Estimate]]]
    by_package: dict[str, dict[str, Estimate]]
    minimum_rows: int = 0
    by_arm: dict[str, dict[str, Estimate]] = {}
    mature_at: datetime | None = None
    small_groups: dict[str, dict[str, int]] = {}
    decay: DecayCheck | None = None
    decay_by_package: dict[str, DecayCheck] = {}
    arrived: int | None = None

    @property
    def state_text(self) -> str:
        """The state for a person: `too few (N of M)` instead of `no data` for too few outcomes."""
        if self.mature_at is not None:
            return f"provisional (until {edge(self.mature_at, self.end - self.start)})"
        return state_text(self.state, self.with_outcome, self.minimum_rows)


class Alert(Record, frozen=True, kw_only=True):
    """An alert for the operator. One open alert per key; `repeats` counts its repetitions while open.

    `sent` is set when every sink has accepted it: an alert decided before a crash is sent after it, at least once. `holder` is the
    process (`base.holder`) that it depends on: void once that has ended; "" if it depends on none. `holds_releases`: no release begins while
    it is open, as what it is about would keep the release from being watched.
    """

    kind: ClassVar[str] = "alert"
    key: str
    severity: Literal["info", "warning", "critical"]
    title: str
    detail: str
    state: Literal["open", "closed"]
    repeats: int = 0
    sent: bool = False
    holder: str = ""
    holds_releases: bool = False


def alert_text(line: str) -> str:
    """A line of the log of alerts for a person: an alert, or a webhook that did not take one."""
    alert = msgspec.json.decode(line)
    if "title" not in alert:
        return f"alert not delivered: {line}"
    state = "alert closed" if alert["state"] == "closed" else "alert"
    return f"{state}: {alert['loop'] or 'this installation'}: {alert['title']} ({alert['severity']}) - {alert['detail']}"


class Trigger(Record, frozen=True, kw_only=True):
    """A reason to retrain, with its evidence."""

    kind: ClassVar[str] = "trigger"
    cause: Literal["schedule", "drift", "decay", "manual"]
    reason: str
    evidence: list[str] = []


class ValueWindow(Record, frozen=True, kw_only=True):
    """Money in a window, in `currency`, over predictions with a known outcome: the model's, and the heuristic's on the same rows.

    They are those whose wait is over: until `mature_at` (None: now) some are missing.
    `no_model` is the value of doing nothing. Intervals are over units. `cost` is compute, in USD.
    `arms` has an account per arm (name) where several answered, with its share of the cost by rows.
    """

    kind: ClassVar[str] = "value"
    start: datetime
    end: datetime
    known_at: datetime
    currency: str
    predictions: int
    with_outcome: int
    model: Estimate
    heuristic: Estimate
    no_model: float
    over_no_model: Estimate
    over_heuristic: Estimate
    cost: float
    counts: dict[str, int]
    arms: dict[str, "ValueWindow"] = {}
    mature_at: datetime | None = None
