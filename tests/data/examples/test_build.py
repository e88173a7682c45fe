import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.data.history import (
    ASKED,
    CAME,
    CONTEXT,
    LOOP,
    MINUTE,
    OUTCOME,
    START,
    expected,
    fill,
    home,
    log,
    random_history,
    served,
    told,
    truth_at,
    us,
)

from loopwright import Home
from loopwright.base.errors import Damaged, DeclarationInvalid, ExamplesRefused, RecordNotFound
from loopwright.data.examples.build import build
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema
from loopwright.records.examples import Examples
from loopwright.stores.examples import read_examples, verify_examples

DAY = timedelta(days=1)
END = START + 3 * DAY


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def built(home: Home, as_of: datetime = END, **changed: Any) -> Examples:
    given: dict[str, Any] = {
        "loop_name": LOOP,
        "requests": ASKED,
        "context": CONTEXT,
        "outcome": OUTCOME,
        "as_of": as_of,
    } | changed
    return build(home, **given)


@pytest.mark.parametrize("seed", range(12))
def test_examples_are_those_that_a_plain_search_finds(opened: Home, seed: int) -> None:
    history = random_history(seed)
    fill(opened, history)
    for as_of in (START + 10 * 60 * MINUTE, START + 15 * 60 * MINUTE + MINUTE / 2, END):
        wanted = expected(history, as_of)
        examples = built(opened, as_of)
        assert read_examples(opened, examples.digest).to_pylist() == wanted
        assert (examples.rows, examples.positives) == (len(wanted), sum(r["_label"] for r in wanted))
        assert (examples.first, examples.last) == (wanted[0]["_decided_at"], wanted[-1]["_decided_at"])
        asked = sum(r["at"] < as_of for r in history.asked)
        assert examples.rows + sum(examples.excluded.values()) == asked


def test_nothing_that_became_known_later_changes_examples_of_the_past(opened: Home, tmp_path: Path) -> None:
    history = random_history(3)
    as_of = START + 12 * 60 * MINUTE
    past = history._replace(
        asked=[r for r in history.asked if r["at"] < as_of],
        weather=[r for r in history.weather if r["told_at"] + 5 * MINUTE <= as_of],
        came=[r for r in history.came if r["came_at"] + 2 * MINUTE <= as_of],
    )
    fill(opened, history)
    with home(tmp_path / "then") as then:
        fill(then, past)
        assert built(then, as_of).digest == built(opened, as_of).digest


def test_the_same_inputs_give_the_same_digest_and_others_another(opened: Home) -> None:
    fill(opened, random_history(1))
    first = built(opened)
    assert built(opened).digest == first.digest
    assert built(opened, START + 20 * 60 * MINUTE).digest != first.digest
    assert built(opened, outcome=msgspec.structs.replace(OUTCOME, label="delay > 30")).digest != first.digest


def test_row_that_a_later_file_brings_again_is_one_example_with_the_newest_values(opened: Home) -> None:
    """An export that grows: all rows again, some of them corrected, and new ones."""
    rows: list[tuple[int, float, float]] = []
    for brought in range(3):
        rows = [(i, float(brought if i % 3 else 7), 30.0 if (i + brought) % 4 else 0.0) for i in range(40 + 20 * brought)]
        asked = [{"id": i, "at": START + MINUTE * i, "place": "A", "size": size} for i, size, _ in rows]
        came = [{"id": i, "came_at": START + MINUTE * (i + 1), "delay": delay} for i, _, delay in rows]
        for table, new in ((ASKED, asked), (CAME, came)):
            assert ingest(opened, table, pa.Table.from_pylist(new, arrow_schema(table.columns))).good == len(rows)
        found = read_examples(opened, built(opened, context=[]).digest).to_pylist()
        assert [(r["id"], r["size"], r["_label"]) for r in found] == [(i, size, delay > 15) for i, size, delay in rows]


