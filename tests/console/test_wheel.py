import re
from itertools import pairwise

import pytest
from tests.console import sample

from loopwright.console import wheel
from loopwright.records.conditions import Condition
from loopwright.records.turns import STAGES
from loopwright.verbs.loop_status import LoopStatus, StageState


def test_every_stage_has_its_discipline_and_three_skills() -> None:
    made = wheel.stages([sample.loop_status()])
    assert [s.stage for s in made] == list(STAGES)
    assert {s.stage: s.discipline for s in made} == {
        "scope": "data science",
        "data": "DataOps",
        "develop": "ML engineering",
        "deploy": "MLOps",
        "monitor": "MLOps",
        "business": "data science",
    }
    assert all(len(s.skills) == 3 for s in made)


def test_a_stage_shows_the_worst_of_all_loops() -> None:
    def loop(name: str, state: Condition) -> LoopStatus:
        stages = [StageState(stage=s, state=state, detail=f"{name} detail", at=None) for s in wheel.STAGES]
        return LoopStatus(
            **{**{f: getattr(sample.loop_status(), f) for f in LoopStatus.__struct_fields__}, "name": name, "stages": stages}
        )

    made = wheel.stages([loop("a", "ok"), loop("b", "alert"), loop("c", "watch")])
    assert {(s.loop, s.state, s.detail) for s in made} == {("b", "alert", "b detail")}


def test_without_loops_no_stage_is_well() -> None:
    assert {s.state for s in wheel.stages([])} == {"not yet"}


def points(path: str) -> list[tuple[float, float]]:
    """Where the commands of a path end."""
    return [(float(x), float(y)) for x, y in re.findall(r"(?:[ML]|A\S+ \S+ \d \d \d )(-?[\d.]+) (-?[\d.]+)", path)]


@pytest.mark.parametrize("stage", wheel.stages([sample.loop_status()]), ids=lambda s: s.stage)
def test_text_reads_upright(stage: wheel.WheelStage) -> None:
    for sector in (wheel.inner(stage), wheel.outer(stage)):
        for text, arc in sector.lines:
            (x1, _), (x2, _) = points(arc)
            assert text
            assert x1 < x2 or abs(x1 - x2) < 1e-6, "the arc must run from left to right"
    heights = [points(arc)[0][1] for _, arc in wheel.outer(stage).lines]
    if stage.stage in ("scope", "deploy"):
        assert heights == sorted(heights), "the first line must be the highest"


def test_rings_do_not_touch_and_everything_is_inside_the_drawing() -> None:
    rings = [wheel.INNER, wheel.MIDDLE, wheel.OUTER]
    assert all(a[1] < b[0] for a, b in pairwise(rings))
    made = wheel.stages([])
    for sector in [*map(wheel.inner, made), *wheel.middle(), *map(wheel.outer, made)]:
        for x, y in points(sector.outline):
            assert x * x + y * y <= 200**2 + 1e-6
