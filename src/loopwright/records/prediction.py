"""One prediction and one outcome, as the log stores them; and the contributions of a prediction, which are recomputed on each request."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

FLAGS = {
    "out_of_range": "outside the range of its column; the row is answered all the same",
    "new_category": "a word that training never saw in its column; the row is answered all the same",
    "missing_context": "its table has no row for the key",
    "stale_context": "the row of its table is older than declared",
    "late_context": "its table was fed too long ago, so that it may lack rows that training would have",
    "missing_segment": "no package of its own for the segment: that of the loop answered",
    "degraded": "the heuristic answered, because the model could not",
    "query_of_death": "the row ended or held up the model twice, so the heuristic answered",
    "undelivered": "the client had gone before the answer, as far as the server knows",
}
"""The kinds of flags with their meaning; the first two are followed by a colon and a column, those of context by a table."""


def explained(flags: Iterable[str]) -> list[str]:
    """A line for each kind among flags."""
    kinds = dict.fromkeys(flag.partition(":")[0] for flag in flags)
    return [f"{kind}: {FLAGS[kind]}" for kind in kinds if kind in FLAGS]


def unit_text(values: Sequence[Any]) -> str:
    r"""The values of a key as text: as Python's `str` gives them, timestamps as microseconds, joined by "|".

    With several values a "|" or "\" inside one is escaped with a "\", so that no two keys are equal.
    """
    if len(values) == 1:
        return str(values[0])
    return "|".join(str(v).replace("\\", "\\\\").replace("|", "\\|") for v in values)


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One answered prediction. Times are microseconds since 1970 (UTC).

    `request` and `context` map column to value as the graph got them (timestamps as microseconds); `context_age_s` is
    the age of the oldest context row used. `flags` are of the kinds FLAGS. `segment` is the one whose own package answered, None
    if the loop's package did. `generation` is that of the release that answered, 0 in logs of earlier versions. `of_file`: a row of a file that `loopwright predict` read. `label` and `values` follow
    `records.package.Output` of the package's task: the class, if any, and the numbers of its names.
    """

    id: str
    at: int
    package: str
    arm: str
    probability: float
    request: Any
    context: dict[str, Any]
    context_age_s: float | None
    score: float
    label: bool | str | None
    flags: list[str]
    latency_us: float
    unit: str
    segment: str | None = None
    values: list[float] | None = None
    of_file: bool = False
    generation: int = 0


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One outcome as it arrived: matched by `prediction` (id) or by `unit`; times in microseconds since 1970 (UTC).

    `values` are the columns of the outcome table's contract; `known_at` when the truth became known, `received_at` when
    it arrived here; `provenance` is its source. `id` makes repeated deliveries one row.
    """

    id: str
    prediction: str
    unit: str
    values: dict[str, Any]
    known_at: int
    received_at: int
    provenance: str


class Contributions(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Feature contributions of a prediction; with `base` they add up to the raw score, in `unit`, of the value `of` if there are several.

    `why` is the reason when there are none.
    """

    contributions: dict[str, float] | None = None
    base: float | None = None
    unit: str = ""
    of: str | None = None
    why: str = ""

    @property
    def largest(self) -> dict[str, float]:
        """The contributions, largest absolute value first."""
        return dict(sorted((self.contributions or {}).items(), key=lambda item: -abs(item[1])))


class OutcomeStates(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a loop's predictions and outcomes.

    Predictions are `joined` (their label is known), `pending` (may still come) or `overdue` (older than the loop's wait).

    Of the delivered `outcomes`, `matched` fit a prediction; `known_before_decision` fit one but were known before its decision (the answer,
    or the event time of a file's row) and are not trained on; `unmatched` fit none so far; `known_later` count from a future moment on;
    `repeated` are duplicates: together they are all. `contradicting` counts predictions or units that have outcomes with
    different values.
    """

    joined: int
    pending: int
    overdue: int
    outcomes: int
    matched: int
    known_before_decision: int
    unmatched: int
    known_later: int
    repeated: int
    contradicting: int
