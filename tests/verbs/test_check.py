"""`loopwright check` on a small shop: what is said, what is shown, and what `--strict` makes of it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid, ExamplesRefused
from loopwright.base.settings import Settings
from loopwright.cli.main import run
from loopwright.data.ingest.ingestion import put_contract
from loopwright.develop import features as graphs
from loopwright.loop import load_loop
from loopwright.stores.home import Home
from loopwright.turn import turn
from loopwright.verbs import check as room
from loopwright.verbs.check import check
from loopwright.verbs.checked import Checked

LOOP = """
import ndonnx.extensions as nde
from loopwright import Candidate, Column, Context, Heuristic, Loop, Monitor, Objective, Outcome, Scope, Table, Sampling
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

orders = Table("orders", {
    "order": Column("string"), "at": Column("timestamp"), "amount": Column("float", minimum=0, maximum=500),
    "shop": Column("string", categories=["north", "south"]), "refund": Column("float", nullable=True),
}, ["order"], "at")
rates = Table("rates", {"shop": Column("string"), "at": Column("timestamp"), "rate": Column("float")}, ["shop"], "at")
returns = Table("returns", {"order": Column("string"), "at": Column("timestamp"), "returned": Column("boolean")}, ["order"], "at")

def features(f):
    return FEATURES

