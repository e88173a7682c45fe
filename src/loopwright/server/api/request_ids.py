"""Prediction ids and options from the headers of a request, or the metadata of a call."""

import hashlib
import re
from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from loopwright.base.errors import RequestInvalid, RequestMalformed
from loopwright.base.ids import trace_id_of
from loopwright.deploy.serving.engine import PredictionRequest
from loopwright.server.api.spans import parent

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Id(NamedTuple):
    """The id of a request: a trace id, and whether the client insists on it (X-Request-Id) or merely passes it on (traceparent)."""

    id: str
    exact: bool


def ask(rows: list[dict[str, Any]], id: Id | None, until: float = inf) -> PredictionRequest:
    """The rows of a request with the ids that its client gave them, and when the heuristic is to answer (`deadline`)."""
    return (
        PredictionRequest(rows, until=until)
        if id is None
        else PredictionRequest(rows, _row_ids(id.id, len(rows)), id.exact, until, id.id)
    )


def deadline(headers: Mapping[bytes, bytes], started: float, seconds: float) -> float:
    """Deadline of a request that arrived at `started`: after `seconds`, or after X-Timeout-Ms if that is less.

    Raises RequestMalformed if the header is not a number of milliseconds.
    """
    given = headers.get(b"x-timeout-ms")
    if given is None:
        return started + seconds
    if not (given.isdigit() and len(given) <= 9):
        raise RequestMalformed("X-Timeout-Ms must be a number of milliseconds")
    return started + min(seconds, int(given) / 1000)


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The X-Request-Id header, empty if missing, or if it could not be sent back."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else ""


def client_id(headers: Mapping[bytes, bytes]) -> Id | None:
    """The id that a client gave its request. Raises RequestMalformed for an X-Request-Id that is no id."""
    given = headers.get(b"x-request-id")
    if given is not None:
        if not _REQUEST_ID.fullmatch(given):
            raise RequestMalformed("X-Request-Id must be 1 to 128 visible ASCII characters")
        return Id(trace_id_of(given.decode()), exact=True)
    caller = parent(headers)
    return Id(caller.trace, exact=False) if caller is not None else None


def explains(query: bytes) -> bool:
    """Whether a query requests explanations: `explain=true`. Raises RequestInvalid for other values than true and false."""
    try:
        given = [value for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100) if name == b"explain"]
    except ValueError:
        raise RequestInvalid([("query", "cannot be read, or has more than 100 parameters")]) from None
    if len(given) > 1 or (given and given[0] not in (b"true", b"false")):
        raise RequestInvalid([("explain", "must be true or false, once")])
    return given == [b"true"]


def _row_ids(id: str, count: int) -> list[str]:
    """An id for each row: the request's own for a single one, else derived from it, the same ones at every retry."""
    if count == 1:
        return [id]
    return [id[:12] + hashlib.sha256(f"{id}:{i}".encode()).hexdigest()[:20] for i in range(count)]
