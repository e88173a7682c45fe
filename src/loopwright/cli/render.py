"""What a person sees of an answer: a renderer for each type that deserves one, and a generic one for all others.

Strings go to the terminal as they are (no markup is read from them); control characters are escaped (`base/printable.py`).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from loopwright.base.printable import printable
from loopwright.base.text import interval, number, short
from loopwright.base.text import count as _count
from loopwright.cli.cells import ALIKE, heading, plain, table
from loopwright.cli.escaped import Escaped
from loopwright.cli.states import state
from loopwright.cli.tables import show_contract, show_ingested, show_profile, show_quarantined
from loopwright.deploy.serving.heartbeat import WorkerState
from loopwright.records.entries import Problem
from loopwright.records.evaluation import Detail, FleetBoard, Leaderboard, SegmentModel
from loopwright.records.ingestions import Ingested, Quarantined
from loopwright.records.prediction import Contributions
from loopwright.records.profiles import Profile
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import Alert, Quality, edge
from loopwright.render.words import cell
from loopwright.render.words import word as _word
from loopwright.stores.prediction_log.bulk import Predicted
from loopwright.verbs.results import (
    Checked,
    ContractShown,
    DriftReport,
    ExportedPackage,
    FleetStatus,
    History,
    LoopStatus,
    Made,
    Node,
    OutcomesReport,
    PredictionList,
    Replayed,
    ReportFile,
    Running,
    SampleRow,
    Standings,
    Status,
    Switched,
    Tended,
    Trace,
    TurnReport,
    Verified,
)

STANDINGS = {"lags": "still serves another", "refuses": "cannot switch to it", "down": "is down"}
"""What is said of workers that do not serve what is declared."""

PIPE_WIDTH = 140
"""So many files or packages are shown below one node of a tree."""


def show(value: Any) -> None:
    """Print an answer for a person to standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    console.print(Escaped(rendered(value)))


def rendered(value: Any) -> RenderableType:
    """An answer as something that rich can print."""
    renderer = RENDERERS.get(type(value))
    if renderer is not None:
        return renderer(value)
    if isinstance(value, list | tuple):
        return show_ingested(value) if value and isinstance(value[0], Ingested) else _rows(value)
    if isinstance(value, msgspec.Struct):
        return _facts(_title(type(value)), [(n.replace("_", " "), getattr(value, n)) for n in value.__struct_fields__])
    return plain(value)


