"""Turns of the loop: stages, time, cause and result; enough to resume after an interruption."""

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
"""Causes of a turn, in words: the default reason."""


class LoopRecord(Record, frozen=True, kw_only=True):
    """A loop as declared: its JSON (functions as source text), the file it came from and the digest of the declaration."""

    kind: ClassVar[str] = "loop"
    name: str
    file: str
    digest: str
    declaration: dict[str, Any]


class Turn(Record, frozen=True, kw_only=True):
    """One turn; stored again under the same key (the turn's id) when its state changes.

    `model_inputs` is the digest of the declarations that affect the models, `code` that of all code that their functions reach
    (`base.closure`), `libraries` are the versions that it runs on.
    `ended` is the result for its winner, and `reasons` why it was not released; `reused`: the packages are those of an earlier
    turn, so nothing was trained (None in turns of earlier versions). `backdated`: trained on what was known earlier (`--as-of`).
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
    """One stage of a turn; `output` names its results (entry ids, package digests) so that a resumed turn can continue from it."""

    kind: ClassVar[str] = "step"
    turn: str
    stage: Stage
    state: Literal["running", "done", "failed"]
    started: datetime
    seconds: float
    summary: str
    output: dict[str, Any]
