import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores.prediction_log.samples import outcome, prediction

from loopwright.base.errors import Damaged
from loopwright.records.prediction import Prediction
from loopwright.stores.prediction_log.segment import (
    FOOTER,
    HEADER,
    VERSION,
    LogSegment,
    file_name,
    footer,
    frame,
    header,
    parse_name,
    parse_segment,
    read_segment,
    seed,
)

WRITER = "0123456789abcdef" * 2
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    st.lists,
    max_leaves=5,
)


def framed(records: Sequence[object], *, number: int = 0, first: int = 0, sealed: bool = True, final: bool = True) -> bytes:
    start = seed(WRITER, number)
    body = b"".join(frame(start, first + i, msgspec.msgpack.encode(r)) for i, r in enumerate(records))
    end = footer(len(records), first, first + max(len(records) - 1, 0), zlib.crc32(body), final=final) if sealed else b""
    return header("predictions", WRITER, number) + body + end


def parsed(data: bytes, state: str = "sealed", *, number: int = 0) -> LogSegment:
    path = Path(file_name(WRITER, number, state))
    name = parse_name(path.name)
    assert name is not None
    return parse_segment(data, path, name, "predictions")


SAMPLE = [prediction(i) for i in range(6)]
SEALED = framed(SAMPLE, first=250)
OPEN = framed(SAMPLE, first=250, sealed=False)
BOUNDS = [HEADER.size, *(f.end for f in parsed(OPEN, "open").frames)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=8), st.integers(0, 2**48 - 100), st.booleans())
def test_records_come_back_as_they_were(requests: list[dict[str, object]], first: int, sealed: bool) -> None:
    records = [prediction(i, request=request) for i, request in enumerate(requests)]
    segment = parsed(framed(records, first=first, sealed=sealed), "sealed" if sealed else "open")
    assert segment.records == records
    assert segment.problems == []
    assert segment.torn is None
    assert [f.sequence for f in segment.frames] == list(range(first, first + len(records)))


@pytest.mark.parametrize(("data", "state"), [(SEALED, "sealed"), (OPEN, "open")])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_flip_is_found_and_its_neighbours_are_kept(data: bytes, state: str, bit: int) -> None:
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= bit
        segment = parsed(bytes(flipped), state)
        assert segment.problems, f"flip at byte {place} was not found"
        hit = next((i for i in range(len(SAMPLE)) if BOUNDS[i] <= place < BOUNDS[i + 1]), None)
        assert segment.records == [r for i, r in enumerate(SAMPLE) if i != hit], f"flip at byte {place} cost a neighbour"


def test_truncation_of_a_sealed_segment_is_found_everywhere() -> None:
    for size in range(len(SEALED)):
        segment = parsed(SEALED[:size])
        assert segment.problems, f"cut at {size} was not found"
        assert segment.records == SAMPLE[: sum(bound <= size for bound in BOUNDS[1:])]


def test_an_open_segment_cut_short_has_a_torn_tail_and_no_damage() -> None:
    for size in range(HEADER.size, len(OPEN)):
        segment = parsed(OPEN[:size], "open")
        whole = sum(bound <= size for bound in BOUNDS[1:])
        assert segment.problems == []
        assert segment.records == SAMPLE[:whole]
        assert segment.torn == (None if size in BOUNDS else BOUNDS[whole])


def test_zeros_at_the_end_of_an_open_segment_were_never_written() -> None:
    segment = parsed(OPEN + bytes(5000), "open")
    assert (segment.records, segment.problems, segment.torn) == (SAMPLE, [], len(OPEN))
    assert parsed(SEALED + bytes(50)).problems
    assert parsed(OPEN[: BOUNDS[3] + 20] + bytes(5000), "open").problems, "a record that was begun may have been answered"


def test_a_footer_cut_short_is_a_torn_tail() -> None:
    for size in range(len(OPEN) + 1, len(SEALED)):
        segment = parsed(SEALED[:size], "open")
        assert (segment.records, segment.problems, segment.torn) == (SAMPLE, [], len(OPEN))
    assert parsed(SEALED, "open").footer is not None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_lost_or_overwritten_anywhere_cost_only_the_records_they_touch(data: st.DataObject) -> None:
    low = data.draw(st.integers(HEADER.size, len(OPEN) - 1))
    high = data.draw(st.integers(low + 1, min(len(OPEN), low + 600)))
    fill = data.draw(
        st.sampled_from([b"", b"\0" * (high - low), os.urandom(high - low), OPEN[HEADER.size : HEADER.size + high - low]])
    )
    segment = parsed(SEALED[:low] + fill + SEALED[high:])
    untouched = [r for i, r in enumerate(SAMPLE) if BOUNDS[i + 1] <= low or BOUNDS[i] >= high]
    assert [r for r in segment.records if r in untouched] == untouched
    assert all(r in SAMPLE for r in segment.records)
    assert segment.problems or SEALED[:low] + fill + SEALED[high:] == SEALED


def test_a_record_inside_a_clients_string_never_becomes_a_record() -> None:
    forged = frame(seed("f" * 32, 0), 1, msgspec.msgpack.encode(prediction(9))).decode("latin-1")
    records = [prediction(0), prediction(1, request={"text": forged * 3}), prediction(2)]
    data = bytearray(framed(records))
    data[parsed(bytes(data)).frames[1].start + 20] ^= 1
    assert parsed(bytes(data)).records == [records[0], records[2]]


def test_a_doubled_record_is_one_record_and_a_problem() -> None:
    frames = parsed(OPEN, "open").frames
    segment = parsed(OPEN + OPEN[frames[2].start : frames[2].end], "open")
    assert segment.records == SAMPLE
    assert "record 252 follows record 255" in segment.problems[0].what


def test_a_segment_under_another_name_is_found() -> None:
    segment = parsed(SEALED, number=1)
    assert segment.number == 0
    assert "doubled or renamed" in segment.problems[0].what


def test_what_is_no_record_of_the_kind_is_named() -> None:
    data = framed([prediction(0), outcome(1), prediction(2)])
    segment = parsed(data)
    assert len(segment.records) == 2
    assert "record 1 is whole but not one of predictions" in segment.problems[0].what


def test_another_versions_segment_is_refused() -> None:
    head = HEADER.pack(b"LWSG", VERSION + 1, 1, bytes.fromhex(WRITER), 0, 0)[:-4]
    with pytest.raises(Damaged, match=f"format {VERSION + 1}"):
        parsed(head + zlib.crc32(head).to_bytes(4) + SEALED[HEADER.size :])


def test_reading_a_file_that_is_no_segment(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="not the name of a segment"):
        read_segment(tmp_path / "notes.txt", "predictions")
    with pytest.raises(FileNotFoundError):
        read_segment(tmp_path / file_name(WRITER, 0, "open"), "predictions")


def test_sizes_are_those_of_the_documented_format() -> None:
    assert (HEADER.size, FOOTER.size) == (36, 44)
    assert isinstance(parsed(SEALED).records[0], Prediction)
