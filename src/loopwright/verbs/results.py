"""What the verbs answer: typed values that every door shows in its own way."""

from datetime import datetime
from typing import Any

import msgspec

from loopwright.base.text import interval
from loopwright.deploy.serving.heartbeat import WorkerState
from loopwright.records.conditions import Condition
from loopwright.records.declarations import Column, Table, Task
from loopwright.records.entries import Problem
from loopwright.records.evaluation import Estimate, Leaderboard
from loopwright.records.prediction import Contributions, OutcomeStates
from loopwright.records.profiles import Profile
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import Stage
from loopwright.records.windows import Alert, Quality, ValueWindow, Window
from loopwright.render import notebook
from loopwright.render.words import cell


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """Where one stage stands: `state` in a word, `detail` in a sentence, `at` when it last changed."""

    stage: Stage
    state: Condition
    detail: str
    at: datetime | None


class Retraining(msgspec.Struct, frozen=True, kw_only=True):
    """One turn after the first that trained: when, what caused it, whether that turn put its winner into service, and why not (`refused`)."""

    turn: str
    at: datetime
    cause: str
    why: str
    package: str
    released: bool
    refused: list[str] = []

    @property
    def result(self) -> str:
        """What became of its winner, in words."""
        return "released" if self.released else f"not released{': ' if self.refused else ''}{'; '.join(self.refused)}"


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet of a loop: the packages that serve by segment of column `by`, and how its newest turn judged it."""

    by: str
    serving: dict[str, str]
    judged: int
    verdict: str


class Switched(ReleaseState, frozen=True, kw_only=True):
    """Who serves since a release or a rollback, and how the workers of the servers that run here stand to it (none: no server runs).

    `returns_to` is the package that `rollback` without `--to` would go to next: after a rollback the one that it replaced
    ("": none, or only those of segments changed).
    """

    workers: list[WorkerState] = []
    returns_to: str = ""

    @property
    def ok(self) -> bool:
        """Whether the workers here follow: False where there are some and none of them has switched in time."""
        return not self.workers or any(worker.state in ("serves", "idle") for worker in self.workers)


class LoopStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: its six stages, who serves, what happened; of its retrainings those of the last hundred turns."""

    name: str
    problem: str
    stages: list[StageState]
    serving: str
    candidate: str
    since: datetime | None
    packages_served: list[str]
    turns: int
    retrainings: list[Retraining]
    predictions: int
    last_prediction: datetime | None
    open_alerts: list[Alert]
    fleet: FleetStatus | None = None
    lagging: list[WorkerState] = []
    """Workers of the servers that run here that serve something else than what is declared, or could not switch to it."""
    damaged: list[str] = []
    """Segments of the prediction log that were damaged or missing, and wait in quarantine for somebody to look."""
    trouble: list[Problem] = []
    """What of it could not be read; the figures that come from there are 0 or empty, and mean nothing."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The server that runs over this home: its process, and where predictions, the console and (if it is on) gRPC are."""

    pid: int
    data: str
    control: str
    grpc: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at a glance; `server` is None where none runs. Of `total` loops those of one of the `pages`, worst first."""

    version: str
    home: str
    ledger: str
    loops: list[LoopStatus]
    server: Running | None = None
    total: int = 0
    page: int = 1
    pages: int = 1
    open_alerts: list[Alert] = []
    """Alerts of no loop: the clock, upkeep as a whole."""

    @property
    def ok(self) -> bool:
        """Whether everything could be looked at."""
        return not any(loop.trouble for loop in self.loops)

    @property
    def paged(self) -> str:
        """Which loops these are, "" where they are all."""
        shown = f"{len(self.loops)} of {self.total:,} loops, worst first (page {self.page} of {self.pages})"
        return f"\n{shown}: `--page N`, or `--all`" if self.pages > 1 else ""


class FileUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A source file that went into training: its table, the table's version, its name and SHA-256."""

    table: str
    version: int
    file: str
    sha256: str


class ContractVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a contract, and how it differs from the one before."""

    number: int
    digest: str
    at: datetime
    by: str
    changes: list[str]


class ContractShown(msgspec.Struct, frozen=True, kw_only=True):
    """The contract of a table as it is now, the rows it holds, and its versions, oldest first."""

    table: Table
    rows: int
    versions: list[ContractVersion]
    notes: list[str] = []


class Standings(Leaderboard, frozen=True, kw_only=True):
    """A leaderboard, and the package that serves the loop now ("" where none does)."""

    serving: str = ""

    def _repr_html_(self) -> str:
        """In a notebook: the candidates with every objective's measure, and the verdict."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.intervals))
        marks = {self.winner: "wins"}
        marks[self.serving] = "wins, serves" if self.serving == self.winner else "serves"
        rows = [
            [
                r.rank,
                r.candidate,
                marks.get(r.package),
                r.phase,
                r.score,
                *((interval(i) if (i := r.intervals.get(n)) else "") for n in names),
                r.package[:12],
            ]
            for r in self.rows
        ]
        columns = ["", "candidate", "", "phase", "score", *(n.replace("_", " ") for n in names), "package"]
        return notebook.table(columns, rows) + f"<p>{notebook.text(self.verdict)}</p>"


class LoggedPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the prediction log; `trace` says the rest of it."""

    id: str
    at: datetime
    unit: str
    score: float
    label: bool | str | None
    flags: list[str]
    package: str
    arm: str
    segment: str | None
    latency_us: float

    @property
    def answer(self) -> str:
        """What was answered, in a word: yes or no, a class, or the number itself."""
        return cell(self.score if self.label is None else self.label)


class PredictionList(msgspec.Struct, frozen=True, kw_only=True):
    """The newest predictions that were asked for by the fields of `query`; `before` is the place where the next ones begin, "" after the last."""

    loop: str
    query: dict[str, str]
    rows: list[LoggedPrediction]
    before: str


class TracedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a prediction. `value` is in `currency`, relative to the value table; None where none is declared.

    `truth` is the label as the task has it (of several targets by name), `kind` the kind of answer it makes, empty where it has none.
    """

    truth: bool | str | float | dict[str, float]
    known_at: datetime
    values: dict[str, Any]
    kind: str
    value: float | None
    currency: str


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction, back to the files it was learnt from and forward to its money.

    `explained` is what each feature contributed to it, computed again of the row as it was logged.
    """

    id: str
    loop: str
    at: datetime
    request: dict[str, Any]
    context: dict[str, Any]
    context_age_s: float | None
    features: dict[str, float | None]
    score: float
    threshold: float
    label: bool | str | None
    heuristic: float | str | None
    flags: list[str]
    latency_us: float
    arm: str
    package: str
    candidate: str
    commit: str
    trained_until: datetime | None
    training_rows: int
    files: list[FileUsed]
    release: ReleaseState | None
    outcome: TracedOutcome | None
    task: Task = "binary"
    values: dict[str, float] = {}
    explained: Contributions | None = None
    trouble: str = ""
    """Why the package cannot be read; then only what the log says is here, and the rest means nothing."""

    @property
    def answer(self) -> str:
        """What was answered, in a word: yes or no, a class, or the number itself."""
        return cell(self.score if self.label is None else self.label)

    @property
    def hit(self) -> bool | None:
        """Whether the label was right; None where there is none to be right, or the truth is not known."""
        return None if self.outcome is None or self.label is None else self.outcome.truth == self.label

    def _repr_html_(self) -> str:
        """In a notebook: the answer and what it came from, request, context, contributions or features, package, outcome."""
        outcome, explained = self.outcome, self.explained
        happened = {} if outcome is None else {"truth": cell(outcome.truth), "value": outcome.value, **outcome.values}
        moved = {} if explained is None or explained.contributions is None else explained.largest
        parts = {
            f"{self.loop}: prediction {self.id}": {
                "answer": self.answer,
                "score": self.score,
                "at": self.at,
                "flags": self.flags,
            },
            "Request": self.request,
            "Context": self.context,
            f"Contributions to the {explained.unit}" if explained is not None else "": moved,
            "Features": self.features,
            "Package": {
                "package": self.trouble or self.package,
                "candidate": self.candidate,
                "trained until": self.trained_until,
            },
            "Outcome": happened or {"": "pending"},
        }
        return "".join(notebook.facts(title, values) for title, values in parts.items())


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a lineage tree: an entry, a package, a table version or a file, and what it came from (`role`)."""

    id: str
    kind: str
    label: str
    role: str
    children: list["Node"]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Who served when, oldest first; of one `segment` only what changed for it."""

    loop: str
    releases: list[ReleaseState]
    segment: str | None = None


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """Monitoring windows and quality over time, oldest first; the newest revision of each."""

    loop: str
    windows: list[Window]
    quality: list[Quality]


class OutcomesReport(OutcomeStates, frozen=True, kw_only=True):
    """How outcomes stand: rows of the file that were `accepted` and `quarantined`, and all that `OutcomeStates` counts."""

    loop: str
    accepted: int
    quarantined: int


class ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    """The report a manager reads: Markdown text, and where both forms were written."""

    loop: str
    markdown: str
    markdown_file: str
    html_file: str

    def _repr_html_(self) -> str:
        """In a notebook: the page that was written, charts included, in a frame of its own."""
        return notebook.page(self.html_file, self.markdown)


class LoopPage(msgspec.Struct, frozen=True, kw_only=True):
    """All that a page about one loop shows."""

    status: LoopStatus
    objectives: list[dict[str, Any]]
    leaderboard: Leaderboard | None
    releases: list[ReleaseState]
    windows: list[Window]
    quality: list[Quality]
    values: list[ValueWindow]
    alerts: list[Alert]
    valued: bool = True
    """Whether a value table is declared; else the money of `values` means nothing."""
    profiles: list[Profile] = []


class CheckItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at: whether it is well, and what was seen or what to do. A warning is a doubt: well, if it is meant so.

    `looked` is false where it could not be looked at: then nothing is known, and it is neither well nor doubtful.
    """

    name: str
    ok: bool
    detail: str
    warning: bool = False
    looked: bool = True


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row in, features out: the columns that features use, and the features as the user's function gives them."""

    source: str
    columns: dict[str, Any]
    features: dict[str, Any]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `check` and `doctor`: `ok` only if every item is."""

    what: str
    ok: bool
    items: list[CheckItem]
    columns: dict[str, Column] = {}
    features: list[str] = []
    sample: list[SampleRow] = []


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `verify`: how many things were read, and the damage found."""

    ok: bool
    checked: dict[str, int]
    problems: list[Problem]


