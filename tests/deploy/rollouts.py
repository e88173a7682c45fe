"""A loop under traffic on a simulated clock, with a plan under way: rows, outcomes and the controller, without a server."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from tests.deploy.loops import LOOP, NOW, Weather, declared, flight, opened, package

from loopwright.base.clock import SimulatedClock, microseconds
from loopwright.base.ids import new_ids
from loopwright.deploy import plans, releases
from loopwright.deploy.controller import progress
from loopwright.deploy.serving.arms import Arms
from loopwright.deploy.serving.package_cache import PackageCache
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.shadow import Repeater
from loopwright.deploy.strategies import Strategy
from loopwright.records.declarations import Canary, Full, Loop
from loopwright.records.declarations.stages import AnyStage
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.records.releases import ReleaseState
from loopwright.records.verdicts import Verdict
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

PLAN: list[AnyStage] = [
    Canary(share=0.1, time="1h", rows=200),
    Canary(share=0.5, time="1h", rows=200),
    Full(watch="2h", hold_back=0.05),
]


class Rollout:
    """`old` serves, and `new` is released by a plan; `serve` answers flights and tells their outcomes `wait` later.

    `before` flights are answered before the plan. With `tails` so many aircraft are the units, each with a noise of its own.
    """

    def __init__(self, folder: Path, new: Any, *, plan: Any = PLAN, seed: int = 1, **changes: Any) -> None:
        self.clock = SimulatedClock(NOW)
        self.home = opened(folder, self.clock)
        outcome = msgspec.structs.replace(declared().outcome, wait=changes.pop("wait", "30m"))
        old = changes.pop("old", {})
        self.loop: Loop = msgspec.structs.replace(
            declared(), outcome=outcome, **{name: value for name, value in changes.items() if name not in ("tails", "before")}
        )
        self.tails = changes.pop("tails", 0)
        if self.tails:
            self.loop = msgspec.structs.replace(self.loop, unit="tail")
        self.home.ledger.put(self.loop.record("loop.py"), loop=LOOP, key=LOOP)
        self.old = package(self.home.packages, **old).digest
        self.new = package(self.home.packages, **new).digest
        releases.release(self.home, LOOP, self.old, why="first")
        self.rng = np.random.default_rng(seed)
        self.number, self.answers = 0, list[tuple[int, Prediction]]()
        self.due: list[tuple[int, OutcomeRow]] = []
        self.verdicts: list[Verdict] = []
        self.loses: Callable[[Prediction], bool] = lambda _: False
        self.leaves_out: Callable[[Prediction], bool] = lambda _: False
        self.alters: Callable[[Prediction], Prediction] = lambda answer: answer
        self.cache = PackageCache(lambda key: Predictor(open_probed(self.home.packages, key), Weather(), self.clock))
        if before := changes.pop("before", 0):
            self.serve(before, timedelta(days=2))
            self.verdicts.clear()
        self.clock.advance(timedelta(minutes=1))
        self.plan = Strategy("plan", "", plan, self.loop.unit or "")
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # else an equal package would be sent back in some runs of the tests, by chance
            patch.setattr(plans, "new_id", lambda _at: f"{seed:032x}")
            releases.release(self.home, LOOP, self.new, strategy=self.plan, why="is it better?")

    @property
    def state(self) -> ReleaseState:
        found = releases.serving(self.home, LOOP)
        assert found is not None
        return found

    def serve(self, rows: int, span: timedelta = timedelta(minutes=30)) -> Verdict | None:
        """Answer so many flights in a span of time, then judge."""
        state, end = self.state, self.clock.now() + span
        moments = sorted(microseconds(self.clock.now()) + int(x * span.total_seconds() * 1e6) for x in self.rng.random(rows))
        delays = self.rng.normal(5, 25, rows)
        asked = [
            flight(self.number + i, delay=float(d), origin=str(o), pushed_back_at=at)
            for i, (d, o, at) in enumerate(zip(delays, self.rng.choice(["JFK", "EWR", "LGA"], rows), moments, strict=True))
        ]
        own = np.arange(self.number, self.number + rows) % max(1, self.tails)
        if self.tails:
            asked = [one | {"tail": f"N{tail}"} for one, tail in zip(asked, own.tolist(), strict=True)]
        self.number += rows
        ids = [new_ids(NOW + timedelta(microseconds=at - microseconds(NOW)), 1)[0] for at in moments]
        answers = Arms(state, self.cache, self.cache.load).answer(asked, ids=ids, at_us=moments)
        answers = [self.alters(answer) for answer in answers if not self.loses(answer)]
        if state.shadow is not None:
            repeater = Repeater(state, state.shadow, self.cache.load(state.shadow.package))
            due = [answer for answer in repeater.due(answers) if not self.leaves_out(answer)]
            self._log("shadows", [self.alters(answer) for answer in repeater.answer(due)])
        self.answers += [(state.generation, answer) for answer in answers]
        wait = microseconds(NOW + timedelta(minutes=20)) - microseconds(NOW)
        truth = delays + self.rng.normal(0, 12, rows) * np.where(own % 2, 0.3, 3.0 if self.tails else 1.0)
        for answer, at, late in zip(answers, moments, truth, strict=False):
            values = {"landed_at": at + wait, "arr_delay": float(np.clip(late, -180, 1440))}
            self.due.append((at + wait, OutcomeRow(
                id=f"{len(self.due) + self.number:032x}", prediction=answer.id, unit=answer.unit, values=values,
                known_at=at + wait, received_at=at + wait, provenance="tests",
            )))  # fmt: skip
        self.clock.advance(span)
        now = microseconds(end)
        self._log("predictions", answers)
        self._log("outcomes", [row for at, row in self.due if at <= now])
        self.due = [(at, row) for at, row in self.due if at > now]
        commit(self.home, LOOP)
        return self.judge()

    def _log(self, kind: Literal["predictions", "outcomes", "shadows"], records: Sequence[Any]) -> None:
        writer = LogWriter(log_folder(self.home.path, LOOP), kind)
        writer.append(records)
        writer.close()

    def judge(self) -> Verdict | None:
        """One round of the controller."""
        verdict = progress(self.home, self.loop, self.clock.now())
        if verdict is not None:
            self.verdicts.append(verdict)
        return verdict

    def until_ended(self, rows: int, most: int = 40) -> Verdict:
        """Serve in half hours until the plan has ended."""
        for _ in range(most):
            self.serve(rows)
            if self.state.under_way is None:
                return self.verdicts[-1]
        raise AssertionError(f"still under way: {self.verdicts[-1].why}")
