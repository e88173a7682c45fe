import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tests.console import sample

from loopwright.base.markdown import plain as escaped
from loopwright.base.markdown import table as markdown_table
from loopwright.base.text import number
from loopwright.cli import terminal
from loopwright.deploy.analysis import DayEffect, MetricEffect
from loopwright.deploy.guards import Check
from loopwright.deploy.power import Power, PowerPoint
from loopwright.deploy.serving.heartbeat import Standing, WorkerState
from loopwright.parity import ColumnParity, Parity
from loopwright.records.declarations import Column, Table
from loopwright.records.entries import Problem
from loopwright.records.ingestions import Ingested, Quarantined
from loopwright.records.releases import Approval, Blocker
from loopwright.stores.prediction_log.bulk import Predicted
from loopwright.verbs.cases import Case, Cases
from loopwright.verbs.checked import Checked, CheckItem
from loopwright.verbs.contract import ContractShown, ContractVersion
from loopwright.verbs.experiment import ExperimentReport
from loopwright.verbs.export import ExportedPackage, ExportedPort
from loopwright.verbs.init import Made
from loopwright.verbs.leaderboard import Standings
from loopwright.verbs.lineage import Node
from loopwright.verbs.outcomes import OutcomesReport
from loopwright.verbs.predictions import PredictionList
from loopwright.verbs.report import ReportFile
from loopwright.verbs.run import TurnReport
from loopwright.verbs.status import Running
from loopwright.verbs.switched import Switched
from loopwright.verbs.tend import Tended
from loopwright.verbs.verify import Verified

NODE = Node(
    id="a" * 64,
    kind="package",
    label="lightgbm",
    role="",
    children=[Node(id="t1", kind="table", label="v1", role="trained on", children=[])],
)

CASE = Case(
    case="c",
    loop="l",
    package="f" * 64,
    opened=datetime(2024, 1, 1, tzinfo=UTC),
    expires=datetime(2024, 1, 15, tzinfo=UTC),
    why="better at night",
    by="ann",
    waits_for=[Blocker(name="approval", detail="waits for 1 approval of bo")],
    candidate="lightgbm",
    approvals=[
        Approval(
            case="c", loop="l", package="f" * 64, answer="approve", name="cy", why="seen", at=datetime(2024, 1, 2, tzinfo=UTC)
        )
    ],
    checks=[Check(name="probe", passed=True, detail="5 golden answers right")],
)


def tended(*, leader: bool = True, problems: Sequence[Problem] = (), **committed: int) -> Tended:
    return Tended(
        leader=leader,
        committed=committed,
        outcomes=dict.fromkeys(committed, 1),
        windows=dict.fromkeys(committed, 0),
        triggers=dict.fromkeys(committed, "drift of price"),
        problems=list(problems),
    )


def switched(*workers: tuple[Standing, int]) -> Switched:
    first = sample.releases()[0]
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    return Switched(**fields, workers=[WorkerState(pid=pid, state=state) for state, pid in workers])


def standings() -> Standings:
    board = sample.leaderboard()
    return Standings(**{n: getattr(board, n) for n in board.__struct_fields__}, serving=board.winner)