def test_what_is_left_out_is_counted_by_reason(opened: Home) -> None:
    history = random_history(0, decisions=400)
    fill(opened, history)
    as_of = START + 12 * 60 * MINUTE
    wanted = {"outcome pending": 0, "outcome never came": 0, "outcome known before the decision": 0}
    for row in history.asked:
        truth = truth_at(history, row["id"], as_of)
        if row["at"] < as_of and truth is None:
            wanted["outcome pending" if row["at"] >= as_of - timedelta(hours=5) else "outcome never came"] += 1
        elif row["at"] < as_of and truth is not None and truth[1] < row["at"]:
            wanted["outcome known before the decision"] += 1
    assert all(wanted.values()), "the history has every reason"
    assert built(opened, as_of).excluded == wanted


def test_sources_say_which_version_of_which_files_went_in(opened: Home) -> None:
    history = random_history(1)
    fill(opened, history)
    sources = {s.table: s for s in built(opened).sources}
    assert {name: s.rows for name, s in sources.items()} == {
        "asked": len(history.asked),
        "weather": len(history.weather),
        "came": len(history.came),
    }
    assert all(len(s.files) == 1 and s.version == opened.lake.version(name) for name, s in sources.items())


def test_a_window_keeps_the_newest_stretch_that_has_outcomes(opened: Home) -> None:
    history = random_history(4, decisions=1200)
    fill(opened, history)
    examples = built(opened, window=timedelta(hours=6))
    wanted = expected(history, END)
    newest = wanted[-1]["_decided_at"]
    assert read_examples(opened, examples.digest).to_pylist() == [
        r for r in wanted if r["_decided_at"] >= newest - timedelta(hours=6)
    ]
    assert built(opened, START + 300 * DAY, window=timedelta(hours=6)).digest == examples.digest


def test_what_was_served_is_learned_from_as_it_was_served(opened: Home) -> None:
    history = random_history(5)
    fill(opened, history)
    since = START + 12 * 60 * MINUTE
    late = sorted((r for r in history.asked if r["at"] >= since), key=lambda r: (r["at"], str(r["id"])))
    answered, unanswered = late[:-3], {r["id"] for r in late[-3:]}
    log(opened, "predictions", [served(r, i, wind=-1.0 - i, calm=None) for i, r in enumerate(answered)])
    rows = read_examples(opened, built(opened).digest).to_pylist()
    wanted = expected(history, END)
    assert [r["id"] for r in rows] == [r["id"] for r in wanted], "each decision once, served or not"
    numbers = {r["id"]: i for i, r in enumerate(answered)}
    for row, plain in zip(rows, wanted, strict=True):
        i = numbers.get(row["id"])
        if i is None:
            assert row == plain
            assert row["at"] < since or row["id"] in unanswered
        else:
            assert row == {**plain, "wind": -1.0 - i, "calm": None, "_prediction": f"{i + 1:032x}"}


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("of_file", [True, False])
def test_past_rows_are_learned_from_as_of_their_event_time_where_a_file_was_predicted(
    opened: Home, seed: int, of_file: bool
) -> None:
    """All outcomes were known when these rows were answered: of a request nobody knows what its caller knew by then."""
    history = random_history(seed)
    fill(opened, history)
    answered = [
        msgspec.structs.replace(served(r, i, wind=-1.0, calm=None), of_file=of_file) for i, r in enumerate(history.asked)
    ]
    late = [msgspec.structs.replace(each, at=us(END + DAY) + i) for i, each in enumerate(answered)]
    log(opened, "predictions", late)
    wanted = expected(history, END + 2 * DAY)
    if of_file:
        # The context is what a plain search finds that was known at the event time, not what the answer was given by.
        examples = built(opened, END + 2 * DAY)
        numbers = {row["id"]: f"{i + 1:032x}" for i, row in enumerate(history.asked)}
        assert read_examples(opened, examples.digest).to_pylist() == [
            {**row, "_prediction": numbers[row["id"]]} for row in wanted
        ]
        assert examples.excluded["outcome known before the decision"] > 0, "known before the event time, too"
        assert [(s.table, s.rows) for s in examples.sources][-1] == (f"predictions.{LOOP}", len(late))
    else:
        rows = read_examples(opened, built(opened, END + 2 * DAY).digest).to_pylist()
        assert rows == wanted, "these requests give no example; the rows of the table, from before the loop, do"


