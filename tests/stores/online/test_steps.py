"""The bytes of a key's steps: whatever is packed is found again at each moment, and nothing else is taken for it."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.base.errors import Damaged
from loopwright.stores.online.steps import OnlineStep, Steps, key_of, pack

MOMENT = st.integers(-(2**62), 2**62)
VALUE = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)


@given(st.dictionaries(MOMENT, st.tuples(st.none() | MOMENT, VALUE, VALUE), max_size=20), st.lists(MOMENT, max_size=20))
def test_what_is_in_force_is_the_last_step_not_after_the_moment(steps: dict[int, tuple[object, ...]], asked: list[int]) -> None:
    moments = sorted(steps)
    found = Steps(pack(moments, [steps[m] for m in moments]))
    for at in [*asked, *moments, *(m - 1 for m in moments)]:
        last = max((m for m in moments if m <= at), default=None)
        wanted = None if last is None else OnlineStep(steps[last][0], list(steps[last][1:]))  # type: ignore[arg-type]  # an int or None
        assert found.at(at) == wanted


def test_arrays_and_timestamps_are_values_too() -> None:
    assert Steps(pack([0], [[None, [1.5, 2.0], 10**15]])).at(1) == OnlineStep(None, [[1.5, 2.0], 10**15])


@pytest.mark.parametrize("cut", [0, 3, 4, 11, 12, 15, 17])
def test_bytes_that_were_cut_are_damaged(cut: int) -> None:
    data = pack([5], [[None, 1.0]])
    with pytest.raises(Damaged):
        Steps(data[:cut]).at(5)


def test_bytes_that_were_changed_are_damaged_or_at_least_no_other_error() -> None:
    data = pack([1, 2, 3], [[None, "a"], [7, "b"], [None, 1.5]])
    for i in range(len(data)):
        broken = bytearray(data)
        broken[i] ^= 0xFF
        with suppress(Damaged):
            Steps(bytes(broken)).at(2)


def test_keys_of_several_parts_do_not_collide_and_null_equals_nothing() -> None:
    assert key_of(["JFK"]) == "JFK"
    assert key_of([3, True]) == "3|True"
    assert key_of(["a|b"]) == "a|b"
    assert len({key_of(k) for k in (["a|b", "c"], ["a", "b|c"], ["a\\", "b"], ["a", "\\b"], ["a\\|b", "c"])}) == 5
    assert key_of([None]) is key_of(["a", None]) is None
    assert key_of(["None"]) == "None"
