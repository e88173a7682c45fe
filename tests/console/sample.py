"""A made-up year of one loop, as the verbs would answer it: what pages and renderers are tried on."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from loopwright.base.errors import LoopNotFound, PredictionNotFound
from loopwright.console.wheel import STAGES
from loopwright.records.evaluation import (
    Comparison,
    Confusion,
    Detail,
    Estimate,
    Leaderboard,
    LeaderboardRow,
    ReliabilityBin,
    TradePoint,
)
from loopwright.records.package import Calibration
from loopwright.records.prediction import Contributions
from loopwright.records.profiles import ColumnProfile, DayCount, Profile
from loopwright.records.releases import Arm, ReleaseState
from loopwright.records.windows import Alert, ColumnWindow, Quality, ValueWindow, Window
from loopwright.verbs.drift import DriftReport
from loopwright.verbs.history import History
from loopwright.verbs.loop_page import LoopPage
from loopwright.verbs.loop_status import LoopStatus, Retraining, StageState
from loopwright.verbs.predictions import LoggedPrediction, PredictionList
from loopwright.verbs.replay import Replayed, Week
from loopwright.verbs.status import Status
from loopwright.verbs.trace import FileUsed, Trace, TracedOutcome

LOOP = "late-arrival"
START = datetime(2013, 4, 1, tzinfo=UTC)
WEEKS = 39
PACKAGES = ["3fa91c0d" * 8, "b7702e55" * 8, "91ce4aa0" * 8, "d04417fb" * 8]
SWITCH = [0, 9, 18, 30]
DETAIL = Detail(
    importance={"dep_delay": 0.71, "hour": 0.29},
    confusion=Confusion(["no", "yes"], [[7100, 420], [810, 1670]]),
    trade=[
        TradePoint(threshold=0.2, rate=0.41, precision=0.52, recall=0.87, value=1.9, used=False),
        TradePoint(threshold=0.35, rate=0.209, precision=0.799, recall=0.673, value=2.4, used=True),
        TradePoint(threshold=0.99, rate=0.0, precision=None, recall=0.0, value=0.0, used=False),
    ],
    reliability=[
        ReliabilityBin(low=0.01, high=0.2, score=0.08, share=Estimate(0.07, 0.06, 0.08, 5000)),
        ReliabilityBin(low=0.2, high=0.97, score=0.55, share=Estimate(0.431, 0.417, 0.446, 5000)),
    ],
    calibration=Calibration(method="sigmoid", why="log loss 0.4210 to 0.3950", threshold=0.35, rows=9000, positives=2200),
)
ID = "013f2c8be8a0" + "5d" * 10
COLUMNS = ["dep_delay", "distance", "hour", "carrier", "origin", "wind_speed", "visibility", "precip"]
NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def estimate(value: float, half: float, n: int = 6000) -> Estimate:
    return Estimate(value, value - half, value + half, n)


def package_of(week: int) -> str:
    return PACKAGES[max(i for i, s in enumerate(SWITCH) if s <= week)]


def windows() -> list[Window]:
    noise = Random(1)
    made = []
    for week in range(WEEKS):
        since = week - max(s for s in SWITCH if s <= week)
        columns = []
        for i, name in enumerate(COLUMNS):
            psi = abs(noise.gauss(0.01, 0.012)) + (0.03 * since if name in ("wind_speed", "visibility") else 0)
            if week in (11, 12) and name == "precip":
                psi = 0.31
            columns.append(
                ColumnWindow(
                    column=name,
                    role="context" if i > 4 else "request",
                    state="drift" if psi > 0.25 else "watch" if psi > 0.125 else "ok",
                    psi=psi,
                    jensen_shannon=psi / 3,
                    moved=psi / 0.25,
                    missing=0.01,
                    missing_reference=0.01,
                    out_of_range=0.0,
                    new_category=0.0,
                    mean=10.0,
                    mean_reference=9.5,
                )
            )
        drifted = [c.column for c in columns if c.state == "drift"]
        empty = week == 22
        made.append(
            Window(
                start=START + timedelta(weeks=week),
                end=START + timedelta(weeks=week + 1),
                rows=0 if empty else 6300 + noise.randrange(600),
                state="no data"
                if empty
                else "drift"
                if drifted
                else "watch"
                if any(c.state == "watch" for c in columns)
                else "ok",
                reference=package_of(week),
                packages={package_of(week): 6400},
                degraded=0.0,
                flags={"out_of_range:dep_delay": 3},
                columns=[] if empty else columns,
                drifted=[] if empty else drifted,
            )
        )
    return made


def quality() -> list[Quality]:
    noise = Random(2)
    made = []
    for window in windows():
        week = (window.start - START).days // 7
        since = week - max(s for s in SWITCH if s <= week)
        value = 0.855 - 0.006 * since + noise.gauss(0, 0.008)
        slices = {
            "origin": {
                o: {"average_precision": estimate(value + d, 0.03, 2100)}
                for o, d in (("EWR", 0.01), ("JFK", -0.02), ("LGA", 0.0))
            }
        }
        made.append(
            Quality(
                start=window.start,
                end=window.end,
                known_at=window.end + timedelta(days=1),
                rows=window.rows,
                with_outcome=int(window.rows * 0.985),
                state="no data" if not window.rows else "decayed" if value < 0.8 else "ok",
                metrics={"average_precision": estimate(value, 0.018) if window.rows else NOTHING},
                slices=slices if window.rows else {},
                by_package={window.reference: {"average_precision": estimate(value, 0.018)}} if window.rows else {},
            )
        )
    return made


def values() -> list[ValueWindow]:
    noise = Random(3)
    made = []
    for window in windows():
        if not window.rows:
            continue
        model, rule = 61_000 + noise.gauss(0, 6000), 51_000 + noise.gauss(0, 6000)
        made.append(
            ValueWindow(
                start=window.start,
                end=window.end,
                known_at=window.end + timedelta(days=1),
                currency="USD",
                predictions=window.rows,
                with_outcome=int(window.rows * 0.985),
                model=estimate(model, 3000),
                heuristic=estimate(rule, 3000),
                no_model=-91_000.0,
                over_no_model=estimate(model + 91_000, 3000),
                over_heuristic=estimate(model - rule, 1500),
                cost=0.41,
                counts={"true positive": 1100, "false positive": 380, "true negative": 4500, "false negative": 320},
            )
        )
    return made


def releases() -> list[ReleaseState]:
    whys = [
        "first release: the simple model wins on evidence",
        "retrained: drift in wind_speed and visibility; average precision +0.021 [0.012, 0.030] on the same rows",
        "retrained on schedule, no worse on any slice",
        "retrained: average precision fell by 0.06 against its own evaluation",
    ]
    return [
        ReleaseState(
            loop=LOOP,
            generation=i + 1,
            arms=[Arm(package=PACKAGES[i])],
            strategy="direct",
            action="release",
            since=START + timedelta(weeks=SWITCH[i], hours=3),
            by="tend",
            why=whys[i],
        )
        for i in range(len(PACKAGES))
    ]


def alerts() -> list[Alert]:
    return [
        Alert(
            key="drift:wind_speed",
            severity="warning",
            title="wind_speed has drifted",
            detail="PSI 0.27 against package 91ce4aa091ce in the week to 2013-12-23",
            state="open",
            repeats=2,
        ),
        Alert(
            key="no-data",
            severity="critical",
            title="no predictions for a week",
            detail="the window 2013-09-02 to 2013-09-09 is empty",
            state="closed",
        ),
    ]


def leaderboard() -> Leaderboard:
    def row(rank: int, name: str, phase: int, package: str, ap: float, p99: float, gap: float, score: float) -> LeaderboardRow:
        met = {"catch late flights": ap >= 0.8, "answer at once": p99 <= 5, "no carrier left out": gap <= 0.2}
        return LeaderboardRow(
            rank=rank,
            candidate=name,
            phase=phase,
            package=package,
            measures={
                "average_precision": ap,
                "latency_p99_ms": p99,
                "recall_gap:carrier": gap,
                "train_seconds": phase * 3.1,
                "size_kb": 40.0 * phase,
            },
            intervals={"average_precision": estimate(ap, 0.011), "recall_gap:carrier": estimate(gap, 0.05)},
            met=met,
            score=score,
            detail=DETAIL if rank == 1 else None,
        )

    return Leaderboard(
        turn=ID,
        as_of=START,
        examples="e1" * 32,
        rows=[
            row(1, "lightgbm", 3, PACKAGES[0], 0.861, 0.082, 0.17, 0.91),
            row(2, "logistic-regression", 2, "aa" * 32, 0.840, 0.061, 0.19, 0.88),
            row(3, "neural-network", 4, "bb" * 32, 0.858, 0.071, 0.18, 0.87),
            row(4, "heuristic", 1, "cc" * 32, 0.712, 0.031, 0.24, 0.55),
        ],
        comparisons=[
            Comparison(
                challenger="lightgbm",
                incumbent="logistic-regression",
                metric="average_precision",
                difference=estimate(0.021, 0.006),
                latency_difference_us=20.0,
            )
        ],
        weights={"catch late flights": 3, "answer at once": 1, "no carrier left out": 1},
        verdict="LightGBM beats logistic regression by 0.021 [0.015, 0.027] average precision and costs 20 µs more; "
        "the neural network does not pay.",
        winner=PACKAGES[0],
    )


def stages() -> list[StageState]:
    details: dict[str, tuple[Any, str]] = {
        "scope": ("ok", "3 objectives of 3 stakeholders; heuristic dep_delay > 15"),
        "data": ("ok", "242,771 examples, 24 % positive, from 3 tables"),
        "develop": ("running", "fitting lightgbm on 150,000 rows"),
        "deploy": ("ok", "package d04417fbd044 serves since 2013-10-28 03:00 UTC; 247,120 predictions"),
        "monitor": ("alert", "week to 2013-12-30: drift, drifted: wind_speed; 1 open alert"),
        "business": ("watch", "week to 2013-12-30: 152,000 USD over no model, +10,300 over the heuristic"),
    }
    return [
        StageState(stage=s, state=details[s][0], detail=details[s][1], at=START + timedelta(weeks=WEEKS, minutes=i))
        for i, s in enumerate(STAGES)
    ]


def loop_status() -> LoopStatus:
    return LoopStatus(
        name=LOOP,
        problem="Tell the operations desk at push-back which flights will land more than 15 minutes late.",
        stages=stages(),
        serving=PACKAGES[-1],
        candidate="lightgbm",
        since=releases()[-1].since,
        packages_served=PACKAGES,
        turns=4,
        retrainings=[
            Retraining(
                turn=f"{i:032x}",
                at=r.since,
                cause="drift",
                why="wind_speed and visibility drifted",
                package=r.champion.package,
                released=True,
            )
            for i, r in enumerate(releases()[1:], 1)
        ],
        predictions=247_120,
        last_prediction=START + timedelta(weeks=WEEKS),
        open_alerts=[a for a in alerts() if a.state == "open"],
    )


def status(loops: int = 1) -> Status:
    return Status(version="0.1.0", home="/data/.loopwright", ledger="sqlite", loops=[loop_status()] * loops, total=loops)


def loop_page() -> LoopPage:
    return LoopPage(
        status=loop_status(),
        objectives=[
            {
                "name": "catch late flights",
                "owner": "operations",
                "metric": "average_precision",
                "at_least": 0.8,
                "at_most": None,
                "weight": 3.0,
            },
            {
                "name": "answer at once",
                "owner": "product",
                "metric": "latency_p99_ms",
                "at_least": None,
                "at_most": 5.0,
                "weight": 1.0,
            },
            {
                "name": "no carrier left out",
                "owner": "partners",
                "metric": "recall_gap:carrier",
                "at_least": None,
                "at_most": 0.2,
                "weight": 1.0,
            },
        ],
        leaderboard=leaderboard(),
        releases=releases(),
        windows=windows(),
        quality=quality(),
        values=values(),
        alerts=alerts(),
        profiles=[profile()],
    )


def profile(word: str = "EWR") -> Profile:
    """Rows of flights: two columns of numbers, a word, a time, and an array."""
    days = [DayCount((START + timedelta(days=i)).date(), 0 if i == 40 else 900 + i % 7 * 20) for i in range(60)]
    return Profile(
        table="departures",
        version=12,
        at=START + timedelta(days=62),
        rows=57_600,
        oldest=START,
        newest=START + timedelta(days=59, hours=23),
        days=days,
        columns=[
            ColumnProfile(
                name="dep_delay",
                type="float",
                nulls=576,
                distinct=310,
                minimum=-43.0,
                maximum=1301.0,
                mean=12.6,
                quantiles=[-9.0, -5.0, -2.0, 11.0, 88.0],
                histogram=[41_000, 9000, 3000, 1400, 900, 700, 500, 300, 120, 60, 30, 14],
            ),
            ColumnProfile(
                name="origin",
                type="string",
                nulls=0,
                distinct=3,
                minimum="EWR",
                maximum="LGA",
                top=[(word, 20_000), ("JFK", 19_000)],
            ),
            ColumnProfile(
                name="sched_dep",
                type="timestamp",
                nulls=0,
                distinct=50_000,
                minimum="2013-04-01T05:00:00+00:00",
                maximum="2013-05-30T23:00:00+00:00",
                quantiles=["2013-05-01T12:00:00+00:00"] * 5,
                histogram=[4800] * 12,
            ),
            ColumnProfile(name="pixels", type="array", nulls=0),
        ],
    )


def trace(*, outcome: bool = True, carrier: str = "UA") -> Trace:
    at = START + timedelta(days=40, hours=13, minutes=7)
    return Trace(
        id=ID,
        loop=LOOP,
        at=at,
        request={
            "flight": 1545,
            "carrier": carrier,
            "origin": "EWR",
            "dest": "IAH",
            "sched_dep": at - timedelta(minutes=22),
            "dep_delay": 22.0,
            "distance": 1400.0,
            "tailnum": None,
        },
        context={"wind_speed": 17.3, "visibility": 10.0, "precip": 0.0, "gust": None},
        context_age_s=2820.0,
        features={
            "dep_delay": 22.0,
            "log_distance": 7.2449,
            "hour_sin": -0.2588,
            "hour_cos": -0.9659,
            "wind_speed": 17.3,
            "carrier": 3.0,
            "gust": None,
        },
        score=0.7341,
        threshold=0.3846,
        label=True,
        heuristic=1.0,
        flags=["missing_context:gusts"],
        latency_us=214.5,
        arm="champion",
        package=PACKAGES[0],
        candidate="lightgbm",
        commit="9fe09ee1b2c3d4",
        trained_until=START,
        known_at=START,
        training_rows=64_210,
        files=[
            FileUsed(table="departures", version=1, file="departures.parquet", sha256="1d" * 32),
            FileUsed(table="weather", version=1, file="weather.parquet", sha256="2e" * 32),
            FileUsed(table="landings", version=3, file="landings.parquet", sha256="3f" * 32),
        ],
        release=releases()[0],
        outcome=TracedOutcome(
            truth=True,
            known_at=at + timedelta(hours=4),
            values={"arr_delay": 31.0, "landed_at": at + timedelta(hours=4)},
            kind="true positive",
            value=120.0,
            currency="USD",
        )
        if outcome
        else None,
        explained=Contributions({"carrier": 0.21, "dep_delay": 1.734, "hour_sin": -0.35}, base=-1.21, unit="log-odds")
        if outcome
        else Contributions(why="the heuristic answered"),
    )


def history() -> History:
    return History(loop=LOOP, releases=releases(), candidates=dict.fromkeys(PACKAGES, "lightgbm"))


def drift() -> DriftReport:
    return DriftReport(loop=LOOP, windows=windows(), quality=quality())


def replayed() -> Replayed:
    weeks = [
        Week(
            start=w.start,
            end=w.end,
            rows=w.rows,
            state=w.state,
            drifted=w.drifted,
            moved=max((c.moved for c in w.columns), default=0.0),
            metric=q.metrics["average_precision"],
            provisional=False,
            metric_never=0.8,
            metric_heuristic=0.71,
            package=w.reference,
            value=61_000.0,
            value_never=58_000.0,
            value_heuristic=51_000.0,
            event="retrained: drift of wind_speed, released" if i in SWITCH[1:] else "",
        )
        for i, (w, q) in enumerate(zip(windows(), quality(), strict=True))
    ]
    return Replayed(
        loop=LOOP,
        policy="declared",
        start=START,
        end=weeks[-1].end,
        metric="average_precision",
        currency="USD",
        predictions=247_120,
        retrainings=3,
        packages=PACKAGES,
        weeks=weeks,
        value=estimate(2_300_000, 40_000),
        value_never=estimate(2_200_000, 40_000),
        value_heuristic=estimate(1_950_000, 40_000),
        over_never=estimate(100_000, 12_000),
        over_heuristic=estimate(350_000, 20_000),
        seconds=121.0,
    )


class Sample:
    """Answers what `console.pages.Source` asks, from the made-up year."""

    def status(self, page: int = 1) -> Status:
        return status()

    def loop(self, name: str) -> LoopPage:
        if name != LOOP:
            raise LoopNotFound(name, [LOOP])
        return loop_page()

    def predictions(self, loop: str, query: Mapping[str, Any]) -> PredictionList:
        self.loop(loop)
        row = LoggedPrediction(
            id=ID,
            at=START,
            unit=f"UA 1 {query.get('key', '')}",
            score=0.7312,
            label=True,
            flags=["new_category:carrier"],
            package="5e" * 32,
            arm="champion",
            segment=None,
            latency_us=81.0,
        )
        return PredictionList(loop=loop, query=dict(query), rows=[row], before=f"1-{ID}")

    def trace(self, id: str) -> Trace:
        if id != ID:
            raise PredictionNotFound(id)
        return trace()