def test_outcome_known_before_a_request_was_answered_is_not_learned_from(opened: Home) -> None:
    history = random_history(5)
    fill(opened, history._replace(asked=history.asked[:1]))
    late = [
        msgspec.structs.replace(served(r, i, wind=-1.0, calm=None), at=us(END + DAY)) for i, r in enumerate(history.asked[1:])
    ]
    log(opened, "predictions", late)
    before = len({r["id"] for r in history.came if r["delay"] is not None} - {history.asked[0]["id"]})
    with pytest.raises(ExamplesRefused, match=f"{before:,} x outcome known before the decision"):
        built(opened, END + 2 * DAY, requests=ASKED)


def test_row_of_a_file_counts_once_and_not_where_a_request_was_answered(opened: Home) -> None:
    history = random_history(5)
    fill(opened, history)
    first, second = sorted(expected(history, END), key=lambda r: r["_known_at"])[:2]
    rows = {r["id"]: r for r in history.asked}
    request = served(rows[first["id"]], 0, wind=-1.0, calm=None)
    copies = [served(rows[each["id"]], 1 + i, wind=-2.0, calm=None) for i, each in enumerate([first, second, second])]
    files = [msgspec.structs.replace(copy, at=us(END + i * MINUTE), of_file=True) for i, copy in enumerate(copies)]
    log(opened, "predictions", [request, *files])
    found = {r["id"]: r for r in read_examples(opened, built(opened, END + DAY).digest).to_pylist()}
    assert len(found) == len(expected(history, END + DAY))
    assert found[first["id"]] == {**first, "wind": -1.0, "calm": None, "_prediction": request.id}
    assert found[second["id"]] == {**second, "_prediction": files[1].id}, "of two jobs the first"


def test_row_of_a_file_that_was_predicted_twice_counts_as_the_prediction_that_its_outcome_names(opened: Home) -> None:
    history = random_history(5)
    row = expected(history, END)[0]
    asked = next(r for r in history.asked if r["id"] == row["id"])
    came = [r for r in history.came if r["id"] != row["id"]]
    fill(opened, history._replace(came=came))
    jobs = [
        msgspec.structs.replace(served(asked, i, wind=0.0, calm=None), at=us(END + i * MINUTE), of_file=True) for i in range(3)
    ]
    log(opened, "predictions", jobs)
    log(opened, "outcomes", [told(0, 60.0, END + MINUTE, prediction=jobs[1].id)])
    [found] = [r for r in read_examples(opened, built(opened, END + DAY).digest).to_pylist() if r["id"] == row["id"]]
    assert found["_prediction"] == jobs[1].id


@pytest.mark.parametrize("named", ["file", "request", "both", "neither"])
def test_decision_that_was_asked_for_live_and_in_a_file_is_learned_from_once_as_the_prediction_that_its_outcome_names(
    opened: Home, named: str
) -> None:
    history = random_history(5)
    row = expected(history, END)[0]
    asked = next(r for r in history.asked if r["id"] == row["id"])
    fill(opened, history._replace(came=[r for r in history.came if r["id"] != row["id"]]))
    live, twice = (served(asked, i, wind=-1.0, calm=None) for i in range(2))
    file = msgspec.structs.replace(served(asked, 2, wind=-2.0, calm=None), at=us(END), of_file=True)
    log(opened, "predictions", [live, twice, file])
    names = {"file": [file], "request": [live], "both": [file, live], "neither": []}[named]
    log(opened, "outcomes", [told(i, 60.0, END + MINUTE, prediction=p.id) for i, p in enumerate(names)])
    examples = built(opened, END + DAY)
    found = [r["_prediction"] for r in read_examples(opened, examples.digest).to_pylist() if r["id"] == row["id"]]
    assert found == {"file": [file.id], "request": [live.id], "both": [live.id], "neither": []}[named]
    decisions = 1 if named == "file" else 2  # each of two requests is a decision
    assert examples.rows + sum(examples.excluded.values()) == len(history.asked) - 1 + decisions


