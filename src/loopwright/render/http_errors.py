"""Errors over HTTP, for every interface: status and body. Error codes are defined on the errors themselves."""

import re
from collections.abc import Collection
from typing import Any

from loopwright.base import errors

STATUS: tuple[tuple[type[errors.LoopwrightError], int], ...] = (
    (errors.RequestTooLarge, 413),
    (errors.RequestInvalid, 422),
    (errors.UsageError, 400),
    (errors.NotFound, 404),
    (errors.NotExplained, 422),
    (errors.AddressRefused, 403),
    (errors.Refused, 409),
    (errors.Unavailable, 503),
    (errors.LoopwrightError, 500),
)
"""The first row that fits counts."""

DOOR: dict[int, tuple[str, str]] = {
    400: (errors.RequestMalformed.code, "the request cannot be read"),
    401: ("unauthorized", "a token is required: send `Authorization: Bearer TOKEN`"),
    403: ("forbidden", "changes need a token (set LOOPWRIGHT_TOKEN), and no request may come from another site"),
    404: (errors.NotFound.code, "nothing is served at this path"),
    405: ("method_not_allowed", "this path does not allow that method; the header Allow names those it does"),
    408: ("request_timeout", "the request did not come to its end in time"),
    411: ("length_required", "send a Content-Length"),
    415: ("unsupported_media_type", "send JSON: `Content-Type: application/json`, not compressed"),
    421: ("misdirected_request", "this server does not answer for that host"),
    429: ("too_many_requests", "too many wrong tokens came from this address: wait a second and send the right one"),
    431: ("headers_too_large", "the headers are larger than 16 KiB"),
    500: ("internal", "something failed; the server's own log says what"),
    503: (errors.Overloaded.code, "the server is overloaded; try again"),
}
"""Code and message of requests refused by the server itself, without a LoopwrightError."""

_OPTION = re.compile(r"`loopwright [^`]*`|`?--([a-z]+(?:-[a-z]+)*)`?")
"""A whole command, or an option of one."""

LEDGER_AWAY = "the ledger does not answer: try again, a change with the same Idempotency-Key; the server's own log says more"


def status_of(error: errors.LoopwrightError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def describe(error: errors.LoopwrightError, id: str = "", *, arguments: Collection[str] = ()) -> dict[str, Any]:
    """The body of an error's answer, without anything internal. Options of a command are named as the `arguments` that they are here."""

    def argument(option: re.Match[str]) -> str:
        name = (option[1] or "").replace("-", "_")
        return f"`{name}`" if name in arguments else option[0]

    fields = [{"field": p.field, "reason": _OPTION.sub(argument, p.reason)} for p in getattr(error, "problems", [])]
    message = "the request breaks the contract" if fields else _OPTION.sub(argument, str(error))
    if isinstance(error, errors.Damaged):
        message = DOOR[500][1]
    if isinstance(error, errors.LedgerUnavailable):  # its own words may name the database
        message = LEDGER_AWAY
    return {"error": {"code": error.code, "message": message, "fields": fields, "id": id}}


def describe_status(status: int, id: str = "") -> dict[str, Any]:
    """The body of an answer that was refused at the door."""
    code, message = DOOR[status]
    return {"error": {"code": code, "message": message, "fields": [], "id": id}}
