"""The one-line feature test that users write, on loops as they write them."""

import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import ndonnx as ndx
import ndonnx.extensions as nde
import numpy as np
import pytest
from tests.test_loop import REQUESTS, declared

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import Column, Loop
from loopwright.testing import features_of


def features(f: Any) -> dict[str, Any]:
    return {
        "tenth": f.amount / 10,
        "large": f.amount > 100,
        "shop": f.shop,
        "rating": f.rating,
        "rating_or_3": nde.fill_null(f.rating, 3.0),
        "hour": (ndx.astype(f.at, ndx.int64) // 3_600_000_000) % 24,
        "root": ndx.sqrt(f.amount),
    }


@pytest.fixture
def loop() -> Loop:
    return declared(features=features)


AT = datetime(2024, 5, 1, 7, 30, tzinfo=UTC)


def test_features_are_what_the_function_says(loop: Loop) -> None:
    found = features_of(loop, {"amount": 0.3, "shop": "north", "at": AT})
    assert list(found) == ["tenth", "large", "shop", "rating", "rating_or_3", "hour", "root"]
    assert found["tenth"] == 0.03  # not what float32 makes of it
    assert found["large"] is False
    assert found["shop"] == "north"
    assert found["rating"] is None  # context is nullable, and was not given
    assert found["rating_or_3"] == 3.0
    assert found["hour"] == 7
    assert type(found["hour"]) is int
    assert math.isnan(features_of(loop, {"amount": -1, "shop": "", "at": AT})["root"])
    assert features_of(loop, {"amount": np.float64(4), "shop": "", "at": AT, "rating": 2})["rating"] == 2.0


@pytest.mark.parametrize(
    "at", [AT, AT.astimezone(timezone(timedelta(hours=-4))), "2024-05-01T07:30:00Z", "2024-05-01T03:30:00-04:00"]
)
def test_a_moment_is_written_as_one_likes(loop: Loop, at: Any) -> None:
    assert features_of(loop, {"amount": 1.0, "shop": "", "at": at})["hour"] == 7


def test_a_column_with_a_zone_takes_local_time() -> None:
    zoned = msgspec.structs.replace(REQUESTS, columns={**REQUESTS.columns, "at": Column("timestamp", zone="America/New_York")})
    loop = declared(features=features, requests=zoned)
    assert features_of(loop, {"amount": 1.0, "shop": "", "at": "2024-05-01T03:30:00"})["hour"] == 7


def test_every_wrong_column_is_named(loop: Loop) -> None:
    with pytest.raises(DeclarationInvalid) as caught:
        features_of(loop, {"amout": 1.0, "shop": 7, "at": "2024-05-01T07:30:00"})
    reasons = {p.field: p.reason for p in caught.value.problems}
    assert sorted(reasons) == ["amount", "amout", "at", "shop"]
    assert reasons["amout"].startswith("no such column; there is amount")
    assert reasons["amount"] == "not given, and it cannot be null"
    assert reasons["shop"] == "7 is no string"
    assert "has no zone" in reasons["at"]
    with pytest.raises(DeclarationInvalid, match="amount: null, and the contract does not allow it"):
        features_of(loop, {"amount": None, "shop": "", "at": AT})
    with pytest.raises(DeclarationInvalid, match="amount: True is no float"):
        features_of(loop, {"amount": True, "shop": "", "at": AT})
    with pytest.raises(DeclarationInvalid, match="at: 20240501 is not a time"):
        features_of(loop, {"amount": 1.0, "shop": "", "at": 20240501})


def test_arrays_are_nested_lists_or_numpy() -> None:
    arrays = {"image": Column("array", shape=[2, 3]), "embedding": Column("array", shape=[2], nullable=True)}
    loop = declared(
        requests=msgspec.structs.replace(REQUESTS, columns={**REQUESTS.columns, **arrays}),
        features=lambda f: {"bright": ndx.mean(f.image, axis=(1, 2)), "top": f.image[:, 0, :], "embedding": f.embedding},
    )
    made = {"bright": 3.5, "top": [1.0, 2.0, 3.0], "embedding": None}
    assert features_of(loop, {"image": [[1, 2, 3], [4, 5, 6]]}) == made
    assert features_of(loop, {"image": np.arange(1, 7).reshape(2, 3), "embedding": [0.5, 1]}) == made | {
        "embedding": [0.5, 1.0]
    }
    for wrong, why in (
        ([[1, 2], [3, 4]], r"image: has shape \[2, 2\], not \[2, 3\]"),
        ([[1, 2, 3], [4, 5]], r"image: is not numbers in the shape \[2, 3\]"),
        ("bright", "image: is not numbers"),
        ([[1, 2, None], [4, 5, 6]], "image: contains a value that is not a number"),
    ):
        with pytest.raises(DeclarationInvalid, match=why):
            features_of(loop, {"image": wrong})


def test_what_no_feature_uses_need_not_be_given() -> None:
    loop = declared(features=lambda f: {"tenth": f.amount / 10})
    assert features_of(loop, {"amount": 5.0}) == {"tenth": 0.5}


def test_a_loop_is_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(
        "from loopwright import Candidate, Column, Heuristic, Loop, Objective, Outcome, Scope, Table\n"
        "t = Table('orders', {'order': Column('string'), 'at': Column('timestamp'), 'amount': Column('float')}, ['order'], 'at')\n"
        "o = Table('returns', {'order': Column('string'), 'at': Column('timestamp'), 'returned': Column('boolean')}, ['order'], 'at')\n"
        "loop = Loop(name='returns', requests=t, outcome=Outcome(o, 'returned'), features=lambda f: {'half': f.amount / 2},\n"
        "    candidates=[Candidate('simple', lambda: None)],\n"
        "    scope=Scope(problem='p', heuristic=Heuristic(lambda f: f.amount > 1),\n"
        "                objectives=[Objective('a', 'b', 'recall', at_least=0.5)]))\n"
    )
    assert features_of(tmp_path, {"amount": 5.0}) == features_of(str(tmp_path / "loop.py"), {"amount": 5.0}) == {"half": 2.5}
