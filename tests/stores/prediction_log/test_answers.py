"""Labels and values of every task in the log: written, read back, and where a loop's task changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.stores.prediction_log.samples import prediction

from loopwright.base.settings import Settings
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import to_table
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import find, predictions
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home")) as opened:
        yield opened


def said(number: int, label: bool | str | None, values: list[float] | None) -> Prediction:
    return msgspec.structs.replace(prediction(number), label=label, values=values)


def log(home: Home, records: list[Prediction]) -> None:
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        writer.append(records)


@pytest.mark.parametrize(("label", "values"), [(True, None), ("cat", [0.25, 0.5, 0.25]), (None, None), (None, [1.5, -2.0])])
def test_an_answer_is_read_as_it_was_given_before_and_after_the_commit(home: Home, label: Any, values: Any) -> None:
    given = said(0, label, values)
    log(home, [given, said(1, label, values)])
    for _ in range(2):
        found = find(home, given.id, "loop")
        assert found is not None
        assert (found[1].label, found[1].values) == (label, values)
        table = predictions(home, "loop")
        assert table.num_rows == 2
        assert table["_label"].type == (pa.string() if isinstance(label, str) else pa.bool_())
        assert ("_values" in table.column_names) == (values is not None)
        commit(home, "loop", final=True)


def test_a_loop_that_changes_its_task_loses_no_answer(home: Home) -> None:
    log(home, [said(0, True, None)])
    commit(home, "loop", final=True)
    log(home, [said(1, "cat", [0.5, 0.5])])
    for _ in range(2):
        table = predictions(home, "loop").sort_by("_id").to_pylist()
        assert [(r["_label"], r["_label__text"], r["_values"]) for r in table] == [
            (True, None, None),
            (None, "cat", [0.5, 0.5]),
        ]
        assert commit(home, "loop", final=True).problems == []


def test_what_was_logged_before_there_were_generations_is_read(home: Home) -> None:
    old, new = prediction(0), prediction(1, generation=7)
    assert b"generation" not in msgspec.msgpack.encode(old), "as earlier versions wrote it"
    for one in (old, new):
        with LogWriter(log_folder(home.path, "late"), "predictions") as writer:
            writer.append([one])
        commit(home, "late")
    table = predictions(home, "late").sort_by("_at")
    assert table["_generation"].to_pylist() == [None, 7]
    found = [find(home, one.id) for one in (old, new)]
    assert [one[1].generation for one in found if one is not None] == [0, 7]


def test_what_was_logged_before_there_were_values_is_read() -> None:
    old = {n: getattr(prediction(0), n) for n in Prediction.__struct_fields__ if n not in ("values", "segment", "of_file")}
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Prediction)
    assert (read.values, read.segment, read.label) == (None, None, prediction(0).label)
    table, misfits = to_table("predictions", [read], {})
    assert (misfits, "_values" in table.column_names) == ([], False)