ANSWERS: list[tuple[Any, list[str]]] = [
    (
        msgspec.structs.replace(sample.status(), server=Running(pid=7, data="http://a:1", control="http://a:2", grpc="a:3")),
        ["predictions at http://a:1", "gRPC at a:3", "console at http://a:2"],
    ),
    (sample.status(), ["no server runs over this home"]),
    (sample.status(), ["late-arrival", "▲ alert", "4 turns, of which 3 retrainings", "wind_speed has drifted"]),
    (
        sample.profile(),
        [
            "departures: 57,600 rows at version 12",
            "dep_delay",
            "1.0%",
            "-43 .. -2 .. 1,301",
            "█▂",
            "EWR 35%, JFK 33%",
            "rows a day from 2013-04-01",
            "newest row 2013-05-30 23:00 UTC, 2 days before this profile",
        ],
    ),
    (sample.leaderboard(), ["lightgbm", "0.861 [0.850, 0.872]", "3/3", "does not pay"]),
    (
        msgspec.structs.replace(
            sample.leaderboard(),
            rows=[
                msgspec.structs.replace(r, measures=r.measures | {f"measure {n}": 0.1234 for n in range(20)})
                for r in sample.leaderboard().rows
            ],
        ),
        ["0.861 [0.850, 0.872]", "measure 19", "0.123"],  # however many measures there are, none is cut into pieces
    ),
    (
        standings(),
        [
            "wins, serves",
            "what moves its answers",
            "dep_delay  71%",
            "1,670",
            "0.350 ◂",
            "20.9%",
            "calibrated by sigmoid (log loss 0.4210 to 0.3950)",
            "0.010 to 0.200",
            "0.431 [0.417, 0.446]",
        ],
    ),
    (
        sample.Sample().predictions(sample.LOOP, {}),
        ["UA 1", "0.731", "new_category:carrier", "a word that training never saw", "--before 1-", sample.ID],
    ),
    (PredictionList(loop="x", query={}, rows=[], before=""), ["no prediction in the log is like that"]),
    (
        Predicted(
            loop="late-arrival",
            file="in.csv",
            digest="d" * 64,
            begun=sample.START,
            package="3fa91c0d3fa9" * 5,
            out="out.csv",
            rows=7,
            logged=4,
            repeated=2,
            refused=1,
            reasons={"hour: missing": 1},
            first_refused=7,
            flags={"degraded": 2},
            ignored=["remark"],
        ),
        [
            "late-arrival: 7 rows of in.csv",
            "3fa91c0d3fa9",
            "repeated",
            "hour: missing",
            "the first that was refused is row 7",
            "degraded: the heuristic answered",
            "remark",
            "written to out.csv",
        ],
    ),
    (
        [
            Ingested(
                table="t",
                source="b.csv",
                digest="d",
                rows=9,
                good=9,
                quarantined=0,
                reasons={},
                version=2,
                contract="c",
                repeated=4,
            )
        ],
        ["b.csv: rows that repeat key and moment of earlier ones: 4; the last counts"],
    ),
    (
        ExperimentReport(
            loop="late-arrival",
            verdict="The new package is better: brier -0.021.",
            generation=7,
            stage="A/B 50 %",
            start=datetime(2013, 6, 3, tzinfo=UTC),
            package="a" * 64,
            former="b" * 64,
            units=2100,
            control_units=2050,
            sampled=0.25,
            exported="units.json",
            effects=[
                MetricEffect(
                    metric="brier",
                    higher_is_better=False,
                    rows=4,
                    control_rows=4,
                    units=2100,
                    control_units=2050,
                    primary=True,
                    answer="better",
                    new=0.13,
                    old=0.151,
                    effect=-0.021,
                    low=-0.03,
                    high=-0.012,
                    always_low=-0.04,
                    always_high=-0.002,
                ),
                MetricEffect(
                    metric="recall",
                    higher_is_better=True,
                    rows=4,
                    control_rows=4,
                    units=4,
                    control_units=4,
                    slice="carrier",
                    value="UA",
                ),
            ],
            days=[DayEffect(day="2013-06-03", metric="brier", effect=-0.02, low=-0.05, high=0.01, rows=9, control_rows=8)],
            power=Power(
                metric="brier", source="the experiment itself", curve=[PowerPoint(days=7, units=900, smallest_effect=0.014)]
            ),
        ),
        [
            "The new package is better",
            "release 7, A/B 50 %",
            "2,100 units",
            "of 1 in 4 units",
            "brier (primary)",
            "[-0.030, -0.012]",
            "recall on carrier UA",
            "too few to tell",
            "brier by day",
            "7 days",
            "units are in units.json",
        ],
    ),
    (sample.history(), ["2013-06-03 03:00", "b7702e55b770", "lightgbm", "tend"]),
    (switched(), ["late-arrival: 3fa91c0d3fa9 serves since 2013-04-01 03:00"]),
    (switched(), ["no worker runs here; one that starts serves it"]),
    (switched(("serves", 11)), ["1 of 1 worker here serves it"]),
    (
        switched(("lags", 11), ("refuses", 12)),
        ["0 of 2 workers here serve it; 11 still serves another", "The change is recorded, but no worker here follows it"],
    ),
    (
        switched(("down", 0)),
        ["0 of 1 worker here serve it; one is down", "The change is recorded, but no worker here follows it"],
    ),
    (
        switched(("serves", 11), ("idle", 12), ("lags", 13), ("refuses", 14)),
        ["2 of 4 workers here serve it; 13 still serves another, 14 cannot switch to it"],
    ),
    (
        msgspec.structs.replace(sample.status().loops[0], lagging=[WorkerState(pid=13, state="lags")]),
        ["workers", "13 still serves another"],
    ),
    (
        sample.trace(),
        ["score 0.7341", "dep_delay", "departures.parquet", "+120.00 USD", "true positive", "Contributions to the log-odds"],
    ),
    (sample.trace(outcome=False), ["◐ pending", "the heuristic answered"]),
    (sample.drift(), ["2013-04-01", "○ no data", "wind_speed", "▲ decayed"]),
    (sample.replayed(), ["never retrained", "heuristic only", "3 retrainings", "retrained: drift of wind_speed"]),
    (tended(leader=False), ["nothing done: another process runs upkeep already"]),
    (msgspec.structs.replace(tended(churn=3), events={"churn": 1200}), ["told as events: 1,200 of churn"]),
    (tended(), ["no loop to tend yet: `loopwright run LOOP` makes one known"]),
    (
        tended(churn=3, problems=[Problem(where="upkeep of churn", what="no disk")]),
        ["churn", "drift of price", "✗ upkeep of churn", "no disk"],
    ),
    (NODE, ["aaaaaaaaaaaa", "trained on", "t1"]),
    (Checked(what="x", ok=False, items=[CheckItem(name="disk", ok=False, detail="full")]), ["✗ disk", "1 of 1 not well"]),
    (Verified(ok=True, checked={"packages": 3}, problems=[]), ["✓ no damage", "packages 3"]),
    (
        Verified(ok=False, checked={"packages": 3}, problems=[Problem(where="p/model.onnx", what="cut short")]),
        ["✗ p/model.onnx", "1 damaged"],
    ),
    (
        TurnReport(
            loop="l",
            turn="t",
            state="done",
            steps=[("scope", "said", 0.1)],
            verdict="v",
            winner="w",
            released=False,
            reasons=["worse on JFK"],
        ),
        ["scope", "worse on JFK"],
    ),
    (ReportFile(loop="l", markdown="# Report", markdown_file="a.md", html_file="a.html"), ["Report", "a.html"]),
    (Made(files=["loop.py"], next_steps=["loopwright check x"]), ["wrote loop.py", "next: loopwright check x"]),
    (
        OutcomesReport(
            loop="l",
            accepted=15,
            quarantined=6,
            file="came.csv",
            table="came",
            reasons={"late: missing": 6},
            joined=4,
            pending=3,
            overdue=2,
            outcomes=15,
            matched=5,
            known_before_decision=4,
            unmatched=3,
            known_later=2,
            repeated=1,
            contradicting=0,
        ),
        [
            "l: outcomes",
            "15 rows, 6 to quarantine",
            "late: missing: 6",
            "`loopwright quarantine came --export FILE`",
            "known before their decision  4 belong",
            "known later",
            "predictions",
        ],
    ),
    (
        ExportedPackage(
            package="f" * 64,
            loop="l",
            format="onnx",
            folder="out",
            files=["model.onnx"],
            inputs=[ExportedPort(name="visits", type="int64", shape=["N", 3])],
            outputs=[ExportedPort(name="score", type="float32", shape=["N"])],
        ),
        ["l: package ffffffffffff as onnx", "input    visits   int64     [N, 3]", "wrote out/model.onnx"],
    ),
    (
        Quarantined(
            table="orders",
            rows=1,
            mended=2,
            by_reason={"size: below 0": 1},
            by_source={"a.csv": 1},
            shown=[{"source": "a.csv", "row": 7, "reason": "size: '-1' is below 0", "raw": "{}"}],
        ),
        ["quarantine of orders: 1 row, 2 mended before", "size: '-1' is below 0", "loopwright ingest orders FILE --mend"],
    ),
    (
        ContractShown(
            table=Table("orders", {"id": Column("string", source="Id"), "at": Column("timestamp", zone="UTC")}, ["id"], "at"),
            rows=3,
            versions=[
                ContractVersion(number=1, digest="d", at=datetime(2024, 1, 1, tzinfo=UTC), by="ann", changes=["x: 1 -> 2"])
            ],
        ),
        ["orders: key id, event time at, 3 rows", "times of UTC", "2024-01-01 00:00", "x: 1 -> 2"],
    ),
    (
        Cases(cases=[CASE]),
        [
            "l: release of ffffffffffff (lightgbm), waiting until 2024-01-15 00:00, asked for by ann: better at night",
            "✗ approval  waits for 1 approval of bo",
            "✓ cy  approve: seen (2024-01-02 00:00)",
            "✓ probe  5 golden answers right",
        ],
    ),
    (CASE, ["l: release of ffffffffffff"]),
    (Cases(cases=[]), ["no release waits"]),
    (
        Parity(
            loop="l",
            package="f" * 64,
            rows=200,
            start=datetime(2024, 1, 1, tzinfo=UTC),
            end=datetime(2024, 1, 2, tzinfo=UTC),
            columns=[
                ColumnParity(
                    column="jam",
                    table="traffic",
                    features=["jammed"],
                    rows=200,
                    differs=50,
                    missing=20,
                    examples=[{"id": "a1", "served": None, "joined": 2.5}],
                )
            ],
            flips=0.1,
            largest_difference=0.25,
            not_compared={"wind": "table weather has no rows"},
        ),
        [
            "l: 200 requests of 2024-01-01 00:00 to 2024-01-02 00:00, answered twice by ffffffffffff",
            "jam      traffic    200      25%               20   jammed",
            "None served, 2.5 joined (a1)",
            "not compared: wind: table weather has no rows",
            "not served as training joins it: jam; 10% of the answers change, the score by at most 0.250",
        ],
    ),
    ([], ["nothing"]),
]