class TurnReport(msgspec.Struct, frozen=True, kw_only=True):
    """One turn, step by step, with the leaderboard it made and the release that followed.

    `left_out` maps each candidate that could not be fitted or converted to the reason, `rows_left_out` each reason for which decisions
    are no examples, or examples neither train nor validate, to how many; `serves_already`: nothing was released
    because the winner is what serves.
    """

    loop: str
    turn: str
    state: str
    steps: list[tuple[str, str, float]]
    verdict: str
    winner: str
    released: bool
    reasons: list[str]
    left_out: dict[str, str] = {}
    rows_left_out: dict[str, int] = {}
    next_step: str = ""
    serves_already: bool = False


class Tended(msgspec.Struct, frozen=True, kw_only=True):
    """One round of upkeep: how much it did for each loop; `events` are predictions that were told to a receiver.

    `problems` are damage that was met, `failed` the steps that raised. Where another process tends (`held_by`) nothing was done.
    """

    leader: bool
    committed: dict[str, int]
    outcomes: dict[str, int]
    windows: dict[str, int]
    triggers: dict[str, str]
    problems: list[Problem]
    events: dict[str, int] = {}
    failed: list[Problem] = []
    held_by: str = ""

    @property
    def ok(self) -> bool:
        """Whether the round was done, and every step of it went through."""
        return self.leader and not self.failed


class Week(msgspec.Struct, frozen=True, kw_only=True):
    """One monitoring window of a replay; `psi` is the largest beyond what is usual for its column. Values are in the scope's currency, over no model; metrics over known outcomes."""

    start: datetime
    end: datetime
    rows: int
    state: str
    drifted: list[str]
    psi: float
    metric: Estimate
    metric_never: float
    metric_heuristic: float
    package: str
    value: float
    value_never: float
    value_heuristic: float
    event: str


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A replay: the timeline and what it came to, beside "never retrained" and "heuristic only" on the same rows."""

    loop: str
    policy: str
    start: datetime
    end: datetime
    metric: str
    currency: str
    predictions: int
    retrainings: int
    packages: list[str]
    weeks: list[Week]
    value: Estimate
    value_never: Estimate
    value_heuristic: Estimate
    over_never: Estimate
    over_heuristic: Estimate
    seconds: float
    valued: bool = True
    """Whether a value table is declared; else the money means nothing."""


class ExportedPort(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of an exported graph; `shape` begins with N, the number of rows."""

    name: str
    type: str
    shape: list[str | int]


class ExportedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """A package for another server: the files in `folder`, what goes in and what comes out."""

    package: str
    loop: str
    format: str
    folder: str
    files: list[str]
    inputs: list[ExportedPort]
    outputs: list[ExportedPort]


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were written, and what to do next."""

    files: list[str]
    next_steps: list[str]
    notes: list[str] = []
