"""Stage scope: the problem, the stakeholders' objectives, money and the rule to beat."""

import re
from typing import Any, Literal

from loopwright.records.declarations.declaration import Declaration, code_problem

UNNAMED = "not named yet"
"""The owner of an objective that a draft cannot know."""

_PLACEHOLDER = re.compile(rf"\bTODO\b|^(?:(?i:tbd|{UNNAMED})|\W*)$")


def is_placeholder(text: str) -> bool:
    """Whether a text of a draft is still to be written: `TODO`, `not named yet`, or nothing."""
    return _PLACEHOLDER.search(text) is not None


class Objective(Declaration, frozen=True):
    """One stakeholder's objective, as a metric with a target. Exactly one of `at_least` and `at_most` is declared.

    Attributes:
        name: Unique name in the leaderboard, the report and `status`.
        owner: The stakeholder who wants it.
        metric: Name of a metric: `average_precision`, `mae`, `latency_p99_ms`, `recall_gap:SLICE` ...
        at_least: The target of a metric that should be high.
        at_most: The target of a metric that should be low.
        weight: How much it counts in the leaderboard, 0 or more.

    Example:
        Objective("find leavers", "retention", "average_precision", at_least=0.4)
    """

    name: str
    owner: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    weight: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        found = []
        if (self.at_least is None) == (self.at_most is None):
            found.append(("at_least/at_most", "give exactly one of the two"))
        return found

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the target; NaN never does."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


class Budget(Declaration, frozen=True):
    """Limits of the loop's cost.

    Attributes:
        train_minutes: Longest training of one turn, minutes; None: no limit (24 hours for a retraining by upkeep).
        usd_per_month: Highest cost of training and serving, USD a month; None: no limit.
        usd_per_hour: Price of one machine hour in USD, used to cost training and serving.

    Example:
        Budget(train_minutes=10, usd_per_month=50)
    """

    train_minutes: float | None = None
    usd_per_month: float | None = None
    usd_per_hour: float = 0.10


class Value(Declaration, frozen=True):
    """Money for each kind of outcome.

    Binary and anomaly tasks use the four kinds, relative to doing nothing when the truth is negative; multiclass `correct`
    and `wrong`; regression and count `correct`, `under` and `over`; ranking none.

    Attributes:
        currency: Name of the currency, for display.
        true_positive: Worth of acting where the truth is positive.
        false_positive: Worth of acting where the truth is negative (a cost is below 0).
        true_negative: Worth of not acting where the truth is negative.
        false_negative: Worth of not acting where the truth is positive (a cost is below 0).
        correct: Worth of each right answer (multiclass), or of each answer (regression).
        wrong: Worth of each wrong answer (multiclass).
        under: Worth of each unit by which an answer is below the truth (regression; a cost is below 0).
        over: Worth of each unit by which an answer is above the truth (regression; a cost is below 0).

    Example:
        Value(true_positive=40, false_positive=-5)
    """

    currency: str = "USD"
    true_positive: float = 0.0
    false_positive: float = 0.0
    true_negative: float = 0.0
    false_negative: float = 0.0
    correct: float = 0.0
    wrong: float = 0.0
    under: float = 0.0
    over: float = 0.0

    @property
    def is_set(self) -> bool:
        """Whether any value is declared."""
        return any(
            isinstance(money, float | int) and money != 0 for money in (getattr(self, f) for f in self.__struct_fields__)
        )

    @property
    def over_nothing(self) -> bool:
        """Whether doing nothing is an alternative to compare with: not where an answer can only cost."""
        kinds = (self.true_positive, self.false_positive, self.true_negative, self.false_negative)
        return any(kinds) or self.correct > 0

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        wasted, gained = self.true_negative - self.false_positive, self.true_positive - self.false_negative
        if gained > 0 or (gained == 0 and wasted <= 0):
            return []
        why = (
            f"acting where the truth is positive is worth {self.true_positive:g}, not acting {self.false_negative:g}: so acting "
            f"{'pays where the truth is negative' if wasted < 0 else 'never pays'}. Make it worth more, or turn the label round (`NOT ...`)"
        )
        return [("true_positive", why)]

    def threshold(self) -> float:
        """The score from which acting pays, for calibrated scores (Elkan 2001, The foundations of cost-sensitive learning).

        0 where it pays whatever the truth is.
        """
        wasted, gained = self.true_negative - self.false_positive, self.true_positive - self.false_negative
        return 0.5 if wasted == gained == 0 else max(0.0, wasted) / (max(0.0, wasted) + gained) if gained > 0 else 0.0


class Heuristic(Declaration, frozen=True):
    """Phase 1 of the ladder: a rule over request and context columns, traced to ONNX. It also answers when the model fails.

    Attributes:
        rule: A function of the columns. Its result depends on the outcome's task: binary a condition or a score in [0, 1];
            multiclass a string, one of the classes; regression a number, or a dictionary of target (or quantile, "q0.9") to
            number; ranking and anomaly a number, larger for what ranks higher or is more anomalous.
        name: Name in the leaderboard and in answers.

    Example:
        Heuristic(lambda c: c.tenure_months < 6, name="new-customers")
    """

    rule: Any
    name: str = "heuristic"

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        return code_problem("rule", self.rule)


class Scope(Declaration, frozen=True, kw_only=True):
    """The problem, the stakeholders' objectives, the budget, the value of answers, and the rule to beat.

    Attributes:
        problem: One sentence: the problem that the system solves.
        objectives: Stakeholders' objectives; at least one.
        heuristic: The rule to beat.
        value: Money for each kind of outcome; without it no money is reported.
        budget: Limits of the loop's cost.
        horizon: Period over which value is summed to judge whether the loop earns or loses.
        tier: How critical the system is: 1 the most, 3 the least. Tiers 1 and 2 require more of the loop before anything is released;
            `loopwright check` says what is missing.
        approvers: Names of those who may approve a release. Where any are named, no package is released without an approval.
        approvals: How many of them must approve.

    Example:
        Scope(
            problem="Call customers who are about to leave.",
            objectives=[Objective("find leavers", "retention", "average_precision", at_least=0.4)],
            heuristic=Heuristic(lambda c: c.tenure_months < 6),
        )
    """

    problem: str
    objectives: list[Objective]
    heuristic: Heuristic
    value: Value = Value()
    budget: Budget = Budget()
    horizon: str = "28d"
    tier: Literal[1, 2, 3] = 3
    approvers: list[str] = []
    approvals: int = 1

    def problems(self) -> list[tuple[str, str]]:
        """See Declaration."""
        if self.approvers and self.approvals > len(self.approvers):
            return [("approvals", f"{self.approvals} are wanted of {len(self.approvers)} approvers: name more of them")]
        return []
