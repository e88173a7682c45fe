import duckdb
import numpy as np
import pyarrow as pa
import pytest

from loopwright.records.declarations import Column, Outcome, Table
from loopwright.tasks.label import label_array, label_sql, label_type

COLUMNS = {
    "k": Column("string"),
    "at": Column("timestamp"),
    "i": Column("integer"),
    "x": Column("float"),
    "word": Column("string"),
}
LANDED = Table("landed", columns=COLUMNS, key=["k"], event_time="at")
ROWS = "(VALUES (1, 2.5, 'red'), (2, NULL, NULL), (3, 'nan'::DOUBLE, 'blue'), (4, -1.0, 'red')) AS t(i, x, word)"


def labels(outcome: Outcome) -> pa.ChunkedArray:
    with duckdb.connect(":memory:") as database:
        found = database.sql(f"SELECT {label_sql(outcome)} AS label FROM {ROWS} ORDER BY i").to_arrow_table()
    return found["label"].cast(label_type(outcome))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(LANDED, "x > 0"), [True, None, None, False]),
        (Outcome(LANDED, "x > 0", task="anomaly"), [True, None, None, False]),
        (Outcome(LANDED, "x / (i - 1) > 0"), [None, None, None, False]),
        (Outcome(LANDED, "x / (i - 1)", task="multiclass"), [None, None, None, "-0.3333333333333333"]),
        (Outcome(LANDED, "x / (i - 1)", task="regression"), [None, None, None, -1 / 3]),
        (Outcome(LANDED, "word", task="multiclass"), ["red", None, "blue", "red"]),
        (Outcome(LANDED, "i", task="multiclass"), ["1", "2", "3", "4"]),
        (Outcome(LANDED, "x", task="regression"), [2.5, None, None, -1.0]),
        (Outcome(LANDED, {"x": "x", "i": "i * 2"}, task="regression"), [[2.5, 2.0], None, None, [-1.0, 8.0]]),
        (Outcome(LANDED, "i", task="ranking", group="k"), [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_a_label_is_typed_by_its_task_and_unknown_where_it_is_no_number(outcome: Outcome, expected: list[object]) -> None:
    assert labels(outcome).to_pylist() == expected


def test_labels_as_estimators_take_them() -> None:
    yes, words, numbers, both = (
        label_array(pa.chunked_array([values, values]))
        for values in (pa.array([True, False]), pa.array(["a", "b"]), pa.array([1.5, 2.0]), pa.array([[1.0, 2.0], [3.0, 4.0]]))
    )
    assert (yes.dtype, words.dtype, numbers.dtype) == (np.bool_, object, np.float64)
    assert words.tolist() == ["a", "b", "a", "b"]
    assert both.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    some = pa.chunked_array([pa.array([[1.0, 2.0], [3.0, 4.0]])]).slice(1)
    assert label_array(some).tolist() == [[3, 4]]