def test_row_of_a_file_is_learned_from_as_it_was_served_while_the_online_table_has_its_context(opened: Home) -> None:
    history = random_history(5)
    fill(opened, history)
    row = expected(history, END)[0]
    asked = next(r for r in history.asked if r["id"] == row["id"])
    answered = msgspec.structs.replace(served(asked, 0, wind=-1.0, calm=None), at=us(asked["at"] + 60 * MINUTE), of_file=True)
    log(opened, "predictions", [answered])
    found = {r["id"]: r for r in read_examples(opened, built(opened).digest).to_pylist()}
    assert found[row["id"]] == {**row, "wind": -1.0, "calm": None, "_prediction": answered.id}
    assert found[row["id"]]["_decided_at"] == asked["at"]


def test_outcomes_that_were_reported_count_like_those_of_the_table_and_the_last_known_wins(opened: Home) -> None:
    history = random_history(6)
    asked = sorted((r for r in history.asked if r["at"] < START + 20 * 60 * MINUTE), key=lambda r: r["at"])[:6]
    fill(opened, history._replace(asked=asked, came=[{"id": asked[0]["id"], "came_at": asked[0]["at"], "delay": 60.0}]))
    log(opened, "predictions", [served(r, i, wind=1.0, calm=True) for i, r in enumerate(asked)])
    known = [r["at"] + 60 * MINUTE for r in asked]
    log(
        opened,
        "outcomes",
        [
            told(0, 1.0, known[0], unit=str(asked[0]["id"])),  # later than the table's row: not late after all
            told(1, 60.0, known[1], unit=str(asked[1]["id"])),
            told(2, 60.0, known[2], prediction=f"{3:032x}"),
            told(3, 1.0, known[2] + MINUTE, unit=str(asked[2]["id"])),  # names no prediction: the one that does goes before
            told(4, 60.0, known[3], unit=str(asked[3]["id"])),
            told(4, 60.0, known[3], unit=str(asked[3]["id"])),
            told(5, None, known[4], unit=str(asked[4]["id"])),
            told(6, 60.0, END + DAY, unit=str(asked[5]["id"])),  # known too late
        ],
    )
    examples = built(opened)
    found = {r["id"]: (r["_label"], r["_known_at"]) for r in read_examples(opened, examples.digest).to_pylist()}
    assert found == {
        asked[0]["id"]: (False, known[0]),
        asked[1]["id"]: (True, known[1]),
        asked[2]["id"]: (True, known[2]),
        asked[3]["id"]: (True, known[3]),
    }
    assert examples.excluded == {"outcome never came": 2}
    assert [s.rows for s in examples.sources if s.table == f"predictions.{LOOP}"] == [6]


def test_a_request_that_was_logged_before_a_column_was_declared_is_left_out(opened: Home) -> None:
    history = random_history(7)
    fill(opened, history)
    row = next(r for r in history.asked if any(c["id"] == r["id"] and c["delay"] is not None for c in history.came))
    logged = served(row, 0, wind=1.0, calm=None)
    log(
        opened,
        "predictions",
        [msgspec.structs.replace(logged, request={k: v for k, v in logged.request.items() if k != "place"})],
    )
    examples = built(opened)
    assert examples.excluded["request not fully logged"] == 1
    assert row["id"] not in read_examples(opened, examples.digest)["id"].to_pylist()


