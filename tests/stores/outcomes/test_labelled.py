"""Logged answers whose truth is known: packages with other classes, of another task, or gone."""

import numpy as np
import pyarrow as pa

from loopwright.records.declarations import Column, Outcome, Table
from loopwright.records.package import Output
from loopwright.stores.outcomes.labelled import known
from loopwright.tasks import metrics

LANDED = Table("landed", columns={"k": Column("string"), "at": Column("timestamp")}, key=["k"], event_time="at")
KINDS = Outcome(LANDED, "kind", task="multiclass")
OLD = Output(task="multiclass", classes=["a", "b"], names=["a", "b"])
NEW = Output(task="multiclass", classes=["b", "c"], names=["b", "c"])


def log(**columns: list[object]) -> pa.Table:
    floats = pa.list_(pa.float32())
    columns["_unit"] = [f"u{i}" for i in range(len(columns["_score"]))]
    return pa.table({n: pa.array(v, floats) if n == "_values" else pa.array(v) for n, v in columns.items()})


def test_classes_of_several_packages_are_put_side_by_side() -> None:
    joined = log(
        _package=["old", "new", "old", "new"],
        _score=[0.7, 0.9, 0.6, 0.8],
        _label=["a", "c", "b", "b"],
        _values=[[0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.8, 0.2]],
        _truth=["a", "c", None, "c"],
    )
    found = known(joined, KINDS, {"old": OLD, "new": NEW})
    assert found.rows.tolist() == [True, True, False, True]
    assert found.output.classes == ["a", "b", "c"]
    assert found.given.values is not None
    assert found.given.values.round(6).tolist() == [[0.7, 0.3, 0.0], [0.0, 0.1, 0.9], [0.0, 0.8, 0.2]]
    assert metrics.compute("accuracy", found.truth, *found.given, output=found.output) == 2 / 3
    expected = -np.log([0.7, 0.9, 0.2]).mean()
    assert np.isclose(metrics.compute("log_loss", found.truth, *found.given, output=found.output), expected, atol=1e-6)


def test_answers_of_another_task_are_left_out_and_a_package_that_is_gone_is_not() -> None:
    joined = log(
        _package=["yes-no", "old", "gone"],
        _score=[0.7, 0.9, 0.6],
        _label=[None, "a", "b"],
        _values=[None, [0.9, 0.1], [0.4, 0.6]],
        _truth=["a", "a", "a"],
    )
    found = known(joined, KINDS, {"yes-no": Output(), "old": OLD})
    assert found.rows.tolist() == [False, True, True]
    assert found.given.label is not None
    assert found.given.label.tolist() == ["a", "b"]
    assert found.given.values is not None
    assert found.given.values[1].tolist() == [0.0, 0.0]  # nobody knows whose classes they were


def test_groups_and_numbers_come_as_the_task_has_them() -> None:
    order = Outcome(LANDED, "relevance", task="ranking", group="query")
    joined = log(_package=["p", "p"], _score=[2.0, -1.0], _label=[None, None], _truth=[1.0, None], query=["q1", "q2"])
    found = known(joined.set_column(2, "_label", pa.nulls(2, pa.bool_())), order, {"p": Output(task="ranking")})
    assert found.groups is not None
    assert (found.groups.tolist(), found.truth.tolist(), found.given.label) == (["q1"], [1.0], None)
    several = Outcome(LANDED, {"x": "x", "y": "y"}, task="regression")
    joined = log(_package=["p"], _score=[2.0], _label=[None], _values=[[2.0, 3.0]], _truth=[[1.0, 5.0]])
    found = known(joined, several, {"p": Output(task="regression", names=["x", "y"])})
    assert metrics.compute("mae:y", found.truth, *found.given, output=found.output) == 2.0


def test_nothing_known_is_nothing() -> None:
    joined = log(_package=["p"], _score=[2.0], _label=["a"], _values=[[1.0, 0.0]], _truth=["a"]).slice(0, 0)
    found = known(joined, KINDS, {"p": OLD})
    assert (len(found.truth), found.given.score.tolist()) == (0, [])
