"""The steps of one key as bytes: which values were in force from which moment on.

    number of steps      uint32
    moments              int64 each, ascending, microseconds since 1970 (UTC)
    ends of the rows     uint32 each, counted from the beginning of the rows
    rows                 msgpack: [event time or null, value, value, ...]

All little-endian. A look-up decodes one row, however many steps there are.
"""

import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from loopwright.base.errors import Damaged
from loopwright.records.prediction import unit_text

FRESH_SECONDS = 0.05
"""Time that a reader uses its cache before it checks for writes of other processes."""

CACHED_KEYS = 200_000
"""Maximum number of cached keys."""

Items = Iterable[tuple[str, bytes]]
"""Keys with their packed steps."""

_COUNT, _ENDS = struct.Struct("<I"), struct.Struct("<II")
_EVER = 2**63
_DAMAGED = "the steps of a key are not what was packed"

_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[Any]).decode


class Fed(msgspec.Struct, frozen=True):
    """The state of a store: the table's `version`, valid for decisions from `since` on, with all rows known `until` a moment."""

    version: int
    since: int
    until: int


class OnlineStep(NamedTuple):
    """The step in force: the event time of its row (None for an aggregate), and the values."""

    event_at: int | None
    values: list[Any]


class Steps:
    """Packed steps, ready to search. Raises Damaged when the bytes are invalid."""

    __slots__ = ("_data", "_last", "_moments")

    def __init__(self, data: bytes) -> None:
        try:
            (count,) = _COUNT.unpack_from(data)
            self._moments = memoryview(data)[4 : 4 + 8 * count].cast("q")
            (end,) = _COUNT.unpack_from(data, 12 * count) if count else (0,)
        except (struct.error, TypeError) as error:
            raise Damaged(_DAMAGED) from error
        if 4 + 12 * count + end != len(data):
            raise Damaged(_DAMAGED)
        self._data = data
        self._last: tuple[int, int, OnlineStep | None] = (0, 0, None)

    def at(self, moment: int) -> OnlineStep | None:
        """The step in force at a moment; None before the first."""
        begin, end, step = self._last
        if begin <= moment < end:
            return step
        moments = self._moments
        i = bisect_right(moments, moment) - 1
        if i < 0:
            return None
        begin, until = moments[i], moments[i + 1] if i + 1 < len(moments) else _EVER
        count, data = len(self._moments), self._data
        start, end = _ENDS.unpack_from(data, 8 * count + 4 * i) if i else (0, _COUNT.unpack_from(data, 4 + 8 * count)[0])
        rows = 4 + 12 * count
        try:
            values = _decode(data[rows + start : rows + end])
            step = OnlineStep(values.pop(0), values)
        except (msgspec.DecodeError, ValueError, IndexError) as error:
            raise Damaged(_DAMAGED) from error
        self._last = (begin, until, step)
        return step


def pack(moments: Sequence[int], rows: Sequence[Sequence[Any]]) -> bytes:
    """Steps as bytes: `rows` are the event time (None for an aggregate) and the values from each of `moments` on."""
    assert sys.byteorder == "little", "what is read in place is little-endian"
    encoded = [_encode(row) for row in rows]
    ends, end = [], 0
    for row in encoded:
        end += len(row)
        ends.append(end)
    count = len(moments)
    return struct.pack(f"<I{count}q{count}I", count, *moments, *ends) + b"".join(encoded)


def key_of(values: Sequence[Any]) -> str | None:
    """The key of a row as text, see `unit_text`; None if a part is null, which equals nothing."""
    return None if None in values else unit_text(values)
