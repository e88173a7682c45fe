import duckdb
import pytest

from loopwright.base.errors import ExamplesRefused
from loopwright.data.examples.labels import describe
from loopwright.records.declarations import Column, Outcome, Table
from loopwright.tasks.multiclass import MAX_CLASSES

LANDED = Table("landed", columns={"k": Column("string"), "at": Column("timestamp")}, key=["k"], event_time="at")
YES = Outcome(LANDED, "y")
KIND = Outcome(LANDED, "y", task="multiclass")
NUMBER = Outcome(LANDED, "y", task="regression")
BOTH = Outcome(LANDED, {"cost": "y", "weight": "z"}, task="regression")
ORDER = Outcome(LANDED, "y", task="ranking", group="q")
ODD = Outcome(LANDED, "y", task="anomaly")


def told(outcome: Outcome, rows: str, count: int) -> tuple[int, str, str]:
    with duckdb.connect(":memory:") as database:
        database.execute(f"CREATE TABLE kept AS SELECT * FROM (VALUES {rows}) AS t(_label, q)")
        return describe(database, outcome, count, {"outcome pending": 3})


@pytest.mark.parametrize(
    ("outcome", "rows", "count", "expected"),
    [
        (YES, "(true, 1), (false, 1), (false, 1)", 3, (1, "33.3% positive")),
        (ODD, "(true, 1), (NULL, 1), (false, 1)", 3, (1, "2 with a known outcome, 1 of them anomalies")),
        (ODD, "(NULL::BOOLEAN, 1)", 1, (0, "0 with a known outcome, 0 of them anomalies")),
        (KIND, "('a', 1), ('b', 1), ('a', 1), ('c', 1)", 4, (0, "3 classes: a 50.0%, b 25.0%, c 25.0%")),
        (KIND, ", ".join(f"('{c}', 1)" for c in "abcdefg"), 7, (0, "7 classes: a 14.3%, b 14.3%, c 14.3%, d 14.3%, e 14.3% and 2 more")),
        (NUMBER, "(1.5, 1), (2.5, 1)", 2, (0, "label 2 on average, from 1.5 to 2.5")),
        (BOTH, "([1.0, 5.0]::DOUBLE[], 1), ([3.0, 6.0], 1)", 2, (0, "cost 2 on average, from 1 to 3; weight 5.5 on average, from 5 to 6")),
        (ORDER, "(0.0, 'x'), (2.0, 'x'), (0.0, 'y'), (1.0, 'z')", 4, (0, "3 groups, 50.0% of their rows relevant")),
    ],
)  # fmt: skip
def test_labels_in_words(outcome: Outcome, rows: str, count: int, expected: tuple[int, str]) -> None:
    assert told(outcome, rows, count) == (*expected, "")


@pytest.mark.parametrize(
    ("outcome", "rows", "count", "why"),
    [
        (YES, "(true, 1), (true, 1)", 2, "all 2 outcomes are true"),
        (KIND, "('a', 1), ('a', 1)", 2, "all 2 outcomes are 'a'"),
        (KIND, ", ".join(f"('c{i}', 1)" for i in range(MAX_CLASSES + 1)), MAX_CLASSES + 1, "does it name things"),
        (NUMBER, "(1.5, 1), (1.5, 1)", 2, "all 2 values of 'label' are 1.5"),
        (BOTH, "([1.0, 5.0]::DOUBLE[], 1), ([3.0, 5.0], 1)", 2, "all 2 values of 'weight' are 5"),
        (ORDER, "(1.0, 'x'), (1.0, 'y')", 2, "equally relevant"),
        (ORDER, "(1.0, 'x'), (-1.0, 'y')", 2, "there is -1"),
    ],
)
def test_nothing_to_learn_from_is_refused_with_what_was_left_out(outcome: Outcome, rows: str, count: int, why: str) -> None:
    with pytest.raises(ExamplesRefused, match=why) as refused:
        told(outcome, rows, count)
    assert "3 x outcome pending" in str(refused.value)


@pytest.mark.parametrize("outcome", [YES, KIND, NUMBER, BOTH, ORDER, ODD])
def test_no_examples_are_refused(outcome: Outcome) -> None:
    with duckdb.connect(":memory:") as database:
        kind = {"binary": "BOOLEAN", "anomaly": "BOOLEAN", "multiclass": "VARCHAR"}.get(outcome.task, "DOUBLE")
        kind = "DOUBLE[]" if outcome is BOTH else kind
        database.execute(f"CREATE TABLE kept (_label {kind}, q VARCHAR)")
        with pytest.raises(ExamplesRefused, match="no outcome is known"):
            describe(database, outcome, 0, {})
