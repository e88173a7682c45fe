import ast
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.scaffold.test_infer import START, customers, file

from loopwright import Home, StratifiedSplit
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import IngestRefused, NameInvalid, UsageError
from loopwright.base.settings import Settings
from loopwright.data.examples.build import build
from loopwright.data.ingest.ingestion import ingest, put_contract
from loopwright.data.scaffold.init import begin
from loopwright.develop.check import check
from loopwright.loop import load_loop
from loopwright.records.declarations import Loop, duration
from loopwright.records.examples import Examples
from loopwright.stores.examples import read_examples

__all__ = ["file"]  # a fixture of the tests of inference


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(START + timedelta(days=400))) as opened:
        yield opened


def begun(home: Home, folder: Path, file: Path, **given: Any) -> tuple[Loop, dict[str, list[str]]]:
    made = begin(folder, from_file=file, name="churn", **given)
    return load_loop(folder), made


def checked(loop: Loop) -> list[tuple[str, str]]:
    """What `loopwright check` finds wrong."""
    found = check(
        columns=loop.columns,
        features=loop.features,
        heuristic=loop.scope.heuristic,
        outcome=loop.outcome,
        slices=loop.slices,
        candidates=loop.candidates,
        objectives=loop.scope.objectives,
    )
    return [(name, detail) for name, ok, detail in found.items if not ok]


def brought(home: Home, loop: Loop, path: Path, *, quarantined: int = 0) -> Examples:
    """The examples after the very file has come into both tables, as the commands that `init` prints do it."""
    for table in loop.tables.values():
        put_contract(home, table)
        assert ingest(home, table, path).quarantined == (quarantined if table is loop.outcome.table else 0)
        home.clock.advance(timedelta(minutes=1))  # type: ignore[attr-defined]  # a simulated clock
    return build(home, loop_name=loop.name, requests=loop.requests, context=[], outcome=loop.outcome, as_of=home.clock.now())


def test_a_begun_loop_passes_the_check_and_has_examples(home: Home, file: Path, tmp_path: Path) -> None:
    loop, made = begun(home, tmp_path / "churn", file, label="Churned?", time="signed up", key="Customer ID")
    assert checked(loop) == []
    assert loop.outcome.label == "Churned"
    assert "f.spend_USD" in loop.record("").declaration["scope"]["heuristic"]["rule"], "the column that tells is found"
    assert "Customer_ID" not in (tmp_path / "churn" / "loop.py").read_text(encoding="utf-8").split("def features")[1]
    examples = brought(home, loop, file)
    assert examples.rows == 600
    assert examples.positives == sum(r["Churned?"] == "yes" for r in customers())
    assert f"loopwright ingest churn-requests {file} --loop {tmp_path / 'churn'}" in made["next_steps"]


@pytest.mark.parametrize(
    ("values", "given", "task", "sql", "positives"),
    [
        ([True, False, None], "", "binary", "won", 1),
        ([0, 1, 1], "", "binary", "won = 1", 2),
        ([1.5, 2.5, 9.0], "binary", "binary", "won > 2.5", 1),
        ([1.5, 2.5, 9.0], "", "regression", "won", 0),
        ([3, 4, 9], "regression", "regression", "CAST(won AS DOUBLE)", 0),
        ([3, 4, 9], "count", "count", "CAST(won AS DOUBLE)", 0),
        ([3, 4, 9], "", "multiclass", "CAST(won AS VARCHAR)", 0),
        (["good", "bad", "so so"], "", "multiclass", "won", 0),
        (["good", "bad", "bad"], "", "binary", "won = 'good'", 1),
        (["it's", "so", "so"], "", "binary", "won = 'it''s'", 1),
    ],
)
def test_labels_of_every_kind(
    home: Home, tmp_path: Path, values: list[Any], given: str, task: str, sql: str, positives: int
) -> None:
    rows = {"id": list(range(30)), "at": [START + timedelta(hours=i) for i in range(30)], "x": [float(i) for i in range(30)]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**rows, "won": values * 10}), path)
    loop, made = begun(home, tmp_path / "loop", path, label="won", task=given)
    assert (loop.outcome.task, loop.outcome.label) == (task, sql)
    examples = brought(home, loop, path)
    assert examples.rows == 10 * sum(v is not None for v in values)
    assert task != "binary" or examples.positives == positives * 10
    assert checked(loop) == []
    # A word, or a code, that is none of those seen never becomes no.
    column, kinds = loop.outcome.table.columns["won"], sorted({v for v in values if v is not None}, key=str)
    assert column.categories == (kinds if isinstance(kinds[0], str) else None)
    assert (column.minimum, column.maximum) == ((0, 1) if values == [0, 1, 1] else (None, None))
    assert loop.outcome.table.prediction_field == "prediction"
    assert any("in the field 'prediction'" in note for note in made["notes"])


