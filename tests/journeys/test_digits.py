"""A loop over images, a nullable embedding and local time: from ingestion to a package that answers, is logged and watched."""

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from loopwright import (
    Candidate,
    Column,
    Heuristic,
    Home,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Retrain,
    Scope,
    Table,
    TimeSplit,
)
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import RequestInvalid
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.predictor import Predictor
from loopwright.features import is_null, local_time
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.windows import Window
from loopwright.replay import replay
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import predictions

BEGIN = dt.datetime(2024, 2, 1, tzinfo=dt.UTC)
START, END = BEGIN + dt.timedelta(days=42), BEGIN + dt.timedelta(days=56)  # over the spring change of clocks
ROWS = 1400

ASKED = Table(
    "scans",
    {
        "id": Column("string"),
        "at": Column("timestamp", zone="America/New_York"),
        "image": Column("array", shape=[8, 8]),
        "around": Column("array", shape=[3], nullable=True, description="the neighbours' brightness, where there are some"),
        "desk": Column("string", categories=["south", "north", "closed"]),
    },
    key=["id"],
    event_time="at",
)
READ = Table(
    "read", {"id": Column("string"), "known": Column("timestamp"), "digit": Column("integer")}, key=["id"], event_time="known"
)


def features(f: Any) -> dict[str, Any]:
    """Pixels, parts of an image, an array that may be null, and the hour at the desk."""
    around = nde.fill_null(f.around, 0.0)
    return {
        "pixels": f.image,
        "bright": ndx.mean(f.image, axis=(1, 2)),
        "top": ndx.max(f.image[:, :2, :], axis=(1, 2)),
        "around": around,
        "widest": ndx.max(around, axis=1) - ndx.min(around, axis=1),
        "alone": is_null(f.around),
        "hour": local_time(f.at, "America/New_York").hour,
        "desk": f.desk,
    }


LOOP = Loop(
    name="digits",
    scope=Scope(
        problem="Tell high digits from low ones.",
        objectives=[Objective("right", owner="post", metric="roc_auc", at_least=0.8)],
        heuristic=Heuristic(lambda f: ndx.mean(f.image, axis=(1, 2)) > 5.0),
    ),
    requests=ASKED,
    outcome=Outcome(READ, "digit >= 5", wait="3d"),
    features=features,
    candidates=[Candidate("logistic", lambda: LogisticRegression(max_iter=2000))],
    split=TimeSplit(validation="7d"),
    monitor=Monitor(every="7d", minimum_rows=50),
    retrain=Retrain(),
)


def rows() -> tuple[pa.Table, pa.Table]:
    """Scans and what they turned out to be; the embedding is null for every fourth."""
    rng = np.random.default_rng(0)
    images, digits = load_digits(return_X_y=True)
    at = [BEGIN + dt.timedelta(hours=i * 56 * 24 / ROWS) for i in range(ROWS)]
    ids = [f"s{i:05d}" for i in range(ROWS)]
    around = [None if i % 4 == 0 else rng.normal(size=3).astype(np.float32).tolist() for i in range(ROWS)]
    asked = {
        "id": ids,
        "at": at,
        "image": pa.array(images[:ROWS].astype(np.float32).reshape(ROWS, 64).tolist(), pa.list_(pa.float32())),
        "around": pa.array(around, pa.list_(pa.float32())),
        "desk": rng.choice(["south", "north"], ROWS).tolist(),
    }
    known = [t + dt.timedelta(hours=20) for t in at]
    return pa.table(asked), pa.table({"id": ids, "known": known, "digit": digits[:ROWS]})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with Home(Settings(home=tmp_path_factory.mktemp("digits"), by="tests"), SimulatedClock(START)) as made:
        asked, read = rows()
        ingest(made, ASKED, asked)
        ingest(made, READ, read)
        replay(made, LOOP, start=START, end=END)
        yield made


def served(home: Home) -> Predictor:
    table = predictions(home, "digits")
    assert len(table) > 300
    return Predictor(open_probed(home.packages, table["_package"][0].as_py()), home.online, home.clock)


def test_features_have_a_column_for_each_number(home: Home) -> None:
    names = served(home).package.manifest.features
    assert names[:2] == ["pixels.0", "pixels.1"]
    assert names[64:70] == ["bright", "top", "around.0", "around.1", "around.2", "widest"]
    assert names[-3:] == ["desk=south", "desk=north", "desk=closed"]  # in the order of the contract, also what never came


def test_live_answers_are_those_of_the_tables(home: Home) -> None:
    table, predictor = predictions(home, "digits"), served(home)
    assert table["image"].type == pa.list_(pa.float32())
    model = Graph(predictor.package.files["model.onnx"])
    found = model.run(arrow_feed(model, LOOP.columns, table))
    np.testing.assert_allclose(found["score"], table["_score"].to_numpy(), atol=1e-6)
    hour = predictor.package.manifest.features.index("hour")
    new_york = [t.astimezone(ZoneInfo("America/New_York")).hour for t in table["at"].to_pylist()]
    assert found["features"][:, hour].tolist() == new_york


def test_a_request_is_nested_lists_of_exactly_the_shape(home: Home) -> None:
    predictor = served(home)
    decode = Decoder(LOOP.requests.columns, optional=["at"])
    image = load_digits().images[3].tolist()
    body = {"id": "x", "image": image, "around": [1, 2, 3], "desk": "north"}
    [one] = predictor.answer(decode(json.dumps(body).encode()).rows)
    [none] = predictor.answer(decode(json.dumps({**body, "around": None}).encode()).rows)
    assert 0 <= one.score <= 1
    assert one.request["image"] == np.ravel(image).tolist()
    assert none.request["around"] is None
    assert one.score != none.score
    for wrong, why in (
        (np.arange(63).tolist(), r"shape \[8, 8\].*not of shape \[63\]"),
        ([*image[:7], [1, 2]], "not ragged lists of 2 and 8"),
        ([*image[:7], ["a"] * 8], "not lists with text in them"),
    ):
        with pytest.raises(RequestInvalid, match=why):
            decode(json.dumps({**body, "image": wrong}).encode())


def test_arrays_are_watched_by_their_means(home: Home) -> None:
    windows = [stored.record for stored in home.ledger.find(Window, loop="digits")]
    seen = [c for w in windows if w.rows for c in w.columns if c.column in ("image", "around")]
    assert {c.column for c in seen} == {"image", "around"}
    assert all(c.mean is not None and c.psi is not None for c in seen)
    assert all(0.1 < c.missing < 0.4 for c in seen if c.column == "around")