def text_of(value: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=170, markup=False, highlight=False, emoji=False).print(terminal.rendered(value))
    return out.getvalue()


@pytest.mark.parametrize(("value", "expected"), ANSWERS, ids=lambda v: type(v).__name__)
def test_answers_are_shown(value: Any, expected: list[str]) -> None:
    shown = text_of(value)
    for text in expected:
        assert text in shown


def test_every_picture_is_of_something_that_verbs_answer() -> None:
    tried = {type(value).__name__ for value, _ in ANSWERS}
    elsewhere = {
        "LoopStatus",
        "FleetBoard",
        "list[Ingested]",
        "list[OutcomesMended]",
    }  # parts of `Status` and `Standings`, lists of what is tried elsewhere
    assert set(terminal.PICTURES) - elsewhere <= tried


def test_data_cannot_steer_the_terminal_or_the_markup() -> None:
    item = CheckItem(name="[red]x[/red]", ok=True, detail="a\x1b[31mb\x07")
    shown = text_of(Checked(what="y", ok=True, items=[item]))
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert r"a\x1b[31mb\x07" in shown
    assert "\x07" not in shown


def test_numbers_are_as_long_as_they_matter() -> None:
    values = [1234567.0, 12.34, 0.0123, 3.0, math.nan, math.inf, -math.inf]
    assert [number(v) for v in values] == ["1,234,567", "12.3", "0.012", "3", "–", "∞", "-∞"]