def test_refusals_say_what_to_do(opened: Home) -> None:
    history = random_history(8)
    with pytest.raises(ExamplesRefused, match="table 'asked' has no rows yet: `loopwright ingest asked FILE`"):
        built(opened)
    fill(opened, history._replace(came=[]))
    with pytest.raises(
        ExamplesRefused, match=r"every row of 'asked' is from after 1990-01-01 00:00 UTC: .* column 'at' and at its zone"
    ):
        built(opened, as_of=datetime(1990, 1, 1, tzinfo=UTC))
    with pytest.raises(ExamplesRefused, match="nothing to learn from: no outcome is known"):
        built(opened)
    fill(opened, history)
    with pytest.raises(ExamplesRefused, match=r"all .* outcomes are false"):
        built(opened, outcome=msgspec.structs.replace(OUTCOME, label="delay > 1e9"))
    with pytest.raises(ExamplesRefused, match=r"all .* outcomes are true"):
        built(opened, outcome=msgspec.structs.replace(OUTCOME, label="delay > -1e9"))


@pytest.mark.parametrize(
    "label",
    ["no_such_column > 1", "delay >", "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "getenv('HOME') = '/root'"],
)
def test_a_label_reaches_its_columns_and_nothing_else(opened: Home, label: str) -> None:
    fill(opened, random_history(1))
    with pytest.raises(DeclarationInvalid, match="label"):
        built(opened, outcome=msgspec.structs.replace(OUTCOME, label=label))


def test_a_damaged_or_missing_file_is_told_apart_and_verify_finds_it(opened: Home) -> None:
    fill(opened, random_history(1))
    examples = built(opened)
    opened.ledger.put(examples, loop=LOOP, key=examples.digest)
    assert verify_examples(opened) == []
    [path] = opened.folder("examples").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=examples.digest[:12]):
        read_examples(opened, examples.digest)
    assert [p.where for p in verify_examples(opened)] == [f"examples {examples.digest[:12]}"]
    path.unlink()
    with pytest.raises(RecordNotFound):
        read_examples(opened, examples.digest)
    assert [p.what for p in verify_examples(opened)] == ["the file is missing"]
    assert built(opened).digest == examples.digest
    assert verify_examples(opened) == []


@pytest.mark.parametrize("pause", [False, True])
def test_window_reaches_back_over_a_pause_and_to_both_labels(opened: Home, pause: bool) -> None:
    history = random_history(4, decisions=600)
    fill(opened, history)
    wanted = expected(history, END)
    moments = [r["_decided_at"] for r in wanted]
    window = timedelta(seconds=1)
    label = "delay > 15"
    if not pause:  # the newest 150 have one label only
        label = f"delay > 15 AND came_at < TIMESTAMPTZ '{moments[-150].isoformat()}'"
    examples = built(opened, window=window, outcome=msgspec.structs.replace(OUTCOME, label=label))
    assert examples.rows >= 100
    assert 0 < examples.positives < examples.rows
    if pause:
        assert read_examples(opened, examples.digest)["_decided_at"].to_pylist()[0] == moments[-100]
    else:
        assert 150 < examples.rows < len(wanted)


def test_declared_sql_gives_one_value_wherever_it_is_evaluated_and_in_every_zone_of_the_machine(tmp_path: Path) -> None:
    """Training (of a table, of posted outcomes), monitoring, `trace`, aggregates."""
    found = {}
    for zone in ("UTC", "America/New_York"):
        run = [sys.executable, "-m", "tests.data.zones", str(tmp_path / zone.replace("/", "_"))]
        done = subprocess.run(run, capture_output=True, text=True, timeout=300, env={**os.environ, "TZ": zone}, check=False)
        assert done.returncode == 0, done.stderr
        found[zone] = json.loads(done.stdout)
    for label, places in found["UTC"].items():
        if label != "aggregates":
            assert len(set(places["landed"].values())) == 2, label
            assert all(values == places["landed"] for values in places.values()), label
    assert found["America/New_York"] == found["UTC"]
