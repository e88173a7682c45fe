"""The facts of the report that a manager reads: promised, delivered, doubts, next step. `render/report.py` writes them."""

from datetime import datetime

import msgspec

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.base.text import count, day, money, short
from loopwright.business.caveats import CaveatInputs, Doubt, doubts, next_step
from loopwright.business.objectives import Promise, Terms, delivered, promises
from loopwright.business.totals import ServedPackage, Totals, WindowTotals, served, totals, weeks
from loopwright.records.conditions import MIN_OUTCOMES
from loopwright.records.declarations import Budget, Monitor, Outcome, Scope, Task
from loopwright.records.evaluation import Leaderboard
from loopwright.records.turns import Turn
from loopwright.records.windows import Quality
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.stores.prediction_log.summary import summary
from loopwright.tasks import metrics
from loopwright.tasks.plausibility import too_good


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a report says. `metric` is the scope's weightiest metric of rows, the one that is charted.

    Money is left out where nobody said what an answer is worth (not `valued`). `logged` are all predictions, as `status` counts them;
    `totals` are over windows that have closed, the whole life. `now` names the newest windows with complete outcomes, by which objectives are
    met or missed. `serves` says what serves and how it won its place, `other_winner` who won the newest turn and does not serve.
    `small_groups` are by slice the values too small to be shown by themselves, and how many rows each has.
    """

    loop: str
    problem: str
    made_at: datetime
    headline: str
    metric: str
    target: float | None
    now: str
    serves: str
    other_winner: str
    small_groups: dict[str, dict[str, int]]
    promised: list[Promise]
    totals: Totals
    weeks: list[WindowTotals]
    served: list[ServedPackage]
    budget: Budget
    wait: str
    doubts: list[Doubt]
    next_step: str
    monitor: Monitor
    valued: bool
    logged: int

    @property
    def earned(self) -> bool:
        """Whether there is money to tell of: a value table, and outcomes."""
        return self.valued and self.totals.with_outcome > 0


def report(home: Home, *, loop_name: str, scope: Scope, outcome: Outcome, monitor: Monitor, unit: str = "") -> Report:
    """Gather the report of a loop from the ledger, the prediction log and the package that serves."""
    found = weeks(home, loop_name)
    releases = served(home, loop_name)
    package = _package(home, releases[-1].package) if releases else None
    sums = totals(home, loop_name, found, scope.value.currency, outcome)
    logged, last = summary(home, loop_name)
    terms = Terms(loop_name, scope, outcome, monitor.minimum_rows, unit)
    made = delivered(home, terms, found)
    promised = promises(terms, made, package)
    leaks = too_good(package.evaluation, package.manifest.output.task) if package is not None else []
    case = CaveatInputs(
        loop=loop_name,
        scope=scope,
        weeks=found,
        totals=sums,
        promises=promised,
        leaks=leaks,
        wait=outcome.wait,
        every=monitor.every,
        last_prediction=last,
        rule=bool(releases) and releases[-1].rule,
    )
    raised = doubts(case)
    metric, target = _charted(scope, found, outcome.task)
    boards = [entry.record for entry in home.ledger.find(Leaderboard, loop=loop_name)]
    return Report(
        loop=loop_name,
        problem=scope.problem,
        made_at=home.clock.now(),
        headline=_headline(scope, promised, sums, raised),
        now=made.when,
        metric=metric,
        target=target,
        serves=_serves(boards, releases),
        other_winner=_other_winner(home, loop_name, boards, releases),
        small_groups=_small_groups(package, made.life.qualities),
        promised=promised,
        totals=sums,
        weeks=found,
        served=releases,
        budget=scope.budget,
        wait=outcome.wait,
        doubts=raised,
        next_step=next_step(case, raised),
        monitor=monitor,
        valued=scope.value.is_set,
        logged=logged,
    )


def _serves(boards: list[Leaderboard], releases: list[ServedPackage]) -> str:
    """The package that serves, and the verdict of the comparison that it won its place by."""
    if not releases:
        return ""
    now = releases[-1]
    text = f"{now.candidate or 'a package'} ({short(now.package)}) serves"
    board = next((b for b in boards if any(row.package == now.package for row in b.rows)), None)
    return text if board is None else f"{text}, as of {day(board.as_of)}: {board.verdict}"


def _other_winner(home: Home, loop: str, boards: list[Leaderboard], releases: list[ServedPackage]) -> str:
    """The winner of the newest turn where it does not serve, and why not."""
    if not boards or (releases and boards[0].winner == releases[-1].package and not releases[-1].rule):
        return ""
    board = boards[0]
    name = next((row.candidate for row in board.rows if row.package == board.winner), "")
    turn = home.ledger.latest(Turn, loop=loop, key=board.turn)
    why = "; ".join(turn.record.reasons) if turn is not None else ""
    return f"{name} ({short(board.winner)}) of {day(board.as_of)} does not serve" + (f": {why}" if why else "")


def _small_groups(package: Package | None, qualities: list[Quality]) -> dict[str, dict[str, int]]:
    """Slice values with too few rows: in the newest window with complete outcomes, else in the serving package's validation rows."""
    if qualities:
        return qualities[-1].small_groups
    return package.evaluation.small_groups if package is not None else {}


def _package(home: Home, digest: str) -> Package | None:
    try:
        return home.packages.read(digest)
    except (NotFound, PackageRefused):
        return None


def _charted(scope: Scope, windows: list[WindowTotals], task: Task) -> tuple[str, float | None]:
    """The weightiest objective whose metric is measured by window, with its target; the task's own metric where there is none."""
    measured = {name for w in windows if w.quality is not None for name in w.quality.metrics}
    for objective in sorted(scope.objectives, key=lambda o: -o.weight):
        if objective.metric in measured:
            return objective.metric, objective.at_least if objective.at_least is not None else objective.at_most
    return metrics.primary(task), None


def _headline(scope: Scope, promised: list[Promise], sums: Totals, raised: list[Doubt]) -> str:
    """The whole report in a sentence or two."""
    met, open_ = sum(p.met == "met" for p in promised), sum(not p.settled for p in promised)
    unsettled = f", {open_} {'is' if open_ == 1 else 'are'} not settled yet" if open_ else ""
    when = next((f" ({p.when})" for p in promised if p.when), "")
    parts = [f"{met} of {count(len(promised), 'objective')} {'is' if met == 1 else 'are'} met now{when}{unsettled}"]
    if sums.with_outcome >= MIN_OUTCOMES and scope.value.is_set:
        parts.append(
            f"in its whole life the loop made {money(sums.model, sums.currency)} over no model, "
            f"{money(sums.over_heuristic, sums.currency, sign=True)} against the simple rule"
        )
    grave = sum(d.weight == "grave" for d in raised)
    tail = count(grave, "grave doubt") if grave else "No grave doubt"
    return "; ".join(parts) + f". {tail}."
