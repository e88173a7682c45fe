from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.develop.flights import table
from tests.develop.test_train import home_in, run

from loopwright.base.arrays import Array
from loopwright.base.errors import DeclarationInvalid, ExamplesRefused
from loopwright.develop.fit import TrainingData, fit, predict
from loopwright.develop.output import Goal
from loopwright.develop.sampling import Drawn, draw, factors, refuse_weights_of_its_own
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Sampling, StratifiedSplit
from loopwright.records.package import Output
from loopwright.tasks.split import divide


def examples(label: Any) -> pa.Table:
    n = len(label)
    return pa.table({"_label": label, "_unit": [f"u{i}" for i in range(n)], "_prediction": pa.nulls(n, pa.string())})


def rare(n: int, seed: int) -> tuple[Array, Array, Array]:
    """A matrix, labels that a logistic model explains (about 4 % true), and their true probabilities."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, 3)).astype(np.float32)
    probability = 1 / (1 + np.exp(-(matrix @ np.array([1.0, -0.7, 0.4]) - 3.8)))
    return matrix, rng.random(n) < probability, probability


def fitted(
    estimator: Any, matrix: Array, label: Any, sampling: Sampling, output: Output, seed: int = 0
) -> tuple[Any, Goal, Drawn]:
    drawn = draw(examples(label), np.arange(len(label)), sampling, seed=seed)
    goal = Goal(output=output, factors=factors(drawn.sampled, output))
    training_data = TrainingData(matrix, np.asarray(label), weight=drawn.weight).at(drawn.rows)
    return fit(Candidate("c", lambda: estimator), estimator, training_data, goal)[0], goal, drawn


def test_no_sampling_changes_nothing() -> None:
    drawn = draw(examples([True, False] * 50), np.arange(10, 90), Sampling(), seed=0)
    assert drawn.rows.tolist() == list(range(10, 90))
    assert (drawn.weight, drawn.sampled) == (None, None)
    assert factors(drawn.sampled, Output()) == []


def test_a_share_of_a_label_is_kept_the_same_for_the_same_seed() -> None:
    label = [i % 10 == 0 for i in range(5000)]
    training = np.arange(0, 5000, 2)
    drawn = draw(examples(label), training, Sampling(keep={"false": 0.25}), seed=1)
    assert drawn.sampled is not None
    assert drawn.sampled.available == {"false": 2000, "true": 500}
    assert drawn.sampled.sampled["true"] == 500
    assert abs(drawn.sampled.sampled["false"] / 2000 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)
    assert set(drawn.rows) <= set(training)
    assert drawn.weight is None
    # Odds of true are as much too high as false was kept less; the record says so exactly.
    assert factors(drawn.sampled, Output()) == [1.0, drawn.sampled.sampled["false"] / 2000]
    assert draw(examples(label), training, Sampling(keep={"false": 0.25}), seed=1).rows.tolist() == drawn.rows.tolist()
    assert draw(examples(label), training, Sampling(keep={"false": 0.25}), seed=2).rows.tolist() != drawn.rows.tolist()


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    label = np.array(["a"] * 700 + ["b"] * 250 + ["c"] * 50)
    drawn = draw(examples(label), np.arange(1000), Sampling(balanced=True), seed=0)
    assert drawn.weight is not None
    np.testing.assert_allclose(drawn.weight, compute_sample_weight("balanced", label), rtol=1e-12)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(keep={"false": 0.05}),
        Sampling(weights={"true": 20.0}),
        Sampling(balanced=True),
        Sampling(keep={"false": 0.2, "true": 0.9}, weights={"false": 0.5, "true": 3.0}),
    ],
)
@pytest.mark.parametrize(
    "estimator",
    [
        lambda: LogisticRegression(C=1e6),
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=1e6)),
        lambda: lgb.LGBMClassifier(n_estimators=100, num_leaves=6, verbose=-1, n_jobs=1),
    ],
    ids=["linear", "pipeline", "trees"],
)
def test_probabilities_are_those_of_the_rows_as_they_were(sampling: Sampling, estimator: Any) -> None:
    matrix, label, _ = rare(60_000, seed=7)
    fresh, truth, probability = rare(60_000, seed=8)
    model, goal, _ = fitted(estimator(), matrix, label, sampling, Output())
    undone, distorted = predict(model, fresh, goal).score, predict(model, fresh, Goal()).score
    # The mean of 60,000 labels has a standard error of 0.0008, and so has what the model learnt of the other 60,000.
    assert abs(undone.mean() - truth.mean()) < 0.005
    assert distorted.mean() > 3 * truth.mean()
    assert np.abs(undone - probability).mean() < 0.015
    assert np.abs(distorted - probability).mean() > 0.1
    # As good as what is learnt from all the rows, where it matters too.
    whole, _, _ = fitted(estimator(), matrix, label, Sampling(), Output())
    plain = predict(whole, fresh, Goal()).score
    top = plain >= np.quantile(plain, 0.9)
    assert abs(undone[top].mean() - plain[top].mean()) < 0.02


def test_several_classes_are_undone() -> None:
    rng = np.random.default_rng(0)
    n = 40_000
    matrix = rng.normal(size=(n, 2)).astype(np.float32)
    logits = matrix @ np.array([[1.0, -0.5, 0.0], [0.0, 1.0, -1.0]]) + np.array([2.0, 0.0, -2.0])
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(["calm", "mild", "wild"])
    label = names[(rng.random(n)[:, None] > chance.cumsum(axis=1)).sum(axis=1)]
    output = Output(task="multiclass", classes=names.tolist(), names=names.tolist())
    for sampling in (Sampling(balanced=True), Sampling(keep={"calm": 0.1, "mild": 0.5})):
        model, goal, _ = fitted(LogisticRegression(C=1e6), matrix, label, sampling, output)
        values = predict(model, matrix, goal).values
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-12)
        shares = [(label == name).mean() for name in names]
        np.testing.assert_allclose(values.mean(axis=0), shares, atol=0.006)
        assert np.abs(values - chance).mean() < 0.01
        assert np.abs(predict(model, matrix, Goal(output=output)).values.mean(axis=0) - shares).max() > 0.15


def test_the_closed_form() -> None:
    # Dal Pozzolo et al. 2015, equation 4: p = beta * q / (beta * q - q + 1) with beta the share of negatives kept.
    label = [i % 5 == 0 for i in range(1000)]
    drawn = draw(examples(label), np.arange(1000), Sampling(keep={"false": 0.3}), seed=0)
    assert drawn.sampled is not None
    beta = drawn.sampled.sampled["false"] / drawn.sampled.available["false"]
    q = np.linspace(0, 1, 101)
    found = Goal(factors=factors(drawn.sampled, Output())).answers(q[:, None]).score
    np.testing.assert_allclose(found, beta * q / (beta * q - q + 1), rtol=1e-12, atol=1e-15)
    # Elkan 2001, theorem 2, base rates b (of the rows) and c (of what was fitted on).
    b, c = np.mean(label), np.mean(np.array(label)[drawn.rows])
    np.testing.assert_allclose(found, b * (q - q * c) / (c - q * c + b * q - b * c), rtol=1e-9, atol=1e-12)


def test_labels_that_are_not_there_and_too_small_a_sample_are_refused() -> None:
    label = [i % 4 == 0 for i in range(400)]
    with pytest.raises(DeclarationInvalid, match=r"keep\.no: no training example has this label; there is false 300, true 100"):
        draw(examples(label), np.arange(400), Sampling(keep={"no": 0.5}), seed=0)
    with pytest.raises(ExamplesRefused, match="some of each label"):
        draw(examples(label), np.arange(400), Sampling(keep={"true": 1e-9}), seed=0)
    with pytest.raises(DeclarationInvalid, match="binary and multiclass only"):
        draw(examples([0.1, 0.2] * 50), np.arange(100), Sampling(balanced=True), seed=0)


def test_an_estimator_that_weighs_labels_itself_is_refused() -> None:
    refused = [
        LogisticRegression(class_weight="balanced"),
        make_pipeline(StandardScaler(), LogisticRegression(class_weight={0: 1, 1: 5})),
        VotingClassifier([("a", RandomForestClassifier(class_weight="balanced")), ("b", LogisticRegression())]),
        lgb.LGBMClassifier(is_unbalance=True),
        lgb.LGBMClassifier(scale_pos_weight=3.0),
    ]
    for estimator in refused:
        with pytest.raises(DeclarationInvalid, match=r"distorts the probabilities.*Loop\(sampling=Sampling\(balanced=True\)\)"):
            refuse_weights_of_its_own("c", estimator, weighed=False)
    for estimator in (
        LogisticRegression(),
        lgb.LGBMClassifier(scale_pos_weight=1.0, is_unbalance=False),
        CalibratedClassifierCV(make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))),
        KNeighborsClassifier(),
    ):
        refuse_weights_of_its_own("c", estimator, weighed=False)


def test_an_estimator_that_takes_no_weights_is_refused_where_there_are_some() -> None:
    with pytest.raises(DeclarationInvalid, match="KNeighborsClassifier takes no weights"):
        refuse_weights_of_its_own("c", make_pipeline(StandardScaler(), KNeighborsClassifier()), weighed=True)
    refuse_weights_of_its_own("c", make_pipeline(StandardScaler(), LogisticRegression()), weighed=True)
    refuse_weights_of_its_own("c", VotingClassifier([("b", LogisticRegression())]), weighed=True)


def test_every_server_of_the_package_gives_the_probabilities_of_real_traffic(tmp_path: Path) -> None:
    home, rows = home_in(tmp_path), table(6000)
    candidates = [
        Candidate("simple", lambda: make_pipeline(StandardScaler(), LogisticRegression())),
        Candidate(
            "boosted",
            lambda trial: lgb.LGBMClassifier(
                n_estimators=40, num_leaves=trial.suggest_int("num_leaves", 4, 7), verbose=-1, n_jobs=1
            ),
            phase=3,
            encoding="ordinal",
            trials=2,
        ),
    ]
    sampling = Sampling(keep={"false": 0.3}, weights={"true": 2.0})
    split = StratifiedSplit(validation=0.4)
    board = run(home, rows, candidates=candidates, sampling=sampling, split=split, seed=4)
    file = home.folder("examples") / f"{home.packages.read(board.winner).manifest.training.examples}.parquet"
    rows = pq.read_table(file)
    divided = divide(rows, split, seed=4)
    drawn = draw(rows, divided.training, sampling, seed=4)
    judged = rows.take(pa.array(divided.validation))
    for line in board.rows:
        package = home.packages.read(line.package)
        score = Graph(package.files["model.onnx"]).run(arrow_feed(Graph(package.files["model.onnx"]), package.columns, judged))
        # Known by the examples file alone: which rows trained, which validated, and that they share nothing.
        assert package.manifest.split == divided.partition
        assert set(divided.partition.overlap.values()) == {0}
        if line.candidate == "heuristic":
            assert package.manifest.sampling is None
            continue
        assert package.manifest.sampling == drawn.sampled
        assert abs(score["score"].mean() - np.mean(judged.column("_label").to_pylist())) < 0.03
        assert package.manifest.conversion.max_difference <= 1e-6
        assert f"{len(drawn.rows):,} of {len(divided.training):,}" in package.files["card.md"].decode()
    # The graph is the closed form of what the same estimator, fitted on the same rows, says.
    package = home.packages.read(next(r.package for r in board.rows if r.candidate == "simple"))
    graph = Graph(package.files["model.onnx"])
    found = graph.run(arrow_feed(graph, package.columns, rows))
    label = np.array(rows.column("_label").to_pylist())
    model = make_pipeline(StandardScaler(), LogisticRegression(random_state=4))
    weight = np.where(label, 2.0, 1.0)[drawn.rows]
    model.fit(found["features"][drawn.rows], label[drawn.rows], logisticregression__sample_weight=weight)
    q = model.predict_proba(found["features"])[:, 1]
    assert drawn.sampled is not None
    beta = drawn.sampled.sampled["false"] / drawn.sampled.available["false"] / 2
    np.testing.assert_allclose(found["score"], beta * q / (beta * q - q + 1), atol=2e-6)
    home.close()


def test_what_a_sampling_cannot_do_is_said_before_anything_is_fitted(tmp_path: Path) -> None:
    home, rows = home_in(tmp_path), table(600)
    heavy = [Candidate("own-weights", lambda: LogisticRegression(class_weight="balanced"))]
    with pytest.raises(DeclarationInvalid, match=r"(?s)own-weights.*class_weight='balanced' distorts"):
        run(home, rows, candidates=heavy)
    with pytest.raises(DeclarationInvalid, match="takes no weights"):
        run(
            home,
            rows,
            candidates=[Candidate("near", lambda: make_pipeline(KNeighborsClassifier()))],
            sampling=Sampling(balanced=True),
        )
    home.close()