@pytest.mark.parametrize("name", ["order", "End", "group"])
def test_a_label_named_like_a_word_of_sql_is_quoted(home: Home, tmp_path: Path, name: str) -> None:
    rows = {"id": [1, 2, 3], "at": [START, START + timedelta(hours=1), START + timedelta(hours=2)], "x": [1.0, 2.0, 3.0]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**rows, name: [True, False, True]}), path)
    loop, _ = begun(home, tmp_path / "loop", path, label=name)
    assert loop.outcome.label == f'"{name}"'
    assert brought(home, loop, path).rows == 3


def test_without_times_and_keys_rows_meet_their_outcomes_and_a_random_part_validates(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "sorted by class.csv"
    path.write_text("size in cm,kind\n" + "".join(f"{i % 20}.5,{'abc'[i // 40]}\n" for i in range(120)), encoding="utf-8")
    loop, made = begun(home, tmp_path / "loop", path, label="kind")
    assert isinstance(loop.split, StratifiedSplit)
    assert loop.outcome.wait == "0s", "every row is as old as its ingestion"
    assert any(f"'{path}'" in step for step in made["next_steps"]), "a name with spaces is quoted"
    assert brought(home, loop, path).rows == 120


@pytest.mark.parametrize("label", ["note", "signed up", "Customer ID", "absent", "2nd"])
def test_what_cannot_be_a_label_is_refused_before_anything_is_written(
    home: Home, file: Path, tmp_path: Path, label: str
) -> None:
    with pytest.raises(UsageError):
        begun(home, tmp_path / "loop", file, label=label, key="Customer ID")
    assert not (tmp_path / "loop").exists()


def test_without_a_label_or_a_file_the_draft_still_passes_the_check(home: Home, file: Path, tmp_path: Path) -> None:
    loop, made = begun(home, tmp_path / "unlabelled", file)
    assert checked(loop) == []
    assert any("say in" in step for step in made["next_steps"])
    begin(tmp_path / "blank", name="blank")
    blank = load_loop(tmp_path / "blank")
    assert checked(blank) == []
    assert "TODO" in (tmp_path / "blank" / "loop.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            ["yes", "no", "no", None],
            "whether won, true of 33.3% of 30 rows (task binary; set --task if it is another); 10 rows without a label",
        ),
        (["red", "blue", "green", "red"], "which of 3 classes won is, on 40 rows (task multiclass;"),
        ([1.5, 2.5, 9.0, 1e6], "the number won, on 40 rows (task regression;"),
    ],
)
def test_what_is_predicted_is_said_and_numbers_are_written_plainly(tmp_path: Path, values: list[Any], said: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": [i * 1e5 for i in range(40)], "won": values * 10}), path)
    made = begin(tmp_path / "loop", name="loop", from_file=path, label="won")
    assert any(said in note for note in made["notes"])
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert 'Column("float", minimum=0, maximum=10000000)' in text
    assert "e+" not in text


@pytest.mark.parametrize(("each", "kept"), [(50, True), (49, False)])
def test_many_words_are_categories_where_each_is_common(home: Home, tmp_path: Path, each: int, kept: bool) -> None:
    teams = [f"team {i % 60}" for i in range(60 * each)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"team": teams, "x": list(range(len(teams))), "won": [i % 3 > 1 for i in range(len(teams))]}), path)
    loop, _ = begun(home, tmp_path / "loop", path, label="won")
    assert ("f.team," in (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")) == kept
    assert checked(loop) == []


def test_a_loop_that_is_there_is_not_written_over(home: Home, tmp_path: Path) -> None:
    begin(tmp_path / "blank", name="blank")
    before = (tmp_path / "blank" / "loop.py").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        begin(tmp_path / "blank", name="other")
    assert (tmp_path / "blank" / "loop.py").read_bytes() == before
    with pytest.raises(NameInvalid):
        begin(tmp_path / "new", name="No Good")


def hourly(path: Path, count: int, step: timedelta, **columns: Any) -> Path:
    """A file of `count` rows, one every `step`."""
    at = [START + step * i for i in range(count)]
    pq.write_table(pa.table({"id": [f"r{i}" for i in range(count)], "at": at, **columns}), path)
    return path


@pytest.mark.parametrize(
    ("step", "every", "least"),
    [
        (timedelta(minutes=1), "1d", 500),
        (timedelta(hours=1), "7d", 84),
        (timedelta(minutes=30), "7d", 168),
        (timedelta(days=1), "180d", 90),
        (timedelta(days=7), "180d", 12),
    ],
)
def test_drafted_monitor_follows_the_pace_of_the_data(
    home: Home, tmp_path: Path, step: timedelta, every: str, least: int
) -> None:
    path = hourly(
        tmp_path / "f.parquet", 4000, step, x=[float(i % 97) for i in range(4000)], won=[i % 3 == 0 for i in range(4000)]
    )
    loop, _ = begun(home, tmp_path / "loop", path, label="won", key="id")
    assert loop.monitor.every == every
    assert abs(loop.monitor.minimum_rows - least) <= 1
    expected = duration(loop.monitor.every) / step
    assert loop.monitor.minimum_rows <= expected / 2 + 1, "a window at this pace has rows enough to be judged"
    assert loop.retrain.every is not None
    assert duration(loop.retrain.every) >= 3 * duration(loop.monitor.every)
    assert loop.retrain.drift == 1, "one feature, so three could never drift"
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert "By the newer half of the file" in text


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.6, 0.97])
def test_drafted_rule_labels_about_as_many_as_are_positive_and_no_money_is_invented(
    home: Home, tmp_path: Path, share: float
) -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(0, 1, 4000), rng.integers(0, 2, 4000)
    won = x + rng.normal(0, 1, 4000) > np.quantile(x, 1 - share) * 1.4
    path = hourly(tmp_path / "f.parquet", 4000, timedelta(hours=1), x=x, z=z, won=won)
    loop, _ = begun(home, tmp_path / "loop", path, label="won", key="id")
    assert not loop.scope.value.is_set
    cut = float(re.findall(r"f\.x > (-?[\d.]+)", (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8"))[0])
    assert won.mean() / 2 <= (x > cut).mean() <= 2 * won.mean()


@pytest.mark.parametrize(("bad", "of"), [("inf", "y"), ("-inf", "y"), ("1e308", "x"), ("inf", "x")])
def test_draft_of_extreme_numbers_is_a_loop(home: Home, tmp_path: Path, bad: str, of: str) -> None:
    rows = ["k,at,x,z,y"]
    for i in range(400):
        row = {"x": str(i % 9), "y": str(i % 2)} | ({of: bad} if i == 7 or (i == 8 and of == "x") else {})
        rows.append(f"k{i},2024-01-01T{i % 24:02}:{i // 24:02}:00,{row['x']},{i % 5},{row['y']}")
    (tmp_path / "f.csv").write_text("\n".join(rows), encoding="utf-8")
    loop, made = begun(home, tmp_path / "loop", tmp_path / "f.csv", label="y", time="at", key="k")
    assert loop.outcome.task == "binary"
    assert checked(loop) == []
    if of == "y":
        assert any("1 row without a label" in note for note in made["notes"])
        assert brought(home, loop, tmp_path / "f.csv", quarantined=1).rows == 399


def test_hour_and_weekday_of_the_decision_are_features_in_its_own_zone(home: Home, tmp_path: Path) -> None:
    at = [(START + timedelta(hours=i)).strftime("%Y-%m-%d %H:%M") for i in range(600)]
    for name, start in (("hourly", at), ("daily", [t[:11] + "00:00" for t in at])):
        path = tmp_path / f"{name}.parquet"
        hours = [i % 7 for i in range(600)]
        table = {"id": [f"r{i}" for i in range(600)], "at": start, "Hour": hours, "won": [i % 3 == 0 for i in range(600)]}
        pq.write_table(pa.table(table), path)
        loop, _ = begun(home, tmp_path / name, path, label="won", key="id", zone="Europe/Paris")
        text = (tmp_path / name / "loop.py").read_text(encoding="utf-8")
        assert '"weekday": local_time(f.at, "Europe/Paris").weekday,' in text
        assert ('"at_hour": local_time(f.at, "Europe/Paris").hour,' in text) == (name == "hourly")
        assert checked(loop) == []


def test_hour_and_weekday_that_the_file_has_are_not_drafted_again(home: Home, tmp_path: Path) -> None:
    at = [START + timedelta(hours=i) for i in range(600)]
    frame = {"id": [f"r{i}" for i in range(600)], "at": at, "hour": [t.hour for t in at], "weekday": [f"{t:%A}" for t in at]}
    pq.write_table(pa.table(frame | {"won": [i % 3 == 0 for i in range(600)]}), tmp_path / "f.parquet")
    begun(home, tmp_path / "loop", tmp_path / "f.parquet", label="won")
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert '"hour": f.hour,' in text
    assert '"weekday": f.weekday,' in text
    assert "local_time(" not in text


def test_columns_that_become_no_features_are_named_with_the_reason(home: Home, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    amount = np.round(rng.gamma(2, 300, 600), 2)
    columns = {
        "id": [f"r{i}" for i in range(600)],
        "price": [f"$ {v:,.2f}" for v in amount],
        "rate": [f"{v:.1f}%" for v in amount / 10],
        "spaced": [f"{v * 1000:,.0f}".replace(",", "\u202f") for v in amount],
        "postcode": [f"{v:05d}" for v in rng.integers(0, 10**5, 600)],
        "customer_no": np.arange(600) % 120,
        "source": ["web"] * 600,
        "x": amount,
        "won": amount + rng.normal(0, 100, 600) > 500,
    }
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    _, made = begun(home, tmp_path / "loop", tmp_path / "f.parquet", label="won", key="id")
    said = {n.split("'")[1]: n for n in made["notes"] if "is no feature" in n}
    assert said.keys() == columns.keys() - {"id", "x", "won"}
    dressed = {
        name for name, note in said.items() if note.endswith("numbers with a sign, a unit or spaces: write them without")
    }
    assert dressed == {"price", "rate", "spaced"}
    assert said["source"] == "column 'source' is no feature: always the same"
    assert "called like names of something" in said["customer_no"]


def test_labels_that_differ_in_case_or_spaces_only_are_named(home: Home, tmp_path: Path) -> None:
    said = ["yes", "YES", "yes ", "no"]
    frame = pa.table({"x": [float(i % 97) for i in range(800)], "came": [said[i % 4] for i in range(800)]})
    pq.write_table(frame, tmp_path / "f.parquet")
    _, made = begun(home, tmp_path / "loop", tmp_path / "f.parquet", label="came")
    [note] = [n for n in made["notes"] if "case or spaces" in n]
    assert "'YES', 'yes', 'yes ' differ" in note
    assert "lower(trim(came))" in note
    file = tmp_path / "loop" / "loop.py"
    file.write_text(
        file.read_text()
        .replace('label="came"', "label=\"lower(trim(came)) = 'yes'\"")
        .replace('task="multiclass"', 'task="binary"')
    )
    found = read_examples(home, brought(home, load_loop(tmp_path / "loop"), tmp_path / "f.parquet").digest)
    assert sum(found["_label"].to_pylist()) == 600


def test_draft_loads_no_library_of_training_until_a_candidate_is_made(home: Home, file: Path, tmp_path: Path) -> None:
    begun(home, tmp_path / "churn", file, label="Churned?", time="signed up", key="Customer ID")
    body = ast.parse((tmp_path / "churn" / "loop.py").read_text(encoding="utf-8")).body
    imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    assert imported <= {"typing", "loopwright", "loopwright.features", "ndonnx", "ndonnx.extensions"}


def test_identifier_that_repeats_is_a_commented_out_feature_with_its_reason(home: Home, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    customer, amount = np.arange(600) % 120, np.round(rng.gamma(2, 30, 600), 2)
    frame = pa.table({"customer_no": customer, "amount": amount, "late": amount + rng.normal(0, 20, 600) > 70})
    pq.write_table(frame, tmp_path / "orders.parquet")
    loop, _ = begun(home, tmp_path / "loop", tmp_path / "orders.parquet", label="late")
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    why = "120 different whole numbers, called like names of something. A feature if a larger one means more."
    assert f'# customer_no: {why}\n        # "customer_no": f.customer_no,\n' in text
    assert '"amount": f.amount,' in text
    assert "customer_no" in loop.requests.columns
    pq.write_table(frame.drop_columns(["amount"]), tmp_path / "alone.parquet")
    begun(home, tmp_path / "alone", tmp_path / "alone.parquet", label="late")
    assert '\n        "customer_no": f.customer_no,' in (tmp_path / "alone" / "loop.py").read_text(encoding="utf-8")


def cases(path: Path, closed: Any, count: int = 400) -> Path:
    """A file of cases, one every two hours; `closed` gives how many hours after it each was closed (None: not), [count]."""
    rng = np.random.default_rng(6)
    opened = [START + timedelta(hours=2 * i) for i in range(count)]
    size = rng.normal(10, 3, count)
    columns = {
        "case": [f"c{i}" for i in range(count)],
        "opened_at": opened,
        "born": [at - timedelta(days=int(days)) for at, days in zip(opened, rng.integers(7000, 20_000, count), strict=True)],
        "size": size,
        "closed_at": [None if h is None else at + timedelta(hours=float(h)) for at, h in zip(opened, closed, strict=True)],
        "late": size + rng.normal(0, 3, count) > 11,
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("closed", "known", "longest", "why"),
    [
        (
            np.full(400, 72.0),
            ("3d", None),
            72,
            "closed_at is 3d after opened_at: taken is that the outcome is known after that",
        ),
        (72 + np.arange(400) % 5 / 2, ("74h", None), 74, "closed_at is 3.04d after opened_at"),
        (1 + np.arange(400) % 90, ("0s", "closed_at"), 90, "at most, after opened_at: taken is that the outcome is known then"),
        ([10 if i % 3 else None for i in range(400)], ("10h", None), 10, "closed_at is 10h after opened_at"),
        (np.full(400, 24.0 * 20), ("0s", None), 0, "too long for what the file spans.\n    # TODO: when is"),
    ],
)
def test_outcome_is_known_when_a_later_time_of_the_file_says(
    home: Home, tmp_path: Path, closed: Any, known: tuple[str, str | None], longest: int, why: str
) -> None:
    path = cases(tmp_path / "cases.parquet", closed)
    loop, told = begun(home, tmp_path / "loop", path, label="late", time="opened_at")
    table = loop.outcome.table
    assert (table.known_after, table.known_time) == known
    assert why in (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert "closed_at" not in loop.requests.columns
    assert "born" in loop.requests.columns, "a time that is always before the decision is an ordinary column"
    assert any(note.startswith("closed_at is left out of the requests: it is ") for note in told["notes"])
    examples = read_examples(home, brought(home, loop, path).digest)
    decided, seen = (examples[n].to_pylist() for n in ("_decided_at", "_known_at"))
    assert max(k - d for k, d in zip(seen, decided, strict=True)) == timedelta(hours=longest)


@pytest.mark.parametrize("empty", [False, True], ids=["flights that never landed", "rows that are empty"])
def test_column_that_is_missing_with_the_label_is_no_feature(home: Home, tmp_path: Path, empty: bool) -> None:
    """A time in the air is known with the delay. Where rows without a label lack everything, that says nothing."""
    random = np.random.default_rng(3)
    landed, wind = random.random(600) > 0.1, random.normal(8, 3, 600)
    columns = {
        "air_time": np.where(landed, random.normal(150, 20, 600), np.nan),
        "wind": np.where(landed | (not empty), wind, np.nan),
        "gate": np.where(random.random(600) > 0.2, random.integers(1, 9, 600), np.nan),
        "delay": np.where(landed, 2 * wind + random.normal(0, 5, 600), np.nan),
    }
    path = tmp_path / "flights.parquet"
    pq.write_table(pa.table({n: pa.array(v, from_pandas=True) for n, v in columns.items()}), path)
    _, told = begun(home, tmp_path / "loop", path, label="delay")
    why = [n for n in told["notes"] if n.startswith("air_time is left out of the features: is it known at the decision?")]
    assert bool(why) == (not empty)
    assert all("missing in 100% of the rows without a label and in 0% of the others" in note for note in why)
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert ('# "air_time":' in text) == (not empty)
    assert '        "wind":' in text


def test_loop_waits_for_the_outcome_that_comes_last(home: Home, tmp_path: Path) -> None:
    """Outcomes after `wait` count as missing: a shorter one measures quality without the decisions that take long."""
    closed = np.where(np.arange(400) % 10 == 0, 24 * 70.0, 24.0 + np.arange(400) % 5)
    loop, _ = begun(home, tmp_path / "slow", cases(tmp_path / "slow.parquet", closed), label="late", time="opened_at")
    assert (loop.outcome.table.known_time, loop.outcome.wait) == ("closed_at", "70d")
    loop, _ = begun(home, tmp_path / "quick", cases(tmp_path / "quick.parquet", closed / 100), label="late", time="opened_at")
    assert loop.outcome.wait == loop.monitor.every, "no shorter than a window"


def test_time_that_is_now_before_and_now_after_the_decision_is_an_ordinary_column(home: Home, tmp_path: Path) -> None:
    path = cases(tmp_path / "cases.parquet", np.arange(400) % 50 - 5)
    loop, _ = begun(home, tmp_path / "loop", path, label="late", time="opened_at")
    assert "closed_at" in loop.requests.columns
    assert loop.outcome.table.known_time is None


@pytest.mark.parametrize(
    ("name", "planned"), [("appointment_at", True), ("dueDate", True), ("Termin", True), ("closed_at", False)]
)
def test_later_time_that_is_planned_by_its_name_is_sent_and_becomes_hours_until_it(
    home: Home, tmp_path: Path, name: str, planned: bool
) -> None:
    """What is planned is known at the decision; of any other time the feature is ready to be taken in."""
    path = cases(tmp_path / "cases.parquet", 24 + np.arange(400) % 90)
    frame = pq.read_table(path)
    pq.write_table(frame.rename_columns([name if n == "closed_at" else n for n in frame.column_names]), path)
    loop, told = begun(home, tmp_path / "loop", path, label="late", time="opened_at")
    text = (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    assert (name in loop.requests.columns, name in loop.requests.ignore) == (planned, not planned)
    assert loop.outcome.table.known_time == name
    assert f'"hours_until_{name}": nde.fill_null(seconds_between(f.opened_at, f.{name}) / 3600, ' in text
    assert ("    from loopwright.features import" in text, "seconds_between\n" in text) == (False, planned)
    assert any(note.startswith(f"{name} is {'taken as planned' if planned else 'left out'}") for note in told["notes"])


@pytest.mark.parametrize("minutes", [0, 3])
def test_readings_of_things_are_told_apart_by_thing_and_moment(home: Home, tmp_path: Path, minutes: int) -> None:
    """All meters read at once are a key of two columns; read one after another, the column is named that could be in it."""
    start = datetime(2024, 3, 1, tzinfo=UTC)
    rows = [
        (f"Z{m:02}", start + timedelta(days=d, minutes=m * minutes), float((d * 7 + m) % 11))
        for d in range(40)
        for m in range(12)
    ]
    path = tmp_path / "meters.csv"
    lines = [f"{meter};{at.isoformat()};{(use * 3) % 5};{use}" for meter, at, use in rows]
    path.write_text("\n".join(["Zähler;Ablesung;Außen;Verbrauch", *lines]), encoding="utf-8")
    loop, told = begun(home, tmp_path / "loop", path, label="Verbrauch")
    assert loop.requests.key == (["Ablesung"] if minutes else ["Zaehler", "Ablesung"])
    assert any("`--key Zähler` if each row is of one Zähler" in note for note in told["notes"]) == bool(minutes)
    assert '"Zaehler": f.Zaehler' in (tmp_path / "loop" / "loop.py").read_text(encoding="utf-8")
    loop, _ = begun(home, tmp_path / "other", path, label="Verbrauch", key="Zähler")
    assert loop.requests.key == ["Zaehler", "Ablesung"]
    assert '"Zaehler": f.Zaehler' in (tmp_path / "other" / "loop.py").read_text(encoding="utf-8"), "as without --key"


def test_rows_that_cannot_be_read_are_said_with_the_reason(tmp_path: Path) -> None:
    """Not as a label that is missing, nor, in JSON Lines, as rows cut wrongly."""
    lines = [json.dumps({"id": f"k{i}", "x": i % 7, "y": i % 3 == 0}) for i in range(60)]
    twice = ['{"id": "k", "x": 1, "x": 2, "y": true}'] * 5
    (tmp_path / "some.jsonl").write_text("\n".join([*lines, *twice]))
    notes = begin(tmp_path / "some", name="some", from_file=tmp_path / "some.jsonl", label="y")["notes"]
    assert "5 rows left out: no JSON object: key 'x' comes twice" in notes
    (tmp_path / "all.jsonl").write_text("\n".join(twice))
    with pytest.raises(IngestRefused, match="of 5 none can be read: no JSON object: key 'x' comes twice"):
        begin(tmp_path / "all", name="all", from_file=tmp_path / "all.jsonl", label="y")
