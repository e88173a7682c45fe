"""Identifiers: prediction ids, digests and names.

A prediction's id is a valid W3C trace id (https://www.w3.org/TR/trace-context/): 32 lowercase hexadecimal digits,
not all zero. Like a UUIDv7 (RFC 9562) it begins with 48 bits of Unix time in milliseconds, so ids sort by time.
"""

import hashlib
import os
import re
from datetime import UTC, datetime, timedelta

from loopwright.base.errors import NameInvalid

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")


def new_id(at: datetime) -> str:
    """A fresh id for the moment `at` (zone-aware): 12 hex digits of milliseconds, then 80 random bits."""
    return f"{(at - _EPOCH) // _MILLISECOND:012x}{os.urandom(10).hex()}"


def new_ids(at: datetime, count: int) -> list[str]:
    """`count` fresh ids for one moment (zone-aware), in no particular order."""
    if count == 1:
        return [new_id(at)]
    prefix = f"{(at - _EPOCH) // _MILLISECOND:012x}"
    noise = os.urandom(10 * count).hex()
    return [prefix + noise[20 * i : 20 * i + 20] for i in range(count)]


def time_of(id: str) -> datetime:
    """The moment an id was made, to the millisecond (UTC)."""
    return _EPOCH + int(id[:12], 16) * _MILLISECOND


def is_trace_id(text: str) -> bool:
    """Whether `text` is a valid W3C trace id."""
    return TRACE_ID.fullmatch(text) is not None


def span_id(id: str) -> str:
    """The span id of the server's answer to prediction `id`, a W3C parent id: the same in all outputs."""
    return hashlib.sha256(id.encode()).hexdigest()[:16]


def trace_id_of(text: str) -> str:
    """The prediction id for a request id `text`: itself if it is a trace id or a UUID, else a digest of it."""
    low = text.lower()
    bare = low.replace("-", "") if _UUID.fullmatch(low) else low
    return bare if is_trace_id(bare) else digest(text.encode(errors="replace"))[:32]


def digest(data: bytes) -> str:
    """SHA-256 of `data` in lowercase hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def scoped_name(scope: str, name: str) -> str:
    """`scope.name`, a valid name for something that belongs to `name`; a digest replaces it where that would be too long."""
    whole = f"{scope}.{name}"
    return whole if NAME.fullmatch(whole) else f"{scope}.{digest(name.encode())[:48]}"


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it is valid (`^[a-z0-9][a-z0-9._-]{0,63}$`), else raise NameInvalid."""
    if not NAME.fullmatch(name):
        raise NameInvalid(what, name)
    return name


def sampling_bound(share: float) -> str:
    """The last 16 digits of a trace id are below it for so large a share of them, as OpenTelemetry's TraceIdRatioBased samples."""
    bound = round(share * 2**64)
    return f"{bound:016x}" if bound < 2**64 else "g"  # beyond all digits