def test_a_type_that_nobody_thought_of() -> None:
    class Novel(msgspec.Struct):
        first_name: str
        shares: dict[str, float]
        nothing: None

    shown = text_of(Novel(first_name="ann", shares={"a": 0.5}, nothing=None))
    assert "first name" in shown
    assert "a 0.500" in shown
    assert len(text_of([Novel("a", {}, None), Novel("b", {}, None)]).splitlines()) >= 4


def test_a_report_is_shown_without_the_signs_of_markdown() -> None:
    text = f"# l: report\n\n**{escaped('2 of 3 <met> [a] `b` | *c*')}**\n\n" + markdown_table(("a", "b|c"), [("1|2", "<3>")])
    shown = text_of(ReportFile(loop="l", markdown=text, markdown_file="a.md", html_file="a.html"))
    assert "2 of 3 <met> [a] `b` | *c*" in shown
    assert "1|2" in shown
    assert not [sign for sign in ("\\", "# ", "**") if sign in shown]


def test_a_turn_shows_its_verdict_once() -> None:
    report = TurnReport(
        loop="l",
        turn="t",
        state="done",
        steps=[("develop", "trees beat the rule; trees wins", 0.1)],
        verdict="trees beat the rule; trees wins",
        winner="w",
        released=False,
        reasons=[],
    )
    assert text_of(report).count("trees wins") == 1
    assert text_of(msgspec.structs.replace(report, steps=[])).count("trees wins") == 1, (
        "one that was resumed after it says it, too"
    )


def test_a_trace_without_context_says_nothing_of_its_age() -> None:
    shown = text_of(msgspec.structs.replace(sample.trace(), context={}, context_age_s=None))
    assert "Context" not in shown
    assert "age" not in {word for line in shown.splitlines() for word in line.split()[:1]}


def test_a_trace_without_a_value_table_shows_no_money() -> None:
    trace = sample.trace()
    assert trace.outcome is not None
    outcome = msgspec.structs.replace(trace.outcome, value=None)
    shown = text_of(msgspec.structs.replace(trace, valued=False, outcome=outcome))
    assert "no value table is declared" in shown
    assert "USD" not in shown


def test_the_heuristic_of_a_package_is_named_once_in_its_lineage() -> None:
    shown = text_of(Node(id="heuristic", kind="heuristic", label="", role="", children=[]))
    assert shown.split() == ["heuristic"]


def test_a_replay_without_a_value_table_shows_no_money() -> None:
    shown = text_of(msgspec.structs.replace(sample.replayed(), valued=False))
    assert "no value table is declared" in shown
    assert "USD" not in shown


def test_status_says_that_the_newest_training_was_refused_until_its_package_serves() -> None:
    loop = sample.loop_status()
    newest = msgspec.structs.replace(loop.retrainings[-1], released=False, refused=["guard roc_auc: worse"])
    for package, said in (("f" * 64, True), (loop.serving, False)):
        told = msgspec.structs.replace(loop, retrainings=[msgspec.structs.replace(newest, package=package)])
        shown = text_of(msgspec.structs.replace(sample.status(), loops=[told]))
        assert ("the newest training was refused: guard roc_auc: worse" in shown) == said
        assert "not released: guard roc_auc: worse" in shown, "by its turn"
