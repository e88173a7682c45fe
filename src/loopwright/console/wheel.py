"""The wheel: the six stages of the loop with live state, the disciplines that own them, the skills that they need.

Inner ring stages, middle ring disciplines, outer ring skills, after Chip Huyen, "Principles of good machine learning
systems design" (Stanford MLSys seminar, episode 5). Angles are degrees clockwise from the top, lengths SVG units of a
drawing 400 units wide, so that on a 390 pixel screen a unit is a pixel.
"""

import math
from collections.abc import Sequence
from typing import get_args

import msgspec

from loopwright.records.conditions import GRAVITY, LOOKS, Condition
from loopwright.records.turns import Stage
from loopwright.verbs.loop_status import LoopStatus

STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages in running order, clockwise."""

SIGNS: dict[str, str] = {word: look.sign for word, look in LOOKS.items()}

SKILLS: dict[Stage, tuple[str, str, str]] = {
    "scope": ("problem framing", "stakeholders' goals", "feasibility"),
    "data": ("SQL, pipelines", "contracts, privacy", "labels, sampling"),
    "develop": ("statistics, ML", "feature design", "evaluation"),
    "deploy": ("APIs, latency", "release engineering", "systems, security"),
    "monitor": ("observability", "drift, statistics", "incident response"),
    "business": ("experiment design", "costs, finance", "communication"),
}

DISCIPLINES: tuple[tuple[str, Stage, Stage], ...] = (
    ("data science", "business", "scope"),
    ("DataOps", "data", "data"),
    ("ML engineering", "develop", "develop"),
    ("MLOps", "deploy", "monitor"),
)
"""Each discipline with the first and the last stage (clockwise) that it owns."""

STEP = 360 / len(STAGES)
INNER, MIDDLE, OUTER = (58.0, 113.0), (115.5, 136.0), (138.5, 197.0)
GAP = 1.7


class WheelStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage over all loops: the worst state, the loop that is in it and its sentence, the stage's owner, and its cost."""

    stage: Stage
    state: Condition
    loop: str
    detail: str
    discipline: str
    skills: list[str]


class Sector(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a ring: its outline as an SVG path, and lines of text with the arcs that they are written on."""

    outline: str
    lines: list[tuple[str, str]]


def stages(loops: Sequence[LoopStatus]) -> list[WheelStage]:
    """The inner ring: for each stage the worst state over all loops ("not yet" without loops)."""
    return [_stage(stage, loops) for stage in STAGES]


def _stage(stage: Stage, loops: Sequence[LoopStatus]) -> WheelStage:
    found = [(s, loop.name) for loop in loops for s in loop.stages if s.stage == stage]
    worst = min(found, key=lambda f: GRAVITY.index(f[0].state), default=None)
    return WheelStage(
        stage=stage,
        state=worst[0].state if worst else "not yet",
        loop=worst[1] if worst else "",
        detail=worst[0].detail if worst else "no loop yet",
        discipline=next(name for name, first, last in DISCIPLINES if stage in _between(first, last)),
        skills=list(SKILLS[stage]),
    )


def _between(first: Stage, last: Stage) -> list[Stage]:
    i, n = STAGES.index(first), (STAGES.index(last) - STAGES.index(first)) % len(STAGES)
    return [*STAGES, *STAGES][i : i + n + 1]


def inner(stage: WheelStage) -> Sector:
    """A stage: its name, and its state under it."""
    return _sector(
        STAGES.index(stage.stage) * STEP, STEP, INNER, [stage.stage, f"{SIGNS[stage.state]} {stage.state}"], [91.0, 73.0]
    )


def middle() -> list[Sector]:
    """The disciplines."""
    sectors = []
    for name, first, last in DISCIPLINES:
        count = len(_between(first, last))
        centre = STAGES.index(first) * STEP + (count - 1) * STEP / 2
        sectors.append(_sector(centre, count * STEP, MIDDLE, [name], [122.0]))
    return sectors


def outer(stage: WheelStage) -> Sector:
    """The skills that a stage needs."""
    return _sector(STAGES.index(stage.stage) * STEP, STEP, OUTER, stage.skills, [181.0, 165.0, 149.0])


def _sector(centre: float, width: float, ring: tuple[float, float], lines: list[str], radii: list[float]) -> Sector:
    """A ring piece `width` degrees wide around `centre`; in the lower half the text is turned so that it reads upright."""
    upright = not 90 < centre % 360 < 270
    if not upright:
        radii = [r + 7.0 for r in reversed(radii)]
    arcs = [_arc(r, centre - width / 2, centre + width / 2, clockwise=upright) for r in radii]
    return Sector(
        outline=_outline(ring, centre - width / 2 + GAP / 2, centre + width / 2 - GAP / 2),
        lines=list(zip(lines, arcs, strict=True)),
    )


def _point(radius: float, degrees: float) -> str:
    angle = math.radians(degrees)
    return f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}"


def _arc(radius: float, start: float, end: float, *, clockwise: bool) -> str:
    large = int(end - start > 180)
    if clockwise:
        return f"M{_point(radius, start)}A{radius} {radius} 0 {large} 1 {_point(radius, end)}"
    return f"M{_point(radius, end)}A{radius} {radius} 0 {large} 0 {_point(radius, start)}"


def _outline(ring: tuple[float, float], start: float, end: float) -> str:
    inside, outside = ring
    large = int(end - start > 180)
    return (
        f"M{_point(outside, start)}A{outside} {outside} 0 {large} 1 {_point(outside, end)}"
        f"L{_point(inside, end)}A{inside} {inside} 0 {large} 0 {_point(inside, start)}Z"
    )
