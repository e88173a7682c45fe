from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.develop.flights import table

from loopwright.base.arrays import Array
from loopwright.base.errors import ExamplesRefused
from loopwright.records.declarations import GroupSplit, StratifiedSplit, TimeSplit
from loopwright.tasks.split import (
    EMBARGO,
    INCOMPLETE,
    LATE,
    SHARED,
    divide,
    divide_again,
    draws,
    fifth,
    overlap,
    trained_on,
    validates,
)

DAY = timedelta(days=1)
START = datetime(2013, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def examples(decided: list[float], label: list[Any], *, known: list[float] | None = None, **more: list[Any]) -> pa.Table:
    """Examples decided and known so many days after the start; units are numbered unless `_unit` is given."""
    made = {
        "_decided_at": pa.array([START + d * DAY for d in decided], STAMP),
        "_known_at": pa.array([START + k * DAY for k in known or [d + 0.01 for d in decided]], STAMP),
        "_label": label,
        "_unit": more.pop("_unit", [f"u{i}" for i in range(len(decided))]),
        "_prediction": pa.nulls(len(decided), pa.string()),
    }
    return pa.table({**more, **made})


def days(rows: pa.Table, chosen: Array) -> list[float]:
    return [(m - START) / DAY for m in rows.column("_decided_at").take(pa.array(chosen)).to_pylist()]


def thirds(n: int) -> list[bool]:
    return [i % 3 == 0 for i in range(n)]


def test_the_newest_validate_and_the_embargo_is_left_out() -> None:
    rows = examples([float(d) for d in range(100)], thirds(100))
    training, validation, partition = divide(rows, TimeSplit(validation="30d", embargo="5d"), seed=0)
    assert days(rows, validation) == [float(d) for d in range(70, 100)]
    assert days(rows, training) == [float(d) for d in range(65)]
    assert partition.left_out == {EMBARGO: 5}
    assert partition.boundary == START + 69 * DAY
    assert set(partition.overlap.values()) == {0}


def test_no_training_row_is_younger_than_a_validation_row() -> None:
    made = table(2000)
    training, validation, partition = divide(made, TimeSplit(), seed=0)
    decided = made.column("_decided_at").to_pylist()
    assert max(decided[i] for i in training) <= min(decided[i] for i in validation)
    assert len(training) + len(validation) + sum(partition.left_out.values()) == 2000


def test_an_outcome_that_came_after_the_boundary_is_not_trained_on() -> None:
    decided = [float(d) for d in range(100)]
    rows = examples(decided, thirds(100), known=[d + (10 if i % 2 else 0.5) for i, d in enumerate(decided)])
    training, _, partition = divide(rows, TimeSplit(validation="30d"), seed=0)
    known = rows.column("_known_at").take(pa.array(training)).to_pylist()
    assert partition.boundary is not None
    assert max(known) <= partition.boundary
    # Of the days 60 to 69 five came late; day 69.5 is beyond the boundary (day 69), day 68.5 is not.
    # The four even days from 62 on were known, but alone they are no sample of those days.
    assert partition.left_out == {LATE: 5, INCOMPLETE: 4}
    kept, _, partition = divide(rows, TimeSplit(validation="30d", late_outcomes="train"), seed=0)
    assert len(kept) == 70
    assert partition.left_out == {}


def test_training_rows_of_incomplete_days_do_not_outnumber_the_others() -> None:
    """Positives are known at once, negatives after a week: of the last week before the boundary only positives were trained on."""
    decided, label = [float(d) / 10 for d in range(1000)], [bool(i % 4 == 0) for i in range(1000)]
    rows = examples(decided, label, known=[d + (0.0 if yes else 7.0) for d, yes in zip(decided, label, strict=True)])
    training, _, partition = divide(rows, TimeSplit(validation="30d"), seed=0)
    share = np.mean([label[i] for i in training])
    assert share == pytest.approx(0.25, abs=0.005)
    assert max(days(rows, training)) == pytest.approx(62.9, abs=1.0)
    assert partition.left_out[INCOMPLETE] == pytest.approx(17, abs=3)
    assert set(partition.overlap.values()) == {0}


def test_one_outcome_that_came_very_late_leaves_out_nothing_else() -> None:
    decided = [float(d) / 10 for d in range(1000)]
    rows = examples(decided, thirds(1000), known=[d + (90.0 if d == 20.0 else 0.0) for d in decided])
    _, _, partition = divide(rows, TimeSplit(validation="30d"), seed=0)
    assert partition.left_out == {LATE: 1}


def test_outcomes_delivered_all_at_once_are_refused_with_what_to_write() -> None:
    rows = examples([float(d) for d in range(100)], thirds(100), known=[200.0] * 100)
    with pytest.raises(ExamplesRefused, match=r'70 left out: outcome known only after the boundary.*late_outcomes="train"'):
        divide(rows, TimeSplit(validation="30d"), seed=0)


@pytest.mark.parametrize(
    ("length", "positive", "why"),
    [
        (0, lambda i: i % 2 == 1, "no examples"),
        (10, lambda i: i % 2 == 1, "training part has 0"),
        (100, lambda i: i < 50, "validation part has 14 examples, 0"),
    ],
)
def test_too_little_is_refused_with_the_numbers(length: int, positive: Callable[[int], bool], why: str) -> None:
    rows = examples([float(d) for d in range(length)], [positive(i) for i in range(length)])
    with pytest.raises(ExamplesRefused, match=why):
        divide(rows, TimeSplit(), seed=0)


def test_tasks_need_what_they_need() -> None:
    decided = [float(d) for d in range(100)]
    same = examples(decided, ["a"] * 100)
    with pytest.raises(ExamplesRefused, match="of 1 kinds"):
        divide(same, TimeSplit("30d"), seed=0, task="multiclass")
    assert len(divide(examples(decided, [1.0] * 100), TimeSplit("30d"), seed=0, task="regression").validation) == 30
    usual_so_far = examples(decided, [d > 80 and d % 2 == 0 for d in decided])
    assert len(divide(usual_so_far, TimeSplit("30d"), seed=0, task="anomaly").training) == 69


def test_rows_that_nobody_judged_have_no_outcome_to_come_late() -> None:
    decided = [float(d) for d in range(100)]
    rows = examples(decided, [None if i % 2 else i % 4 == 0 for i in range(100)])
    rows = rows.set_column(1, "_known_at", pa.array([None if i % 2 else START + (i + 1) * DAY for i in range(100)], STAMP))
    training, validation, partition = divide(rows, TimeSplit("30d"), seed=0, task="anomaly")
    assert (len(training), len(validation)) == (70, 30)
    assert partition.left_out == {}
    assert len(divide(rows, StratifiedSplit(), seed=0, task="anomaly").partition.cuts) == 3


def test_whole_groups_validate_or_train() -> None:
    rng = np.random.default_rng(1)
    patient = [None if p == 0 else f"p{p}" for p in rng.integers(0, 60, 3000)]
    rows = examples(sorted(rng.random(3000) * 90), thirds(3000), patient=patient)
    training, validation, partition = divide(rows, GroupSplit("patient", validation=0.25), seed=7)
    values = np.array([str(p) for p in patient], dtype=object)
    assert not set(values[training]) & set(values[validation])
    assert len(set(values[validation])) == partition.validation.groups == 15
    assert partition.training.groups == 45
    assert len(training) + len(validation) == 3000
    assert partition.overlap == {"rows": 0, "outcomes": 0, "groups": 0}


def test_a_group_stays_on_its_side_when_rows_come_and_moves_with_the_seed() -> None:
    rng = np.random.default_rng(2)
    patient = [f"p{p}" for p in rng.integers(0, 50, 2000)]
    rows = examples(sorted(rng.random(2000) * 90), thirds(2000), patient=patient)
    split = GroupSplit("patient")
    half = rows.slice(0, 1000)

    def sides(part: pa.Table, seed: int) -> set[str]:
        return set(part.column("patient").take(pa.array(divide(part, split, seed=seed).validation)).to_pylist())

    assert sides(rows, 3) == sides(half, 3)
    assert sides(rows, 3) != sides(rows, 4)


def test_each_stratum_gives_its_share() -> None:
    rng = np.random.default_rng(3)
    n = 5000
    label = (rng.random(n) < 0.02).tolist()
    site = rng.choice(["a", "b", "c"], n, p=[0.9, 0.09, 0.01]).tolist()
    rows = examples(sorted(rng.random(n) * 90), label, site=site)
    training, validation, partition = divide(rows, StratifiedSplit("site", validation=0.2), seed=0)
    inside = np.isin(np.arange(n), validation)
    for stratum in {(a, b) for a, b in zip(label, site, strict=True)}:
        mask = np.array([(a, b) == stratum for a, b in zip(label, site, strict=True)])
        assert abs(inside[mask].sum() - 0.2 * mask.sum()) <= 1
    assert len(training) + len(validation) == n
    assert len(partition.cuts) == len(set(zip(label, site, strict=True)))


def test_a_number_is_stratified_by_fifths() -> None:
    rng = np.random.default_rng(4)
    target = np.exp(3 * rng.normal(size=2000))
    rows = examples(sorted(rng.random(2000) * 90), target.tolist())
    _, validation, _ = divide(rows, StratifiedSplit(), seed=0, task="regression")
    edges = np.quantile(target, [0.2, 0.4, 0.6, 0.8])
    assert np.bincount(np.searchsorted(edges, target[validation])).tolist() == [80] * 5
    partition = divide(rows, StratifiedSplit(), seed=0, task="regression").partition
    low = rows.filter(pa.array(target < 1))  # its own fifths are others; those of the record tell each row's side
    expected = np.isin(np.flatnonzero(target < 1), validation)
    assert validates(partition, low).tolist() == expected.tolist()
    several = rows.set_column(2, "_label", pa.array([[t, -t] for t in target]))
    assert divide(several, StratifiedSplit(), seed=0, task="regression").validation.tolist() == validation.tolist()


def test_no_outcome_is_on_both_sides() -> None:
    rng = np.random.default_rng(5)
    unit = [f"u{i // 2}" for i in range(1000)]  # each asked about twice, with one outcome
    known = [float(100 + i // 2) for i in range(1000)]
    doctor = [f"d{d}" for d in rng.integers(0, 20, 1000)]
    rows = examples(sorted(rng.random(1000) * 90), thirds(1000), known=known, _unit=unit, doctor=doctor)
    for split in (GroupSplit("doctor"), StratifiedSplit("doctor")):
        training, validation, partition = divide(rows, split, seed=0)
        asked = np.array(unit, dtype=object)
        assert not set(asked[training]) & set(asked[validation])
        assert partition.left_out[SHARED] == 1000 - len(training) - len(validation) > 0
        assert partition.overlap["outcomes"] == 0


def test_an_overlap_is_counted() -> None:
    rows = examples(
        [float(d) for d in range(10)], thirds(10), _unit=["a", "a", *"bcdefghi"], known=[20.0] * 10, g=list("aabbccddee")
    )
    found = overlap(rows, np.array([0, 2, 5, 9]), np.array([1, 3, 4, 5]), GroupSplit("g"), None)
    assert found == {"rows": 1, "outcomes": 2, "groups": 3}
    found = overlap(rows, np.array([0, 5]), np.array([4, 6]), TimeSplit(embargo="1d"), START + 5 * DAY)
    assert found["moments"] == 2 + 1  # both known only later; one validates before the boundary


@pytest.mark.parametrize(
    "split", [TimeSplit(validation="9d", embargo="2d"), GroupSplit("carrier", 0.5), StratifiedSplit("hub", 0.3)]
)
def test_the_record_of_a_split_tells_the_side_of_any_row(split: Any) -> None:
    rows = table(4000)
    training, validation, partition = divide(rows, split, seed=11)
    assert np.flatnonzero(validates(partition, rows)).tolist() == validation.tolist()
    assert set(training) <= set(np.flatnonzero(trained_on(partition, rows)))
    assert not set(np.flatnonzero(trained_on(partition, rows))) & set(validation)
    later = examples([400.0 + i for i in range(40)], thirds(40), carrier=["UA", "ZZ"] * 20, hub=[True] * 40)
    assert not trained_on(partition, later).any()


@pytest.mark.parametrize(
    "split", [TimeSplit(validation="9d", embargo="2d"), GroupSplit("gate", 0.3), StratifiedSplit("hub", 0.3)]
)
def test_the_search_divides_the_training_rows_by_the_same_rule(split: Any) -> None:
    rows = table(4000)
    training, _, partition = divide(rows, split, seed=11)
    fitted, judged = divide_again(rows, training, split, seed=11)
    assert set(fitted) | set(judged) <= set(training)
    inner = START + 9_999 * DAY
    if isinstance(split, TimeSplit):
        decided = rows.column("_decided_at").to_pylist()
        inner = max(decided[i] for i in training if decided[i] < min(decided[j] for j in judged))
        assert (min(decided[i] for i in judged) - max(decided[i] for i in fitted)) >= 2 * DAY
        assert abs(len(judged) / len(training) - 0.2) < 0.01
    assert set(overlap(rows, fitted, judged, split, inner).values()) == {0}
    assert partition.seed == 11


def test_too_little_to_search_on_is_refused() -> None:
    rows = examples([float(d) for d in range(40)], thirds(40))
    with pytest.raises(ExamplesRefused, match="no `trials`"):
        divide_again(rows, np.arange(30), TimeSplit(embargo="25d"), seed=0)


def test_draws_are_even_and_their_own() -> None:
    values = [f"u{i}" for i in range(20_000)]
    found = draws(0, "validation", values)
    assert found.min() >= 0
    assert found.max() < 1
    # Kolmogorov-Smirnov distance from the uniform; 1.63 / sqrt(n) is its 1 % point.
    assert np.abs(np.sort(found) - np.arange(20_000) / 20_000).max() < 1.63 / np.sqrt(20_000)
    assert abs(np.corrcoef(found, draws(0, "search", values))[0, 1]) < 0.02
    assert found.tolist() == draws(0, "validation", values).tolist()


def gap(newest: int, *, label: Callable[[int], bool] = lambda i: i % 3 == 0) -> pa.Table:
    """1,000 daily examples, then a pause of 400 days and `newest` more."""
    return examples([*map(float, range(1000)), *(1400.0 + i for i in range(newest))], [label(i) for i in range(1000 + newest)])


@pytest.mark.parametrize("newest", [1, 19, 60])
def test_time_split_reaches_back_over_a_pause_in_the_data(newest: int) -> None:
    rows = gap(newest)
    training, validation, partition = divide(rows, TimeSplit(validation="30d"), seed=0)
    assert len(validation) == 100
    assert max(days(rows, training)) < min(days(rows, validation))
    assert len(training) + len(validation) == len(rows)
    assert set(partition.overlap.values()) == {0}
    assert f"the newest 30d hold {min(newest, 30)} example" in partition.extended
    assert "100 examples" in partition.extended
    assert validates(partition, rows).sum() == 100


def test_time_split_validates_the_declared_span_before_a_pause() -> None:
    rows = examples([*(i / 50 for i in range(10_000)), 700.0], [i % 3 == 0 for i in range(10_001)])
    training, validation, partition = divide(rows, TimeSplit(validation="30d"), seed=0)
    assert len(validation) == 30 * 50 + 1
    assert max(days(rows, training)) < min(days(rows, validation))
    assert partition.extended.startswith("the newest 30d hold 1 example")


def test_time_split_reaches_back_until_it_holds_each_label() -> None:
    rows = examples([float(d) for d in range(2000)], [d >= 1500 or d % 2 == 0 for d in range(2000)])
    _, validation, partition = divide(rows, TimeSplit(validation="300d"), seed=0)
    labels = np.array(rows.column("_label").take(pa.array(validation)).to_pylist())
    assert (len(validation), (~labels).sum()) == (539, 20)
    assert partition.extended == (
        "the newest 300d hold 300 examples, 300 of them positive: validation reaches back to 2017-01-01 00:00, "
        "539 examples, 519 of them positive"
    )
    words = examples([float(d) for d in range(900)], ["abc"[i % 3] if i < 700 else "c" for i in range(900)])
    _, validation, _ = divide(words, TimeSplit(validation="100d"), seed=0, task="multiclass")
    assert len(set(words.column("_label").take(pa.array(validation)).to_pylist())) == 3


def test_time_split_that_holds_enough_is_as_declared() -> None:
    for rows, length in ((gap(0), "100d"), (examples([float(d) for d in range(100)], thirds(100)), "30d")):
        _, validation, partition = divide(rows, TimeSplit(validation=length), seed=0)
        assert (len(validation), partition.extended) == (int(length[:-1]), "")


def test_search_over_hyper_parameters_is_judged_on_both_labels() -> None:
    rows = examples([float(d) for d in range(2000)], [1200 <= d < 1900 or d % 2 == 0 for d in range(2000)])
    training, _, _ = divide(rows, TimeSplit(validation="100d"), seed=0)
    fitted, judged = divide_again(rows, training, TimeSplit(validation="100d"), seed=0)
    labels = np.array(rows.column("_label").to_pylist())
    assert set(labels[fitted]) == set(labels[judged]) == {True, False}
    assert max(fitted) < min(judged)


@pytest.mark.parametrize(
    ("labels", "task"),
    [([i >= 36 for i in range(40)], "binary"), (["a" if i < 36 else "b" for i in range(40)], "multiclass")],
)
def test_search_over_hyper_parameters_is_fitted_on_both_labels(labels: list[Any], task: Any) -> None:
    rows = examples([float(d) for d in range(40)], labels)
    fitted, judged = divide_again(rows, np.arange(40), TimeSplit(validation="6d"), seed=0, task=task)
    for part in (fitted, judged):
        assert len({labels[i] for i in part}) == 2
    assert not set(fitted) & set(judged)


@pytest.mark.parametrize("split", [TimeSplit(validation="6d"), GroupSplit("part", 0.3)])
def test_search_that_cannot_have_both_labels_is_refused(split: Any) -> None:
    rows = examples([float(d) for d in range(40)], [i == 39 for i in range(40)], part=[f"g{d // 5}" for d in range(40)])
    with pytest.raises(ExamplesRefused, match="of one label only: give more history"):
        divide_again(rows, np.arange(40), split, seed=0)


@pytest.mark.parametrize(
    ("span", "length"),
    [(timedelta(days=90), "18d"), (timedelta(seconds=143280 * 5), "39h"), (timedelta(hours=1), "12m"), (timedelta(0), "1s")],
)
def test_fifth_of_a_span_is_in_units_that_people_write(span: timedelta, length: str) -> None:
    assert fifth(span) == length


@pytest.mark.parametrize(
    ("rows", "split", "task", "advice"),
    [
        (examples([d / 10 for d in range(100)], thirds(100)), TimeSplit(), "binary", 'TimeSplit(validation="47h")'),
        (examples([float(d) for d in range(100)], [d < 50 for d in range(100)]), TimeSplit(), "binary", "StratifiedSplit()"),
        (examples([1.0] * 100, thirds(100)), TimeSplit(), "binary", "StratifiedSplit()"),
        (
            examples([float(d) for d in range(100)], thirds(100), known=[200.0] * 100),
            TimeSplit(validation="30d", embargo="1d"),
            "binary",
            'TimeSplit(validation="30d", embargo="1d", late_outcomes="train")',
        ),
        (
            examples([float(d) for d in range(90)], [float(d) for d in range(90)], part=[f"g{d // 15}" for d in range(90)]),
            GroupSplit("part", validation=0.15),
            "regression",
            'GroupSplit(column="part", validation=0.3)',
        ),
    ],
)
def test_split_that_cannot_be_made_names_one_that_can(rows: pa.Table, split: Any, task: Any, advice: str) -> None:
    with pytest.raises(ExamplesRefused, match=r"declare `split=") as refused:
        divide(rows, split, seed=0, task=task)
    written = str(refused.value).partition("`split=")[2].partition("`")[0]
    assert written == advice
    divide(rows, eval(written), seed=0, task=task)  # our own advice, as a person would type it


def test_too_few_examples_for_any_split_are_to_be_ingested() -> None:
    with pytest.raises(ExamplesRefused, match="ingest more examples with outcomes, or wait for more"):
        divide(examples([float(d) for d in range(30)], thirds(30)), TimeSplit(), seed=0)
