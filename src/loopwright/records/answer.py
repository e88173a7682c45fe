"""The answers to prediction requests: the server writes them, `loopwright.Client` reads them."""

import msgspec


class Answer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One prediction as the client sees it: `segment` where a segment's own package answered, `values` by name where there are some.

    `label` is null where the task has none.
    """

    id: str
    score: float
    label: bool | str | None
    package: str
    arm: str
    flags: list[str]
    segment: str | None = None
    values: dict[str, float] | None = None


class ExplainedAnswer(Answer, frozen=True, gc=False, omit_defaults=True):
    """An answer with the contribution of each feature, or `why` there are none; see `Contributions`."""

    contributions: dict[str, float] | None = None
    base: float | None = None
    unit: str = ""
    of: str | None = None
    why: str = ""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """An accepted outcome: its id, the prediction or the unit (the key) that it is matched by, and its flags."""

    id: str
    prediction: str
    unit: str
    flags: list[str]