loop = Loop(
    name="returns",
    scope=Scope(problem="Which orders come back?", heuristic=Heuristic(lambda f: f.amount > 100),
                objectives=[Objective("catch them", "sales", "average_precision", at_least=0.2)]),
    requests=orders, context=[Context(rates, {"shop": "shop"}, ["rate"])], outcome=Outcome(returns, "LABEL"), features=features,
    candidates=[Candidate("simple", lambda: make_pipeline(SimpleImputer(), LogisticRegression(WEIGHTS)))],
    monitor=Monitor(minimum_rows=100),
)
"""
HONEST = '{"amount": f.amount, "shop": f.shop, "rate": nde.fill_null(f.rate, 1.0)}'
LEAKY = '{"amount": f.amount, "refund": f.refund, "order": f.order}'
NOW = datetime(2024, 6, 1, tzinfo=UTC)
N = 1500


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tester"), SimulatedClock(NOW)) as made:
        yield made


def written(folder: Path, features: str = HONEST, label: str = "returned", weights: str = "") -> str:
    text = LOOP.replace("FEATURES", features).replace("LABEL", label).replace("WEIGHTS", weights)
    folder.mkdir(exist_ok=True)
    (folder / "loop.py").write_text(text)
    return str(folder)


def fill(home: Home, n: int = N) -> None:
    """Orders, of which a third come back; those get a refund, which the table has by now. The rates are known before."""
    rng = np.random.default_rng(0)
    at = [NOW - timedelta(days=90) + timedelta(minutes=30 * i) for i in range(n)]
    amount = rng.uniform(5, 300, n)
    back = rng.random(n) < amount / 450
    stamp = pa.timestamp("us", tz="UTC")
    home.lake.write(
        "orders",
        pa.table(
            {
                "order": [f"o{i}" for i in range(n)],
                "at": pa.array(at, stamp),
                "amount": amount,
                "shop": rng.choice(["north", "south"], n).tolist(),
                "refund": pa.array([a if b else None for a, b in zip(amount, back, strict=True)], pa.float64()),
            }
        ),
    )
    returns = {
        "order": [f"o{i}" for i in range(n)],
        "at": pa.array([m + timedelta(days=3) for m in at], stamp),
        "returned": back,
    }
    home.lake.write("returns", pa.table(returns))
    early = pa.array([NOW - timedelta(days=100)] * 2, stamp)
    home.lake.write("rates", pa.table({"shop": ["north", "south"], "at": early, "rate": [1.5, 2.5]}))


def warned(checked: Checked) -> dict[str, str]:
    return {i.name: i.detail for i in checked.items if i.warning}


def test_without_rows_a_loop_is_shown_on_made_up_ones(home: Home, tmp_path: Path) -> None:
    checked = check(home, written(tmp_path / "shop"))
    assert checked.ok
    assert [(r.source, r.columns["shop"], r.features["amount"]) for r in checked.sample] == [
        ("made up", "north", 0.0),
        ("made up", "north", 250.0),
        ("made up", "south", 500.0),
    ]
    assert checked.sample[2].columns["rate"] is None
    assert checked.sample[2].features["rate"] == 1.0
    assert not (tmp_path / "home" / "lake").exists()  # looking leaves nothing behind


def test_check_shows_what_is_under_way(home: Home, tmp_path: Path) -> None:
    fill(home)
    begun: list[str] = []

    class Listener:
        def say(self, text: str) -> None:
            raise AssertionError(text)

        def advance(self, what: str, done: float, total: float) -> None:
            begun.extend([what] if not done else [])

    check(home, written(tmp_path / "shop"), progress=Listener())
    assert begun == ["joining examples", "rehearsing features and 1 candidate", "computing features of sample rows"]


def test_with_rows_a_few_are_shown_with_their_context(home: Home, tmp_path: Path) -> None:
    fill(home)
    before = sorted(p for p in (tmp_path / "home").rglob("*") if "ledger" not in p.name and p.name != "tmp")
    checked = check(home, written(tmp_path / "shop"))
    assert (checked.ok, warned(checked)) == (True, {})
    assert next(i.detail for i in checked.items if i.name == "leakage").endswith("(1,500 examples)")
    assert next(i.detail for i in checked.items if i.name == "column refund").endswith("no feature uses it")
    orders = home.lake.read("orders").sort_by("at").to_pylist()
    for shown, place in zip(checked.sample, (0, N // 2, N - 1), strict=True):
        assert shown.source == "table orders"
        assert shown.features["amount"] == shown.columns["amount"] == orders[place]["amount"]
        assert shown.features["rate"] == {"north": 1.5, "south": 2.5}[orders[place]["shop"]]
        assert "order" not in shown.columns  # no feature uses it
    assert sorted(p for p in (tmp_path / "home").rglob("*") if "ledger" not in p.name and p.name != "tmp") == before


def test_leaks_are_warned_of_and_strict_makes_them_a_no(home: Home, tmp_path: Path) -> None:
    fill(home)
    loop = written(tmp_path / "shop", LEAKY)
    checked = check(home, loop)
    assert checked.ok
    assert sorted(warned(checked)) == ["column refund", "feature order"]
    assert "it is made of order" in warned(checked)["feature order"]
    assert "where it is missing the label is false in 100.0%" in warned(checked)["column refund"]
    assert not check(home, loop, strict=True).ok
    assert check(home, written(tmp_path / "honest"), strict=True).ok


def test_columns_that_feed_nothing_are_listed(home: Home, tmp_path: Path) -> None:
    [item] = [i for i in check(home, written(tmp_path / "shop")).items if i.name == "columns"]
    assert (item.detail, item.warning) == ("requests may leave out refund: nothing uses them", False)
    less = written(tmp_path / "less", features='{"refund": nde.fill_null(f.refund, 0.0)}')
    [item] = [i for i in check(home, less).items if i.name == "columns"]
    assert item.detail == "nothing is asked for that is not used; joined for nothing: rate"


@pytest.mark.parametrize(
    ("value", "detail", "doubtful"),
    [
        ("true_positive=3, false_positive=-1", "acting pays from a probability of 0.250", False),
        ("true_positive=3", "acting pays at any score", True),
    ],
)
def test_value_table_says_from_which_score_acting_pays(
    home: Home, tmp_path: Path, value: str, detail: str, doubtful: bool
) -> None:
    path = Path(written(tmp_path / "shop"))
    path = path / "loop.py" if path.is_dir() else path
    text = (
        path.read_text()
        .replace("heuristic=", f"value=Value({value}), heuristic=", 1)
        .replace("Sampling\n", "Sampling, Value\n", 1)
    )
    path.write_text(text)
    [item] = [i for i in check(home, str(path)).items if i.name == "value"]
    assert item.detail.startswith(detail)
    assert item.warning is doubtful


def test_a_label_of_words_without_categories_is_warned_of(home: Home, tmp_path: Path) -> None:
    folder = written(tmp_path / "shop", label="returned = 'yes'")
    path = tmp_path / "shop" / "loop.py"
    text = path.read_text()
    path.write_text(text.replace('"returned": Column("boolean")', '"returned": Column("string")'))
    assert "counts as no" in warned(check(home, folder))["column returned"]
    path.write_text(text.replace('"returned": Column("boolean")', '"returned": Column("string", categories=["yes", "no"])'))
    assert "column returned" not in warned(check(home, folder))


RETIRED = "nullable=True, retired=True)"


@pytest.mark.parametrize(
    ("changed", "to", "name", "what"),
    [
        ('"refund": Column("float", nullable=True)', f'"refund": Column("float", {RETIRED}', "features", "'refund' is retired"),
        (
            '"amount": Column("float", minimum=0, maximum=500)',
            f'"amount": Column("float", {RETIRED}',
            "heuristic",
            "'amount' is retired",
        ),
        ('"rate": Column("float")', f'"rate": Column("float", {RETIRED}', "", "columns.rate: is retired"),
        ('"returned": Column("boolean")', f'"returned": Column("boolean", {RETIRED}', "label", "'returned' is retired"),
        (
            '"shop": Column("string", categories=["north", "south"])',
            f'"shop": Column("string", {RETIRED}',
            "",
            "requests.columns.shop: is retired",
        ),
    ],
)
def test_what_uses_a_retired_column_is_named(home: Home, tmp_path: Path, changed: str, to: str, name: str, what: str) -> None:
    folder = written(tmp_path / "shop", features='{"amount": f.amount, "refund": nde.fill_null(f.refund, 0.0)}')
    path = tmp_path / "shop" / "loop.py"
    path.write_text(path.read_text().replace(changed, to))
    if not name:
        with pytest.raises(DeclarationInvalid, match=what):
            check(home, folder)
        return
    [item] = [i for i in check(home, folder).items if i.name == name]
    assert not item.ok
    assert what in item.detail


def test_only_about_the_newest_requests_are_looked_at(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home)
    monkeypatch.setattr(room, "LOOKED_AT", 300)
    checked = check(home, written(tmp_path / "shop"))
    seen = next(i.detail for i in checked.items if i.name == "leakage")
    assert int(seen.split("(")[1].split()[0]) in range(300, 303)
    assert seen.startswith("could not look for features that tell too much: ")
    assert not next(i for i in checked.items if i.name == "leakage").checked, "too few rows of the rarer label: no tick"


def test_requests_without_outcomes_are_shown_all_the_same(home: Home, tmp_path: Path) -> None:
    fill(home, 50)
    home.lake.write("returns", home.lake.read("returns").slice(0, 0), mode="overwrite")
    checked = check(home, written(tmp_path / "shop"))
    assert checked.ok
    assert [r.features["rate"] for r in checked.sample] == [1.0] * 3
    assert "not looked for: there is nothing to learn from" in next(i.detail for i in checked.items if i.name == "leakage")


def test_a_label_that_is_no_expression_is_not_well(home: Home, tmp_path: Path) -> None:
    fill(home, 50)
    checked = check(home, written(tmp_path / "shop", label="returnd"))
    assert [i.name for i in checked.items if not i.ok] == ["examples"]
    assert "'returnd' cannot be evaluated" in next(i.detail for i in checked.items if not i.ok)


def test_weights_of_an_estimators_own_are_not_well(home: Home, tmp_path: Path) -> None:
    checked = check(home, written(tmp_path / "shop", weights="class_weight='balanced'"))
    assert [i.name for i in checked.items if not i.ok] == ["candidate simple"]
    assert "Loop(sampling=Sampling(balanced=True))" in next(i.detail for i in checked.items if not i.ok)


def test_what_guards_and_what_retrains_must_be_measurable(home: Home, tmp_path: Path) -> None:
    file = Path(written(tmp_path / "shop")) / "loop.py"
    declared = """    release=Release(guards=[Guard("mae"), Guard("recall", slices=["shop"]), Guard("latency_p99_ms")]),
    retrain=Retrain(decay=0.1, decay_metric="rmse"),
)"""
    text = file.read_text().replace("import Candidate", "import Guard, Release, Retrain, Slice, Candidate")
    file.write_text(text.rstrip().removesuffix(")") + declared)
    [item] = [i for i in check(home, str(file)).items if not i.ok]
    assert item.name == "guards"
    for said in (
        "guard: 'mae' is not a metric of a binary loop",
        "'latency_p99_ms' is not measured on rows",
        "no slice 'shop'; the loop declares none",
        "retrain.decay_metric: 'rmse' is not a metric of a binary loop",
    ):
        assert said in item.detail
    well = declared.replace("mae", "value_per_prediction").replace(', Guard("latency_p99_ms")', "").replace("rmse", "roc_auc")
    well += "\n"
    file.write_text(text.rstrip().removesuffix(")") + '    slices=[Slice("shop", lambda f: f.shop)],\n' + well)
    assert check(home, str(file)).ok


@pytest.mark.parametrize(("minimum", "large"), [(N // 4, 2), (N, 0)])
def test_a_fleet_is_told_how_many_segments_have_rows_enough(home: Home, tmp_path: Path, minimum: int, large: int) -> None:
    file = Path(written(tmp_path / "shop")) / "loop.py"
    text = file.read_text().replace("import Candidate", "import Fleet, Candidate").rstrip().removesuffix(")")
    file.write_text(text + f'    fleet=Fleet(by="shop", minimum_rows={minimum}),\n)')
    found = {i.name: i for i in check(home, str(file)).items}
    assert found["fleet by shop"].detail == "not counted: there are no rows yet"
    fill(home)
    found = {i.name: i for i in check(home, str(file)).items}
    assert found["fleet by shop"].detail.startswith(f"{large} of 2 segments have {minimum:,} rows in table 'orders' or more")
    assert found["fleet by shop"].warning is (large == 0)


def test_the_command_shows_it_and_its_exit_code_says_it(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(home)
    loop, at = written(tmp_path / "shop", LEAKY), ["--home", str(home.path)]
    assert run([*at, "check", loop]) == 0
    shown = capsys.readouterr().out
    assert "▲ column refund" in shown
    assert "rows in, features out (table orders)" in shown
    assert "returns: 2 to look into" in shown
    assert run([*at, "check", loop, "--strict", "--json"]) == 1
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [i["name"] for i in answer["items"] if i["warning"]] == ["column refund", "feature order"]
    assert len(answer["sample"]) == 3


def test_number_of_graphs_built_does_not_grow_with_the_columns(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[int] = []
    build = graphs.build

    def counted(*parts: Any) -> bytes:
        builds.append(1)
        return build(*parts)

    monkeypatch.setattr(graphs, "build", counted)
    counts = []
    for width in (1, 12):
        features = ", ".join(f'"x{i}": f.x{i}' for i in range(width))
        text = LOOP.replace("FEATURES", f"{{{features}}}").replace("LABEL", "returned")
        columns = ", ".join(f'"x{i}": Column("float")' for i in range(width))
        folder = tmp_path / f"wide-{width}"
        folder.mkdir()
        (folder / "loop.py").write_text(text.replace("WEIGHTS", "").replace('"refund":', f'{columns}, "refund":'))
        checked = check(home, str(folder))
        assert len(checked.features) == width
        counts.append(len(builds))
        builds.clear()
    assert counts[0] == counts[1] > 0


def item(checked: Checked, name: str) -> Any:
    return next(i for i in checked.items if i.name == name)


@pytest.mark.parametrize(("least", "warns"), [(336, False), (337, True), (500, True)])
def test_monitor_whose_windows_never_hold_rows_enough_is_warned_of(home: Home, tmp_path: Path, least: int, warns: bool) -> None:
    """336 orders come in a week. One that comes months later changes nothing of the pace."""
    fill(home)
    for table, columns in (("orders", {"amount": 9.0, "shop": "north", "refund": None}), ("returns", {"returned": True})):
        late = {"order": "late", "at": NOW - timedelta(days=1), **columns}
        home.lake.write(table, pa.Table.from_pylist([late], home.lake.schema(table)))
    path = written(tmp_path / "shop")
    file = tmp_path / "shop" / "loop.py"
    file.write_text(file.read_text().replace("minimum_rows=100", f"minimum_rows={least}"))
    said = warned(check(home, path))
    assert ("monitor" in said) == warns
    if warns:
        assert said["monitor"].startswith(
            f"a window of 7d holds about 336 rows, and minimum_rows is {least}: no window would be"
        )


def test_requests_whose_outcomes_are_not_there_yet_are_warned_of(home: Home, tmp_path: Path) -> None:
    fill(home, 50)
    home.lake.write("returns", home.lake.read("returns").slice(0, 0), mode="overwrite")
    checked = check(home, written(tmp_path / "shop"))
    assert (checked.ok, item(checked, "examples").warning) == (True, True)
    assert not check(home, written(tmp_path / "shop"), strict=True).ok


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("split", "says"),
    [
        ('TimeSplit("400d")', "the training part has 0 examples"),
        ('TimeSplit("1d")', "validation reaches back to"),
        ('TimeSplit("10d")', "the newest 10d validate"),
        ('StratifiedSplit("shop")', "20% of each stratum of label and shop validate"),
        ('TimeSplit("10d"), sampling=Sampling(keep={"false": 0.001})', "raise `keep`"),
    ],
)
def test_split_is_judged_as_run_judges_it(
    home: Home, tmp_path: Path, split: str, says: str, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(home)
    monkeypatch.setattr(room, "LOOKED_AT", 200 if sampled else room.LOOKED_AT)
    folder = written(tmp_path / "shop")
    file = Path(folder) / "loop.py"
    file.write_text(
        file.read_text()
        .replace("Sampling\n", "Sampling, StratifiedSplit, TimeSplit\n")
        .replace("candidates=", f"split={split}, candidates=")
    )
    checked = item(check(home, folder), "split")
    assert says in checked.detail
    try:
        turn(home, load_loop(file), until="develop")
        refused = ""
    except ExamplesRefused as error:
        refused = str(error)
    assert (checked.ok, checked.detail if refused else "") == (not refused, refused)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"refund": Column("float", nullable=True)', '"refund": Column("float", nullable=True), "new": Column("float", nullable=True)', ""),
        ('"rate": Column("float")}', '"rate": Column("float"), "new": Column("float", nullable=True)}', ""),
        ('"returned": Column("boolean")', '"returned": Column("boolean"), "new": Column("boolean", nullable=True)', ""),
        ('"amount": Column("float", minimum=0, maximum=500)', '"amount": Column("string")', "columns.amount: "),
        ('"amount": Column("float", minimum=0, maximum=500)', '"amount": Column("integer")', "columns.amount: "),
        ('"order": Column("string"), "at": Column("timestamp"), "amount"', '"order": Column("integer"), "at": Column("timestamp"), "amount"', "columns.order: "),
        ('"rate": Column("float")}', '"rate": Column("timestamp")}', "columns.rate: "),
        ('"returned": Column("boolean")', '"returned": Column("float")', "columns.returned: "),
        ('"refund": Column("float", nullable=True)', '"refund": Column("float")', "columns.refund: "),
        ('"refund": Column("float", nullable=True)', '"refund": Column("float", nullable=True), "new": Column("float")', "columns.new: "),
    ],
)  # fmt: skip
def test_contract_is_judged_as_run_judges_it(home: Home, tmp_path: Path, before: str, after: str, says: str) -> None:
    fill(home)
    folder = written(tmp_path / "shop")
    file = Path(folder) / "loop.py"
    for table in load_loop(file).tables.values():
        put_contract(home, table)
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after).replace("f.amount > 100", "f.shop == 'north'"))
    try:
        declared = load_loop(file)
    except DeclarationInvalid:  # refused before any table is looked at
        return
    checked = check(home, folder)
    tables = [i for i in checked.items if i.name.startswith("table ")]
    assert all(i.ok for i in tables) == (not says)
    try:
        turn(home, declared, until="data")
        refused = ""
    except DeclarationInvalid as error:
        refused = str(error)
    assert bool(refused) == bool(says)
    if says:
        [wrong] = [i.detail for i in tables if not i.ok]
        assert says in wrong
        assert refused.partition(says)[2].partition(";")[0] in wrong
    else:
        assert item(checked, "leakage").checked or warned(checked)


def test_rows_with_one_label_only_are_not_well(home: Home, tmp_path: Path) -> None:
    fill(home)
    rows = home.lake.read("returns")
    home.lake.write("returns", rows.set_column(2, "returned", pa.array([True] * len(rows))), mode="overwrite")
    checked = check(home, written(tmp_path / "shop"))
    assert (checked.ok, item(checked, "examples").ok) == (False, False)


def test_window_of_retraining_is_that_of_the_split(home: Home, tmp_path: Path) -> None:
    fill(home)
    folder = written(tmp_path / "shop")
    file = Path(folder) / "loop.py"
    file.write_text(
        file.read_text()
        .replace("Sampling\n", "Retrain, Sampling\n")
        .replace("candidates=", 'retrain=Retrain(window="10d"), candidates=')
    )
    checked = item(check(home, folder), "split")
    assert not checked.ok
    assert "declare `split=TimeSplit(validation=" in checked.detail


FAILING = """    candidates=[Candidate("simple", lambda: make_pipeline(SimpleImputer(), LogisticRegression())),
                Candidate("text", lambda: make_pipeline(TfidfVectorizer(), LogisticRegression()))],"""
"""A pipeline over numbers that wants texts: it becomes a graph, but cannot be fitted."""


def test_check_and_run_judge_candidates_alike(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without rows it is a doubt, with rows a no; `run` leaves the candidate out for the very reason, and releases another."""
    loop, at = written(tmp_path / "shop"), ["--home", str(home.path)]
    file = Path(loop) / "loop.py"
    lines = file.read_text().replace(
        "import SimpleImputer", "import SimpleImputer\nfrom sklearn.feature_extraction.text import TfidfVectorizer"
    )
    before = next(line for line in lines.splitlines() if "candidates=" in line)
    file.write_text(lines.replace(before, FAILING))
    early = {i.name: i for i in check(home, loop).items}["candidate text"]
    assert (early.ok, early.warning) == (True, True)
    assert early.detail.startswith("not rehearsed")
    fill(home)
    [item] = [i for i in check(home, loop).items if not i.ok]
    assert (item.name, item.detail[:33]) == ("candidate text", "cannot be fitted: AttributeError:")
    home.close()
    assert run([*at, "run", loop, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["left_out"] == {"text": item.detail}
    assert f"text is left out ({item.detail})" in told["verdict"]
    assert told["released"]


@pytest.mark.parametrize(("before", "after"), [('"Which orders come back?"', '"TODO: which problem?"'), ('"sales"', '"TODO"')])
def test_what_nobody_has_written_yet_does_not_pass(home: Home, tmp_path: Path, before: str, after: str) -> None:
    path = written(tmp_path / "loop")
    assert items(check(home, path), "problem") == [(True, "Which orders come back?")]
    file = Path(path) / "loop.py"
    file.write_text(file.read_text().replace(before, after))
    checked = check(home, path)
    assert not checked.ok
    [(ok, why)] = items(checked, "problem")
    assert not ok
    assert "still says TODO: write it in the loop file" in why


def items(checked: Checked, name: str) -> list[tuple[bool, str]]:
    return [(i.ok, i.detail) for i in checked.items if i.name == name]
