"""Turns of the loop: what ran, when, why, with what result; enough to resume after an interruption."""

from datetime import datetime
from typing import Any, ClassVar, Literal

from loopwright.records.entries import Record

Stage = Literal["scope", "data", "develop", "deploy", "monitor", "business"]
STAGES: tuple[Stage, ...] = ("scope", "data", "develop", "deploy", "monitor", "business")

Cause = Literal["first", "schedule", "drift", "decay", "manual"]
CAUSES: dict[Cause, str] = {
    "first": "the first turn of the loop",
    "schedule": "it was time by the schedule",
    "drift": "the inputs drifted",
    "decay": "the quality decayed",
    "manual": "started by hand",
}
"""What began a turn, in words: why it was done where nobody says more."""


class LoopRecord(Record, frozen=True, kw_only=True):
    """A loop as declared: its JSON (functions as source text), the file it came from and the digest of the declaration."""

    kind: ClassVar[str] = "loop"
    name: str
    file: str
    digest: str
    declaration: dict[str, Any]


class Turn(Record, frozen=True, kw_only=True):
    """One turn: put again under the same key (the turn's id) when its state changes.

    `model_inputs` is the digest of what of the declaration decides the models, `code` that of everything that its functions reach
    (`base.closure`), `libraries` are the versions it runs on.
    `ended` says what became of its winner, and `reasons` why it was not released; `reused` whether the packages are those of an earlier
    turn, so that nothing was trained (turns of earlier versions do not say). `backdated` turns learn from what was known at an earlier moment that a person named (`--as-of`).
    """

    kind: ClassVar[str] = "turn"
    turn: str
    declaration: str
    model_inputs: str = ""
    as_of: datetime
    cause: Cause
    why: str
    state: Literal["running", "done", "stopped", "failed"]
    result: str
    code: str = ""
    libraries: dict[str, str] = {}
    backdated: bool = False
    ended: Literal["", "released", "not released", "serves already"] = ""
    reasons: list[str] = []
    reused: bool | None = None


class Step(Record, frozen=True, kw_only=True):
    """One stage of a turn; `output` names what it made (entry ids, package digests) so that a resumed turn can go on from it."""

    kind: ClassVar[str] = "step"
    turn: str
    stage: Stage
    state: Literal["running", "done", "failed"]
    started: datetime
    seconds: float
    summary: str
    output: dict[str, Any]
