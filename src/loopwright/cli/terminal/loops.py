"""Loops and their six stages, in a terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import count as _count
from loopwright.base.text import short
from loopwright.cli.terminal.cells import MAX_SEGMENTS, fact_table, heading, plain, state, table
from loopwright.cli.terminal.checks import problem_list
from loopwright.deploy.serving.heartbeat import WorkerState
from loopwright.records.windows import Alert
from loopwright.render.words import word
from loopwright.verbs.loop_status import FleetStatus, LoopStatus
from loopwright.verbs.status import Running, Status


def status(value: Status) -> RenderableType:
    """Every loop, alerts without a loop, the home, and its server."""
    if not value.loops and value.page == 1:
        return Text("no loop yet: `loopwright demo` shows one, `loopwright init DIR` begins one")
    return Group(
        *(loop_status(loop) for loop in value.loops),
        *open_alerts(value.open_alerts),
        *([Text(value.paged)] if value.paged else []),
        Text(f"\nhome {value.home} · ledger {value.ledger}", style="dim"),
        Text(_running(value.server), style="dim"),
    )


def _running(server: Running | None) -> str:
    if server is None:
        return "no server runs over this home: `loopwright serve`"
    grpc = f" · gRPC at {server.grpc}" if server.grpc else ""
    return f"predictions at {server.data}{grpc} · console at {server.control}"


def loop_status(loop: LoopStatus) -> RenderableType:
    """The stages of a loop, its release, its retrainings and alerts."""
    stages = table(["stage", "state", "when", ""], [[s.stage, state(s.state), s.at, s.detail] for s in loop.stages])
    serving = f"{loop.candidate} ({short(loop.serving)}) since {word(loop.since)}" if loop.serving else "nobody"
    parts: list[RenderableType] = [
        heading(loop.name),
        plain(loop.problem),
        stages,
        fact_table(
            "",
            [
                ("serving", serving),
                *([] if not loop.damaged else [("damaged log", f"{len(loop.damaged)} in quarantine: `loopwright verify`")]),
                *([] if not loop.lagging else [("workers", standing(loop.lagging))]),
                *([] if loop.fleet is None else [(f"fleet by {loop.fleet.by}", _fleet_line(loop.fleet))]),
                ("served so far", _count(len(loop.packages_served), "package")),
                (
                    "predictions",
                    f"{loop.predictions:,}, the last {word(loop.last_prediction)}" if loop.predictions else "none yet",
                ),
                ("so far", _turns_line(loop)),
            ],
        ),
    ]
    if loop.retrainings:
        rows = [[r.at, r.cause, r.why, short(r.package), r.result] for r in loop.retrainings]
        parts += [heading("Retrainings"), table(["when", "cause", "why", "package", ""], rows)]
    return Group(*parts, *open_alerts(loop.open_alerts), problem_list(loop.errors))


def _turns_line(loop: LoopStatus) -> str:
    newest = loop.retrainings[-1:]
    refused = "".join(
        f"; the newest training was refused: {'; '.join(r.refused)}" for r in newest if r.refused and r.package != loop.serving
    )
    return f"{_count(loop.turns, 'turn')}, of which {_count(len(loop.retrainings), 'retraining')}{refused}"


def open_alerts(alerts: Sequence[Alert]) -> list[RenderableType]:
    """A heading and one line per alert; empty without alerts."""
    rows = [[Text(a.severity, style="red" if a.severity == "critical" else "yellow"), a.title, a.detail] for a in alerts]
    return [heading("Open alerts"), table(["severity", "alert", ""], rows)] if rows else []


def _fleet_line(fleet: FleetStatus) -> str:
    most = list(fleet.serving)[:MAX_SEGMENTS]
    more = f" and {len(fleet.serving) - len(most):,} more" if len(fleet.serving) > len(most) else ""
    own = f"{len(fleet.serving):,} of {fleet.judged:,} segments with a model are answered by it"
    return own + (f": {', '.join(word(name) for name in most)}{more}" if most else "")


STANDINGS = {"lags": "still serves another", "refuses": "cannot switch to it", "down": "is down"}
"""Words for the states of workers that do not serve the declared release."""


def standing(workers: Iterable[WorkerState]) -> str:
    """Workers that do not serve the declared release, and why."""
    return ", ".join(f"{w.pid or 'one'} {STANDINGS[w.state]}" for w in workers if w.state in STANDINGS)
