from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.base.errors import UsageError
from loopwright.records.entries import Record, Untyped
from loopwright.stores.ledger.coding import decode, encode


class Anything(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = "anything"
    value: Any
    numbers: dict[int, float] = {}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALAR = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXT
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


@given(VALUE, st.dictionaries(st.integers(-9, 9), st.floats(), max_size=3))
def test_whatever_json_can_hold_comes_back(value: Any, numbers: dict[int, float]) -> None:
    record = Anything(value=value, numbers=numbers)
    text = encode(record)
    assert repr(decode(text, Anything, "id")) == repr(record)  # repr: NaN equals itself, and 0.0 is not -0.0
    assert repr(decode(text, Untyped, "id").fields["value"]) == repr(value)


@given(VALUE)
def test_the_text_is_strict_json(value: Any) -> None:
    msgspec.json.decode(encode(Anything(value=value)))
    assert "NaN" not in encode(Anything(value=float("nan")))


def test_only_a_marked_number_is_one() -> None:
    for value in ({"$float": "nan", "b": 1}, {"$float": 3}, {"$float": "much"}, ["nan"], "inf"):
        assert decode(encode(Anything(value=value)), Anything, "id").value == value


def test_a_record_too_deep_is_refused() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        encode(Anything(value=value))
