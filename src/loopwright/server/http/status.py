"""Errors to HTTP, in one table: status and code. The first row that fits counts."""

from typing import Any

from loopwright.base import errors

STATUS: tuple[tuple[type[errors.LoopwrightError], int, str], ...] = (
    (errors.RequestMalformed, 400, "malformed"),
    (errors.RequestTooLarge, 413, "too_large"),
    (errors.RequestInvalid, 422, "invalid"),
    (errors.RequestConflict, 409, "id_taken"),
    (errors.NotExplained, 422, "not_explained"),
    (errors.UsageError, 400, "usage"),
    (errors.NotFound, 404, "not_found"),
    (errors.ReleaseConflict, 409, "conflict"),
    (errors.GateFailed, 409, "gate_failed"),
    (errors.AddressRefused, 403, "address_refused"),
    (errors.Refused, 409, "refused"),
    (errors.Overloaded, 503, "overloaded"),
    (errors.LogUnavailable, 503, "log_unavailable"),
    (errors.LedgerUnavailable, 503, "ledger_unavailable"),
    (errors.Unavailable, 503, "unavailable"),
    (errors.Damaged, 500, "damaged"),
    (errors.LoopwrightError, 500, "failed"),
)

CODES: dict[int, tuple[str, str]] = {
    400: ("malformed", "the request cannot be read"),
    401: ("unauthorized", "a token is asked for: send `Authorization: Bearer TOKEN`"),
    403: ("forbidden", "changes need a token (set LOOPWRIGHT_TOKEN), and no request may come from another site"),
    404: ("not_found", "there is nothing at this path"),
    405: ("method", "this path has another method"),
    408: ("timeout", "the request did not come to its end in time"),
    411: ("length", "send a Content-Length"),
    415: ("media_type", "send JSON: `Content-Type: application/json`, not compressed"),
    421: ("host", "this server does not answer for that host"),
    429: ("too_many_guesses", "too many wrong tokens came from this address: wait a second and send the right one"),
    431: ("headers", "the headers are larger than 16 KiB"),
    500: ("internal", "something failed; the server's own log says what"),
    503: ("overloaded", "more load than can be held; try again"),
}
"""What is refused at the door, before anything knows an error of ours."""


LEDGER_AWAY = "the ledger does not answer: try again, a change with the same Idempotency-Key; the server's own log says more"


def status_of(error: errors.LoopwrightError) -> tuple[int, str]:
    """The HTTP status and the code of an error."""
    return next((status, code) for kind, status, code in STATUS if isinstance(error, kind))


def describe(error: errors.LoopwrightError, id: str = "") -> dict[str, Any]:
    """The body of an error's answer, without anything internal."""
    _, code = status_of(error)
    fields = [{"field": p.field, "reason": p.reason} for p in getattr(error, "problems", [])]
    message = "the request breaks the contract" if fields else str(error)
    if isinstance(error, errors.Damaged):
        message = CODES[500][1]
    if isinstance(error, errors.LedgerUnavailable):  # its own words may name the database
        message = LEDGER_AWAY
    return {"error": {"code": code, "message": message, "fields": fields, "id": id}}


def describe_status(status: int, id: str = "") -> dict[str, Any]:
    """The body of an answer that was refused at the door."""
    code, message = CODES[status]
    return {"error": {"code": code, "message": message, "fields": [], "id": id}}