def _title(kind: type) -> str:
    """The name of a type in words: `OutcomesReport` is "outcomes report"."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip()


# --- anything ------------------------------------------------------------------------------------------------------


def _facts(title: str, facts: Iterable[tuple[str, Any]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(_word(name), value if isinstance(value, Text) else plain(value))
    return Group(heading(title), grid) if title else grid


def _rows(values: Sequence[Any]) -> RenderableType:
    if not values:
        return Text("nothing")
    if not isinstance(values[0], msgspec.Struct):
        return plain(list(values))
    if len(values) == 1:
        return rendered(values[0])
    fields = values[0].__struct_fields__
    return table([f.replace("_", " ") for f in fields], [[getattr(v, f) for f in fields] for v in values])


# --- by type -------------------------------------------------------------------------------------------------------


def _status(value: Status) -> RenderableType:
    if not value.loops and value.page == 1:
        return Text("no loop yet: `loopwright demo` shows one, `loopwright init DIR` begins one")
    return Group(
        *(_loop_status(loop) for loop in value.loops),
        *_alerts(value.open_alerts),
        *([Text(value.paged)] if value.paged else []),
        Text(f"\nhome {value.home} · ledger {value.ledger}", style="dim"),
        Text(_running(value.server), style="dim"),
    )


def _running(server: Running | None) -> str:
    if server is None:
        return "no server runs over this home: `loopwright serve`"
    grpc = f" · gRPC at {server.grpc}" if server.grpc else ""
    return f"predictions at {server.data}{grpc} · console at {server.control}"


def _loop_status(loop: LoopStatus) -> RenderableType:
    stages = table(["stage", "state", "when", ""], [[s.stage, state(s.state), s.at, s.detail] for s in loop.stages])
    serving = f"{loop.candidate} ({short(loop.serving)}) since {_word(loop.since)}" if loop.serving else "nobody"
    parts: list[RenderableType] = [
        heading(loop.name),
        plain(loop.problem),
        stages,
        _facts(
            "",
            [
                ("serving", serving),
                *([] if not loop.damaged else [("damaged log", f"{len(loop.damaged)} in quarantine: `loopwright verify`")]),
                *([] if not loop.lagging else [("workers", _standing(loop.lagging))]),
                *([] if loop.fleet is None else [(f"fleet by {loop.fleet.by}", _fleet_line(loop.fleet))]),
                ("served so far", _count(len(loop.packages_served), "package")),
                (
                    "predictions",
                    f"{loop.predictions:,}, the last {_word(loop.last_prediction)}" if loop.predictions else "none yet",
                ),
                ("so far", _turns_line(loop)),
            ],
        ),
    ]
    if loop.retrainings:
        rows = [[r.at, r.cause, r.why, short(r.package), r.result] for r in loop.retrainings]
        parts += [heading("Retrainings"), table(["when", "cause", "why", "package", ""], rows)]
    return Group(*parts, *_alerts(loop.open_alerts), _problems(loop.trouble))


def _turns_line(loop: LoopStatus) -> str:
    newest = loop.retrainings[-1:]
    refused = "".join(
        f"; the newest training was refused: {'; '.join(r.refused)}" for r in newest if r.refused and r.package != loop.serving
    )
    return f"{_count(loop.turns, 'turn')}, of which {_count(len(loop.retrainings), 'retraining')}{refused}"


def _alerts(alerts: Sequence[Alert]) -> list[RenderableType]:
    rows = [[Text(a.severity, style="red" if a.severity == "critical" else "yellow"), a.title, a.detail] for a in alerts]
    return [heading("Open alerts"), table(["severity", "alert", ""], rows)] if rows else []


def _fleet_line(fleet: FleetStatus) -> str:
    most = list(fleet.serving)[:MOST_SEGMENTS]
    more = f" and {len(fleet.serving) - len(most):,} more" if len(fleet.serving) > len(most) else ""
    own = f"{len(fleet.serving):,} of {fleet.judged:,} segments with a model are answered by it"
    return own + (f": {', '.join(_word(name) for name in most)}{more}" if most else "")


def _leaderboard(board: Leaderboard) -> RenderableType:
    """Who is where, below it every measure of each (there are too many for columns), and what is behind the numbers of winner and server."""
    marks = {board.winner: ["wins"]}
    marks.setdefault(getattr(board, "serving", ""), []).append("serves")
    names = [Text(_word(r.candidate), style="bold" if r.package == board.winner else "") for r in board.rows]
    rows = []
    for row, name in zip(board.rows, names, strict=True):
        met = Text(f"{sum(row.met.values())}/{len(row.met)}", style="green" if all(row.met.values()) else "yellow")
        rows.append(
            [row.rank, name, ", ".join(marks.get(row.package, ())), row.phase, number(row.score), met, short(row.package)]
        )
    measures = dict.fromkeys(m for row in board.rows for m in row.measures)
    measured = [
        [
            m.replace("_", " "),
            *(interval(r.intervals[m]) if m in r.intervals else number(r.measures.get(m, math.nan)) for r in board.rows),
        ]
        for m in measures
    ]
    weights = ", ".join(f"{n} ×{number(w)}" for n, w in board.weights.items())
    right = ["", "phase", "score"]
    return Group(
        table(["", "candidate", " ", "phase", "score", "objectives met", "package"], rows, right=right),
        table(["measure [95 %]", *(str(n) for n in names)], measured, right=[str(n) for n in names]),
        plain(board.verdict),
        Text(f"as of {_word(board.as_of)}; objectives: {weights}", style="dim"),
        *([] if board.fleet is None else [_fleet(board.fleet)]),
        *(part for r in board.rows if r.package in marks and r.detail is not None for part in _detail(r.candidate, r.detail)),
    )


def _detail(candidate: str, detail: Detail) -> list[RenderableType]:
    """Importance, confusion and what other thresholds would bring, as far as there are some."""
    parts: list[RenderableType] = []
    if detail.importance:
        shares = [(name, f"{share:.0%}") for name, share in list(detail.importance.items())[:ALIKE] if share >= 0.005]
        parts.append(_facts(f"{candidate}: what moves its answers", shares))
    if detail.confusion is not None:
        labels, counts = detail.confusion.labels, detail.confusion.counts
        rows = [[truth, *of] for truth, of in zip(labels, counts, strict=True)]
        parts += [heading(f"{candidate}: truth (rows) and answer (columns)"), table(["", *labels], rows, right=labels)]
    if detail.trade:
        valued = any(p.value is not None for p in detail.trade)
        columns = ["threshold", "answered yes", "precision", "recall", *(["value per prediction"] if valued else [])]
        lines = [
            [
                number(p.threshold) + (" ◂" if p.used else ""),
                f"{p.rate:.1%}",
                p.precision,
                p.recall,
                *([p.value] if valued else []),
            ]
            for p in detail.trade
        ]
        parts += [heading(f"{candidate}: thresholds (◂ the one in use)"), table(columns, lines, right=columns)]
    return parts


MOST_SEGMENTS = 12
"""So many segments are shown at most; `--json` has all."""


def _fleet(fleet: FleetBoard) -> RenderableType:
    """The segments that gain most and those that gain least, and the whole in a sentence."""
    from loopwright.tasks.metrics import metric  # here and not above: it loads numpy, which looking needs for nothing else

    up = metric(fleet.metric).higher
    shown = sorted(fleet.segments, key=lambda m: (not m.package, -m.difference.value if up else m.difference.value, -m.rows))
    left_out = len(shown) - MOST_SEGMENTS
    half = MOST_SEGMENTS // 2
    parts = [shown] if left_out <= 0 else [shown[:half], shown[-half:]]
    rows: list[list[Any]] = []
    for part in parts:
        if rows:
            rows.append(["...", "", "", "", "", f"{left_out:,} more: --json has all"])
        rows += [_segment(m, m.segment in fleet.serving) for m in part]
    name = fleet.metric.replace("_", " ")
    columns = [fleet.by, "trained on", f"{name}: own", "global", "difference [95 %]", "answered by"]
    return Group(
        heading(f"Fleet by {fleet.by}"),
        table(columns, rows, right=columns[1:5]),
        plain(fleet.verdict),
        Text(f"as of {_word(fleet.as_of)}; {fleet.rest:,} training rows are of segments without a model", style="dim"),
    )


def _segment(model: SegmentModel, serves: bool) -> list[Any]:
    if not model.package:
        return [model.segment, f"{model.rows:,}", "", "", "", plain(f"global: {model.why}")]
    by = Text(f"own {short(model.package)}", style="green") if serves else Text("global")
    return [
        model.segment,
        f"{model.rows:,}",
        number(model.own.value),
        number(model.whole.value),
        interval(model.difference),
        by,
    ]


def _history(value: History) -> RenderableType:
    if not value.releases:
        return Text("nobody has served yet: `loopwright run LOOP` makes a package and releases it")
    rows = []
    for before, r in zip([None, *value.releases], value.releases, strict=False):
        package = _arms(r) if value.segment is None else _of_segment(r, value.segment)
        changed = [_changed(before, r)] if value.segment is None and any(s.segments for s in value.releases) else []
        rows.append([r.generation, r.since, r.action, package, *changed, r.by, r.why])
    columns = ["", "since", "", "package", *(["segments"] if rows and len(rows[0]) == 7 else []), "by", "why"]
    return table(columns, rows, right=[""])


def _of_segment(value: ReleaseState, segment: str) -> str:
    own = value.segments.get(segment)
    return f"own {short(own)}" if own else f"global {_arms(value)}"


def _changed(before: ReleaseState | None, now: ReleaseState) -> str:
    """How many segments have their own package, and how many of these are new, others, gone."""
    old = before.segments if before is not None else {}
    counts = {
        "new": len(now.segments.keys() - old.keys()),
        "replaced": sum(1 for name, package in now.segments.items() if old.get(name, package) != package),
        "gone": len(old.keys() - now.segments.keys()),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{len(now.segments)}" + (f" ({told})" if told else "")


def _arms(value: ReleaseState) -> str:
    said = {"champion": "", "heuristic": ", its heuristic alone,"}
    return ", ".join(short(a.package) + (f" {a.share:.0%}" if a.share < 1 else "") + said[a.role] for a in value.arms)


def _release(value: Switched) -> RenderableType:
    beside = f", {_count(len(value.segments), 'package')} of segments by {value.fleet} beside it," if value.segments else ""
    text = f"{value.loop}: {_arms(value)}{beside} serves since {_word(value.since)} ({value.action}, generation {value.generation}): {_word(value.why)}"
    there = sum(1 for worker in value.workers if worker.state not in STANDINGS)
    serve = f"\n{there} of {_count(len(value.workers), 'worker')} here {'serves' if there == 1 else 'serve'} it"
    serve = serve if value.workers else "\nno worker runs here; one that starts serves it"
    others = _standing(value.workers)
    again = ""
    if value.action == "rollback" and value.returns_to:
        again = (
            f"\n`loopwright rollback {value.loop}` once more returns to {short(value.returns_to)}; "
            "`--to PACKAGE` or `--to TIME` goes further back"
        )
    lost = (
        ""
        if value.ok
        else "\nThe change is recorded, but no worker here follows it: see `GET /readyz` and what the server logs"
    )
    return Text(text + serve + (f"; {others}" if others else "") + again + lost)


def _standing(workers: Iterable[WorkerState]) -> str:
    return ", ".join(f"{w.pid or 'one'} {STANDINGS[w.state]}" for w in workers if w.state in STANDINGS)


def _contributions(value: Contributions | None) -> RenderableType:
    if value is None or value.contributions is None:
        return _facts("Contributions", [("none", value.why if value is not None else "")])
    of = f" of {value.of}" if value.of is not None else ""
    moved = [(name, f"{by:+.4g}") for name, by in value.largest.items()]
    return _facts(f"Contributions to the {value.unit}{of}", [*moved, ("base", f"{value.base:+.4g}")])


def _age(seconds: float | None) -> list[tuple[str, str]]:
    return [] if seconds is None else [("age", f"{number(seconds)} s")]


def _trace(value: Trace) -> RenderableType:
    numbers = (
        f"score {value.score:.4f}, threshold {value.threshold:.4f}"
        if isinstance(value.label, bool) and not value.trouble
        else f"score {value.score:,.6g}"
    )
    release = value.release
    parts: list[RenderableType] = [
        heading(f"{value.loop}: prediction {value.id}"),
        _facts(
            "",
            [
                ("answered", f"{_word(value.at)} UTC in {number(value.latency_us)} µs"),
                ("answer", Text(_word(value.answer) + (f" ({numbers})" if value.label is not None else ""), style="bold")),
                *value.values.items(),
                ("heuristic", value.heuristic),
                ("flags", value.flags),
                ("arm", value.arm),
            ],
        ),
        _facts("Request", value.request.items()),
        *([_facts("Context", [*value.context.items(), *_age(value.context_age_s)])] if value.context else []),
        _contributions(value.explained),
        _facts("Features", value.features.items()),
        _facts(
            "Package",
            [
                ("package", value.trouble or value.package),
                ("candidate", value.candidate),
                ("trained", f"on {value.training_rows:,} rows known until {_word(value.trained_until)}"),
                ("commit", value.commit),
            ],
        ),
        heading("Training data"),
        table(
            ["table", "version", "file", "sha256"],
            [[f.table, f.version, f.file, f.sha256] for f in value.files],
            right=["version"],
        ),
        _facts("Release", [] if release is None else [("since", release.since), ("by", release.by), ("why", release.why)]),
    ]
    outcome = value.outcome
    if outcome is None:
        return Group(*parts, heading("Outcome"), state("pending"))
    worth = outcome.value or 0.0
    sign = "green" if worth > 0 else "red" if worth < 0 else ""
    value_of = "no value table is declared" if outcome.value is None else f"{worth:+,.2f} {outcome.currency}"
    facts: list[tuple[str, Any]] = [
        ("truth", f"{_word(cell(outcome.truth))}, known {_word(outcome.known_at)}"),
        *([("so it was", outcome.kind)] if outcome.kind else []),
        ("value", Text(_word(value_of), style=sign)),
        *outcome.values.items(),
    ]
    return Group(*parts, _facts("Outcome", facts))


def _node(value: Node) -> Tree:
    """A tree; what a column is of and found by stands on its own line, packages that used the same are named once."""
    root = Tree(_node_label(value))
    _grow(root, value.children)
    return root


def _node_label(node: Node) -> Text:
    name = short(node.id) if node.kind == "package" else _word(node.id).removeprefix("table:")
    if (node.kind == "file" and node.label) or name == node.kind:  # the label, or the kind, says the name
        name = ""
    ends = {c.role: [t.id for t in node.children if t.role == c.role] for c in node.children if c.kind == "table column"}
    origin = "; ".join(f"{role} {', '.join(map(_word, names))}" for role, names in ends.items())
    role, said = f"{_word(node.role)}: " if node.role else "", _word(node.label) if node.label else ""
    parts = [
        (role, "dim"),
        (f"{node.kind} ", "cyan"),
        (f"{name} " if name else "", ""),
        (f"{said} " if said else "", "dim"),
        (origin, "green"),
    ]
    label = Text.assemble(*parts)
    label.rstrip()
    return label


def _grow(tree: Tree, nodes: Sequence[Node]) -> None:
    shown: Counter[str] = Counter()
    same: dict[tuple[str, bytes], list[Node]] = {}
    for node in (n for n in nodes if n.kind != "table column"):
        inside = msgspec.json.encode(node.children) if node.kind == "package" and node.children else node.id.encode()
        same.setdefault((f"{node.role} {node.kind}", inside), []).append(node)
    for alike in same.values():
        first = alike[0]
        shown[first.kind] += 1
        if first.kind in ("file", "package") and shown[first.kind] > ALIKE:
            continue
        branch = tree.add(_node_label(first))
        _grow(branch, first.children)
        if others := [short(n.id) for n in alike[1:]]:
            more = "" if len(others) <= ALIKE else f" and {len(others) - ALIKE:,} more"
            branch.add(Text(f"the same in {', '.join(others[:ALIKE])}{more}", style="dim"))
    for kind in ("file", "package"):
        if (more_of := shown[kind] - ALIKE) > 0:
            tree.add(Text(f"and {_count(more_of, kind)} more (--json has all)", style="dim"))


def _drift(value: DriftReport) -> RenderableType:
    if not value.windows:
        return Text("no window closed yet: one closes whenever the loop's `Monitor(every=...)` has passed and upkeep runs")
    quality: dict[datetime, Quality] = {q.start: q for q in value.quality}
    metric = next((m for q in value.quality for m in q.metrics), "")
    rows = []
    for window in value.windows:
        found = quality.get(window.start)
        worst = max((c for c in window.columns if c.used and c.psi is not None), key=lambda c: c.beyond, default=None)
        rows.append(
            [
                edge(window.start, window.end - window.start),
                window.rows,
                state(window.state_text),
                f"{worst.beyond:.3f} {worst.column}" if worst else None,
                [*window.drifted, *(f"({name}: unused)" for name in window.noted)],
                state(found.state_text) if found else None,
                found.metrics.get(metric) if found else None,
                f"{found.with_outcome / found.rows:.0%}" if found and found.rows else None,
            ]
        )
    columns = [
        "from",
        "rows",
        "inputs",
        "PSI beyond usual",
        "drifted",
        "quality",
        metric.replace("_", " ") or "metric",
        "truth known",
    ]
    return table(columns, rows, right=["rows", "truth known"])


def _checked(value: Checked) -> RenderableType:
    lines: list[RenderableType] = [_tick(i.ok, i.name, i.detail, warning=i.warning, looked=i.looked) for i in value.items]
    bad, doubtful = sum(not i.ok for i in value.items), sum(i.warning for i in value.items)
    if value.sample:
        lines += [Text(""), heading(f"rows in, features out ({value.sample[0].source})"), _sampled(value.sample), Text("")]
    unseen = [i.name for i in value.items if not i.looked]
    well = f"well, but {', '.join(unseen)} could not be looked at" if unseen else "all is well"
    said = f"{bad} of {len(value.items)} not well" if bad else f"{doubtful} to look into" if doubtful else well
    return Group(*lines, Text(f"{_word(value.what)}: {said}"))


def _sampled(sample: Sequence[SampleRow]) -> RenderableType:
    """A column of the screen per row: first the columns given, then the features."""
    names = [f"row {i + 1}" for i in range(len(sample))]
    given = [[name, *(_brief(row.columns[name]) for row in sample)] for name in sample[0].columns]
    made = [[name, *(_brief(row.features[name]) for row in sample)] for name in sample[0].features]
    return Group(table(["column", *names], given), table(["feature", *names], made))


def _brief(value: Any) -> str:
    """A value in at most 40 characters; of an array the first numbers."""
    if isinstance(value, list):
        return f"[{', '.join(_brief(v) for v in value[:3])}{', ...' if len(value) > 3 else ''}]"
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else plain(value).plain
    return text if len(text) <= 40 else text[:39] + "…"


def _tick(ok: bool, name: str, detail: str, *, warning: bool = False, looked: bool = True) -> Text:
    sign = ("– ", "dim") if not looked else ("▲ ", "yellow") if warning else ("✓ ", "green") if ok else ("✗ ", "bold red")
    return Text.assemble(sign, (_word(name), "bold"), f"  {_word(detail)}")


def _verified(value: Verified) -> RenderableType:
    checked = plain(value.checked)
    if value.ok:
        return Text.assemble(("✓ ", "green"), "no damage; read ", checked)
    return Group(_problems(value.problems), Text.assemble((f"{len(value.problems)} damaged; read ", "bold red"), checked))


def _problems(problems: Sequence[Problem]) -> RenderableType:
    return Group(*(_tick(False, p.where, p.what) for p in problems))


def _turn(value: TurnReport) -> RenderableType:
    steps = table(
        ["stage", "", "seconds"], [[stage, said, number(seconds)] for stage, said, seconds in value.steps], right=["seconds"]
    )
    released = "; nothing changed in service" if value.serves_already else "; released" if value.released else ""
    end = f"turn {value.turn}: {value.state}{released}"
    verdict = [] if any(value.verdict in summary for _, summary, _ in value.steps) else [plain(value.verdict)]
    left_out = "; ".join(f"{count:,} {why}" for why, count in value.rows_left_out.items())
    return Group(
        heading(value.loop),
        steps,
        *verdict,
        *([plain(f"rows left out: {left_out}")] if left_out else []),
        Text(end),
        *(_tick(value.released, "released" if value.released else "not released", r) for r in value.reasons),
        *([Text.assemble(("next: ", "bold"), plain(value.next_step))] if value.next_step else []),
    )


def _replayed(value: Replayed) -> RenderableType:
    metric = value.metric.replace("_", " ")
    rows = [
        [
            edge(w.start, w.end - w.start),
            w.rows,
            state(w.state),
            number(w.psi),
            interval(w.metric),
            number(w.metric_never),
            number(w.metric_heuristic),
            short(w.package),
            *([number(w.value)] if value.valued else []),
            Text(_word(w.event) if w.event else ""),
        ]
        for w in value.weeks
    ]
    columns = ["from", "rows", "inputs", "PSI beyond usual", metric, "never", "heuristic", "package"]
    columns += [*([value.currency] if value.valued else []), ""]
    money: RenderableType = table(
        ["", f"value in {value.currency} over no model", f"the loop earns more by {value.currency}"],
        [
            [f"this loop ({value.policy})", interval(value.value), Text("")],
            ["never retrained", interval(value.value_never), interval(value.over_never)],
            ["heuristic only", interval(value.value_heuristic), interval(value.over_heuristic)],
        ],
    )
    end = (
        f"{value.predictions:,} predictions, {_count(value.retrainings, 'retraining')}, {_count(len(value.packages), 'package')}, "
        f"{value.start:%Y-%m-%d} to {value.end:%Y-%m-%d}, in {value.seconds:.0f} s"
    )
    return Group(
        heading(value.loop),
        table(columns, rows, right=["rows", "PSI beyond usual", "never", "heuristic", value.currency]),
        money if value.valued else Text("no value table is declared, so nobody knows what it is worth"),
        Text(end),
    )


def _tended(value: Tended) -> RenderableType:
    if not value.leader:
        return Text(f"nothing done: {value.held_by or 'another process'} tends (`loopwright serve` does it beside itself)")
    rows = [
        [loop, count, value.outcomes.get(loop, 0), value.windows.get(loop, 0), value.triggers.get(loop)]
        for loop, count in value.committed.items()
    ]
    columns = ["loop", "predictions", "outcomes", "windows closed", "retrained for"]
    moved = (
        table(columns, rows, right=columns[1:4]) if rows else Text("no loop to tend yet: `loopwright run LOOP` makes one known")
    )
    told = ", ".join(f"{count:,} of {loop}" for loop, count in value.events.items())
    events = [Text(f"told as events: {told}")] if told else []
    return Group(moved, *events, _problems([*value.problems, *value.failed]))


def _report(value: ReportFile) -> RenderableType:
    """The report as it means itself, without the signs of Markdown; links in it are text."""
    from rich.markdown import Markdown  # here and not above: it loads a parser that nothing else needs

    shown = Markdown(printable(value.markdown, newlines=True), hyperlinks=False)
    return Group(shown, Text(f"\nwritten to {_word(value.markdown_file)} and {_word(value.html_file)}", style="dim"))


def _exported(value: ExportedPackage) -> RenderableType:
    """Where the files are, and each input and output with its type and shape."""
    ports = [
        [kind, port.name, port.type, f"[{', '.join(map(str, port.shape))}]"]
        for kind, of in (("input", value.inputs), ("output", value.outputs))
        for port in of
    ]
    files = [Text.assemble(("wrote ", "dim"), plain(f"{value.folder}/{name}")) for name in value.files]
    title = f"{value.loop}: package {short(value.package)} as {value.format}"
    return Group(heading(title), table(["", "name", "type", "shape"], ports), *files)


def _listed(value: PredictionList) -> RenderableType:
    if not value.rows:
        return Text("no prediction in the log is like that")
    rows = [
        [f"{r.at:%Y-%m-%d %H:%M:%S}", r.unit, r.answer, number(r.score), r.flags, short(r.package), r.id] for r in value.rows
    ]
    more = [Text(f"the next ones: --before {value.before}", style="dim")] if value.before else []
    return Group(table(["when", "key", "answer", "score", "flags", "package", "id"], rows, right=["score"]), *more)


def _predicted(value: Predicted) -> RenderableType:
    """How many rows came to what, the reasons of those that were refused, the flags of the others."""
    counts = [(name, getattr(value, name)) for name in ("logged", "repeated", "refused", "unlogged") if getattr(value, name)]
    facts = [("package", short(value.package)), *counts, ("columns ignored", value.ignored)]
    tables = [
        table([title, "rows"], [[name, count] for name, count in list(found.items())[:ALIKE]], right=["rows"])
        for title, found in (("refused because", value.reasons), ("flag", value.flags))
        if found
    ]
    written = Text(f"written to {_word(value.out)}, a line for each row", style="dim")
    return Group(_facts(f"{value.loop}: {_count(value.rows, 'row')} of {value.file}", facts), *tables, written)


def _made(value: Made) -> RenderableType:
    files = [Text.assemble(("wrote ", "dim"), plain(f)) for f in value.files]
    notes = [Text.assemble(("note: ", "dim"), plain(note)) for note in value.notes]
    return Group(*files, *notes, *(Text.assemble(("next: ", "bold"), plain(step)) for step in value.next_steps))


def _outcomes(value: OutcomesReport) -> RenderableType:
    """Predictions and outcomes apart: each of the two adds up."""
    predictions, delivered = value.joined + value.pending + value.overdue, value.accepted + value.quarantined
    return _facts(
        f"{value.loop}: outcomes",
        [
            *([("accepted now", f"{_count(value.accepted, 'row')}, {value.quarantined:,} to quarantine")] if delivered else []),
            ("outcomes so far", value.outcomes),
            ("  matched", f"{value.matched:,} belong to a prediction"),
            (
                "  known before their decision",
                f"{value.known_before_decision:,} belong to a later one (of a file: by its event time): not trained on",
            ),
            ("  unmatched", f"{value.unmatched:,} belong to no prediction that was logged"),
            ("  known later", f"{value.known_later:,} become known in the future: count from then on"),
            ("  repeated", f"{value.repeated:,} brought what was already there"),
            ("predictions", predictions),
            ("  joined", f"{value.joined:,} have an outcome"),
            ("  pending", f"{value.pending:,} may still get one"),
            ("  overdue", f"{value.overdue:,} have none, and the wait for it is over"),
            (
                "contradicting",
                f"{value.contradicting:,} predictions or keys have outcomes that differ: the one known last counts",
            ),
        ],
    )


RENDERERS: dict[type, Callable[[Any], RenderableType]] = {
    Status: _status,
    LoopStatus: _loop_status,
    Leaderboard: _leaderboard,
    Standings: _leaderboard,
    History: _history,
    Switched: _release,
    Trace: _trace,
    Node: _node,
    DriftReport: _drift,
    Checked: _checked,
    Verified: _verified,
    TurnReport: _turn,
    Replayed: _replayed,
    OutcomesReport: _outcomes,
    ReportFile: _report,
    Tended: _tended,
    Made: _made,
    Predicted: _predicted,
    PredictionList: _listed,
    ExportedPackage: _exported,
    Quarantined: show_quarantined,
    ContractShown: show_contract,
    Profile: show_profile,
}
"""Renderer by type of answer. What is not here is shown field by field."""
