import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.base.errors import NameInvalid
from loopwright.base.ids import check_name, digest, is_trace_id, new_id, new_ids, time_of, trace_id_of

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-5))])
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001


@given(MOMENTS)
def test_an_id_is_a_w3c_trace_id_that_tells_its_moment(at: datetime) -> None:
    id = new_id(at)
    assert re.fullmatch("[0-9a-f]{32}", id)
    assert is_trace_id(id)
    assert time_of(id) == at.replace(microsecond=at.microsecond // 1000 * 1000)


@given(st.lists(MOMENTS, min_size=2, max_size=20))
def test_ids_sort_by_time(moments: list[datetime]) -> None:
    ids = sorted(new_id(at) for at in moments)
    assert all(time_of(a) <= time_of(b) for a, b in pairwise(ids))
    assert [time_of(id) for id in ids] == sorted(at.replace(microsecond=at.microsecond // 1000 * 1000) for at in moments)


def test_many_ids_of_one_moment_are_all_different() -> None:
    at = datetime(2013, 4, 1, tzinfo=UTC)
    ids = new_ids(at, 10_000)
    assert len(set(ids)) == 10_000
    assert {time_of(id) for id in ids} == {at}
    assert all(map(is_trace_id, ids))
    assert new_ids(at, 0) == []
    assert len({id[12:14] for id in ids}) == 256  # the rest is random


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        new_id(datetime(2013, 4, 1))  # noqa: DTZ001


@pytest.mark.parametrize("text", ["", "0" * 32, "A" * 32, "1" * 31, "1" * 33, "1" * 32 + "\n", "g" * 32, "\u0661" * 32])
def test_what_is_no_trace_id(text: str) -> None:
    assert not is_trace_id(text)


def test_a_digest_is_sha256() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["a", "0", "late-arrival", "a.b_c-d", "x" * 64])
def test_lawful_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "_a", "A", "a b", "a/b", "a\\b", "a\0", "a\n", "x" * 65, "%2e%2e", "é", "а", "..%2f", "x" * 10_000],
)
def test_unlawful_names_are_refused_and_told_shortened(name: str) -> None:
    with pytest.raises(NameInvalid, match="loop") as caught:
        check_name(name, "loop")
    assert caught.value.name == name
    assert len(str(caught.value)) < 600


def test_what_a_request_was_called_leads_to_the_id_of_its_prediction() -> None:
    id = "019234a1b2c36f0d8e7f5a4b3c2d1e0f"
    assert [trace_id_of(t) for t in (id, id.upper(), "019234a1-b2c3-6f0d-8e7f-5a4b3c2d1e0f")] == [id] * 3
    assert trace_id_of("order-17") == digest(b"order-17")[:32] != trace_id_of("order-18")
    assert is_trace_id(trace_id_of("0" * 32))
