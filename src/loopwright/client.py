"""A client of a server: predictions, explanations and outcomes over HTTP, sent again where that is safe.

It needs the standard library and msgspec, and loads nothing else: no NumPy, no ONNX Runtime.
"""

import http.client
import io
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import isinf
from random import random
from time import sleep
from typing import Any, NamedTuple, Self, TypeVar, cast, overload
from urllib.parse import quote, urlsplit

import msgspec

from loopwright.base.clock import Clock, RealClock
from loopwright.base.errors import RequestRefused, RequestTooLarge, Unavailable, UsageError
from loopwright.base.ids import new_id, trace_id_of
from loopwright.records.answer import Accepted, Answer, ExplainedAnswer

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between two attempts: twice as long each time, a random part of it left out so that clients do not come all at once."""

AGAIN = frozenset((429, 502, 503, 504))
"""Statuses that say that the same request may be answered later."""

SET_PER_REQUEST = frozenset(("x-request-id", "x-timeout-ms", "content-length", "transfer-encoding"))
"""Headers that a request has once."""

MAX_TIMEOUT_S = 1e6
MAX_REPLY_BYTES = 256 << 20

_ID = re.compile(r"[\x21-\x7e]{0,128}")
_HEADER_NAME, _HEADER_VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[\t\x20-\x7e]*")
"""Valid header names and values (RFC 9110), visible ASCII only."""

Row = Mapping[str, Any]
T = TypeVar("T")


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Incoming(io.RawIOBase):
    """Bytes received from a socket; `left` returns the seconds to the deadline, and raises TimeoutError after it.

    A socket timeout bounds only a single receive: a server that sends one byte now and then would never exceed it.
    """

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock, self._left, self._bytes = sock, left, sock.makefile("rb", buffering=0)

    def makefile(self, *_: Any) -> io.BufferedReader:
        """Like a socket's: `HTTPResponse` reads from it."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Receive the available bytes."""
        self._sock.settimeout(self._left())
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        """Leave the socket to its connection."""
        self._bytes.close()
        super().close()


class _Error(msgspec.Struct):
    """The body of a server's error."""

    code: str = ""
    message: str = ""
    fields: list[dict[str, str]] = []
    id: str = ""


class _Errors(msgspec.Struct):
    error: _Error


class _Outcomes(msgspec.Struct):
    outcomes: list[Accepted]


class Client:
    """Client of the server at `url`, the address that `loopwright serve` prints. Safe to share among threads, and after a fork.

        with loopwright.Client("http://127.0.0.1:8321", token=TOKEN) as client:
            answer = client.predict("churn", {"customer": "C17", "visits": 3})
            client.outcome("churn", {"churned": True}, prediction=answer.id)

    Retries a request when the connection breaks (a worker died, an answer was cut off) and when the server is overloaded or not
    ready: after `Retry-After`, else with back-off, up to `attempts` times within `timeout`. Every attempt carries the same request id, so
    the request is answered and logged once.

    Args:
        url: `http://HOST:PORT` or `https://...`; a path before `/loops` is kept.
        token: bearer token that permits to predict.
        timeout: deadline of a call in seconds over all attempts (only the DNS lookup of the host is not bounded by it); the server
            receives it, and lets the heuristic answer in time.
        attempts: maximum number of times that a request is sent.
        headers: sent with each request, e.g. `traceparent` or those of a proxy.
        context: for https, instead of the system's certificates.
        clock: source of the time; for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8321",
        *,
        token: str = "",
        timeout: float = 10.0,
        attempts: int = 6,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        secure, self._host, self._port, self._path = _address(url)
        _text("token", token, _HEADER_VALUE, "visible ASCII characters on one line")
        if type(attempts) is not int or attempts < 1:
            raise UsageError("attempts: must be a whole number of at least 1")
        self._context = (context or ssl.create_default_context()) if secure else None
        self._timeout, self._attempts, self._clock = _seconds_of(timeout), attempts, clock or RealClock()
        self._headers = {
            **({"Authorization": f"Bearer {token}"} if token else {}),
            "Content-Type": "application/json",
            **_checked(headers or {}),
        }
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._process = os.getpid()

    @overload
    def predict(self, loop: str, rows: Row, *, id: str = "", timeout: float | None = None) -> Answer: ...

    @overload
    def predict(self, loop: str, rows: Sequence[Row], *, id: str = "", timeout: float | None = None) -> list[Answer]: ...

    def predict(
        self, loop: str, rows: Row | Sequence[Row], *, id: str = "", timeout: float | None = None
    ) -> Answer | list[Answer]:
        """Predict a row, or several in one request.

        Args:
            loop: name of the loop.
            rows: the columns of the request by name, as plain values, `datetime` with a zone, or NumPy scalars; or a list of such.
            id: the id of the request (`X-Request-Id`): the same again gets the same answer. Default: a fresh one.
            timeout: seconds, if not those of the client.

        Returns:
            An answer for each row, in order; of a single row its answer.

        Raises:
            RequestRefused: the server refuses: contract violated, unknown loop, wrong token, id taken by another request.
            Unavailable: no answer within the timeout.
        """
        return cast("Answer | list[Answer]", self._predict(loop, rows, Answer, "", id, timeout))

    @overload
    def explain(self, loop: str, rows: Row, *, id: str = "", timeout: float | None = None) -> ExplainedAnswer: ...

    @overload
    def explain(
        self, loop: str, rows: Sequence[Row], *, id: str = "", timeout: float | None = None
    ) -> list[ExplainedAnswer]: ...

    def explain(
        self, loop: str, rows: Row | Sequence[Row], *, id: str = "", timeout: float | None = None
    ) -> ExplainedAnswer | list[ExplainedAnswer]:
        """Predict as `predict` does, and return the contribution of each feature.

        Args:
            loop: name of the loop.
            rows: as of `predict`.
            id: as of `predict`.
            timeout: as of `predict`.

        Returns:
            One answer with contributions per row, in order; a single answer for a single row.

        Raises:
            RequestRefused: as `predict`; also where the serving package does not explain its answers.
            Unavailable: no answer within the timeout.
        """
        found = self._predict(loop, rows, ExplainedAnswer, "?explain=true", id, timeout)
        return cast("ExplainedAnswer | list[ExplainedAnswer]", found)

    def outcome(self, loop: str, values: Row, *, prediction: str = "", timeout: float | None = None) -> Accepted:
        """Send the outcome of a prediction; idempotent: sending it again stores one outcome.

        Args:
            loop: name of the loop.
            values: the columns of the outcome table by name; without `prediction` its key columns too.
            prediction: the prediction's id, or the `id` that was passed to `predict` for a single row.
            timeout: seconds, if not the client's.

        Returns:
            The outcome's id, what it was matched by, and flags.

        Raises:
            RequestRefused: as `predict`.
            Unavailable: no answer within the timeout.
        """
        field = next((name for name in ("prediction_id", "prediction", "id") if name not in values), "id")
        body = {**values, **({field: trace_id_of(_text("prediction", prediction))} if prediction else {})}
        reply = self._send(f"{_path(loop)}/outcomes", body, "", timeout)
        return self._decoded(reply, _Outcomes).outcomes[0]

    def ready(self, loop: str = "") -> bool:
        """Whether the server, or one loop of it, can answer; sends one request.

        Args:
            loop: name of a loop; default: all of them.

        Returns:
            False also where no server answers.
        """
        path = f"{_path(loop)}/ready" if loop else "/readyz"
        try:
            return self._once("GET", path, None, {}, self._left(self._clock.monotonic() + self._timeout)).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        """Close the idle connections now, and connections in use when their calls end."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _predict(self, loop: str, rows: Any, kind: type[Any], query: str, id: str, timeout: float | None) -> Any:
        _text(f"id {str(id)[:80]!r}", id, _ID, "1 to 128 visible ASCII characters")
        reply = self._send(f"{_path(loop)}/predict{query}", rows, id or new_id(self._clock.now()), timeout)
        several: Any = list[kind]  # type: ignore[valid-type]  # a type made at run time
        return self._decoded(reply, kind if isinstance(rows, Mapping) else several)

    def _left(self, until: float) -> Callable[[], float]:
        """A function for the seconds to a deadline of the monotonic clock; it raises TimeoutError after it."""

        def left() -> float:
            if (seconds := until - self._clock.monotonic()) <= 0:
                raise TimeoutError("the deadline of the call has passed")
            return seconds

        return left

    def _send(self, path: str, value: Any, id: str, timeout: float | None) -> _Reply:
        """The answer to a POST that is sent until there is one."""
        try:
            body = _ENCODER.encode(_unchanged(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UsageError(f"the request cannot be written as JSON: {error}") from error
        now = self._clock.monotonic
        until = now() + (self._timeout if timeout is None else _seconds_of(timeout))
        left = self._left(until)
        why, wait = "there was no time", FIRST_WAIT
        for attempt in range(self._attempts):
            pause = wait * (1 - random() / 2)  # noqa: S311 - spreads clients over time, guards nothing
            try:
                headers = {"X-Timeout-Ms": str(max(1, int(left() * 800))), **({"X-Request-Id": id} if id else {})}
                reply = self._once("POST", path, body, headers, left)
                if reply.status not in AGAIN:
                    return reply
                why = str(_refused(reply))
                pause = max(pause, _seconds(reply.headers.get("retry-after", "")))
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
            wait = min(2 * wait, LONGEST_WAIT)
            if attempt + 1 == self._attempts or now() + pause >= until:
                break
            sleep(pause)
        raise Unavailable(f"no answer from {self._host}:{self._port} to request {id or path}; {why}")

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], left: Callable[[], float]
    ) -> _Reply:
        if self._process != os.getpid():  # a forked child: its parent reads the answers that come over these
            self.close()
            self._process = os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connected(left)
        connection.response_class = lambda sock, **about: http.client.HTTPResponse(_Incoming(sock, left), **about)  # type: ignore[assignment,arg-type]
        try:
            connection.sock.settimeout(left())
            connection.request(method, self._path + path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            content = _content(answer)
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # else the server has closed it
            self._idle.append(connection)
        return _Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def _connected(self, left: Callable[[], float]) -> http.client.HTTPConnection:
        """A new connection, to the first address of the host that takes one; each has its share of the time."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        for later, (*_, address) in zip(range(len(found), 0, -1), found, strict=True):
            try:
                sock = socket.create_connection((str(address[0]), self._port), left() / later)
                break
            except OSError:
                if later == 1:
                    raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port)
        else:
            sock.settimeout(left())
            sock = self._context.wrap_socket(sock, server_hostname=self._host)
            connection = http.client.HTTPSConnection(self._host, self._port, context=self._context)
        connection.sock = sock
        return connection

    def _decoded(self, reply: _Reply, kind: type[T]) -> T:
        if not 200 <= reply.status < 300:
            raise _refused(reply)
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except ValueError as error:
            message = f"no answer of loopwright ({error}); {_start(reply)}"
            raise RequestRefused(reply.status, "unreadable", message) from error


def _refused(reply: _Reply) -> RequestRefused:
    try:
        error = msgspec.json.decode(reply.body, type=_Errors).error
    except ValueError:  # a proxy between client and server
        moved = (
            f"it redirects to {reply.headers['location'][:200]!r}: give that as url; " if "location" in reply.headers else ""
        )
        error = _Error("unknown", f"no answer of loopwright; {moved}{_start(reply)}")
    problems = [(field.get("field", ""), field.get("reason", "")) for field in error.fields]
    return RequestRefused(reply.status, error.code, error.message, error.id, problems)


def _start(reply: _Reply) -> str:
    """The start of a body that is not the server's, e.g. the page of a proxy."""
    text = " ".join(reply.body[:400].decode(errors="replace").split())[:200]
    kind = reply.headers.get("content-type", "no content type")[:80]
    return f"its body ({kind}) begins {text!r}" if text else "its body is empty"


def _content(answer: http.client.HTTPResponse) -> bytes:
    """The body of an answer. Raises IncompleteRead where it is cut off, RequestRefused where it is too large."""
    known = answer.length is not None
    content = b"" if answer.length and answer.length > MAX_REPLY_BYTES else answer.read(None if known else MAX_REPLY_BYTES + 1)
    if (answer.length or 0) + len(content) > MAX_REPLY_BYTES:
        why = f"its body has more than {MAX_REPLY_BYTES >> 20} MiB: ask for fewer rows at a time"
        raise RequestRefused(answer.status, RequestTooLarge.code, why)
    if not known and not answer.chunked and answer.status < 300 and content[:1] in (b"", b"{", b"["):
        # It ends where the connection does, which may be too early.
        try:
            msgspec.json.decode(content)
        except ValueError as error:
            raise http.client.IncompleteRead(content) from error
    return content


# --- arguments -------------------------------------------------------------------------------------------------------


def _address(url: Any) -> tuple[bool, str, int, str]:
    """Whether a URL is https, its host, port and path. Raises UsageError."""
    try:
        parts = urlsplit(_text("url", url))
        host, port = parts.hostname or "", parts.port
        host.rstrip(".").encode("idna")  # raises for names that no resolver accepts
        http.client.HTTPConnection(host, port)  # raises for names that no header accepts
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise UsageError("must be http://HOST:PORT or https://HOST:PORT")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError("must have no user, query or fragment; a token is given as `token`")
    except (ValueError, http.client.InvalidURL, UsageError) as error:
        raise UsageError(f"url {str(url)[:200]!r}: {error}") from error
    secure = parts.scheme == "https"
    return secure, host, port or (443 if secure else 80), quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")


def _seconds_of(timeout: Any) -> float:
    if type(timeout) not in (int, float) or not 0 < timeout <= MAX_TIMEOUT_S:
        raise UsageError(f"timeout: must be a number of seconds above 0, up to {MAX_TIMEOUT_S:,.0f}")
    return float(timeout)


def _text(what: str, value: Any, form: re.Pattern[str] | None = None, of: str = "text") -> str:
    """A text of a form. Raises UsageError naming the argument, not its value: that may be secret."""
    if not isinstance(value, str):
        raise UsageError(f"{what}: must be a str, not {type(value).__name__}")
    if form is not None and not form.fullmatch(value):
        raise UsageError(f"{what}: must be {of}")
    return value


def _path(loop: Any) -> str:
    return f"/loops/{quote(_text('loop', loop), safe='', errors='replace')}"


def _checked(headers: Mapping[Any, Any]) -> Mapping[str, str]:
    for name, value in headers.items():
        shown = f"headers, {str(name)[:80]!r}"
        _text(f"{shown}: its name", name, _HEADER_NAME, "letters, digits and hyphens")
        _text(f"{shown}: its value", value, _HEADER_VALUE, "visible ASCII characters on one line")
        if name.lower() in SET_PER_REQUEST:
            raise UsageError(f"{shown}: is set for each request; give `id` and `timeout` to the call")
    return headers


def _seconds(text: str) -> float:
    """Seconds of a Retry-After; 0 if missing, or a date."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _plain(value: Any) -> Any:
    """A NumPy scalar or array, or a pandas Timestamp, as a plain value, without knowing either library."""
    if isinstance(value, datetime):  # of a class of its own; NaT differs from itself
        return value.isoformat() if value == value else None
    if hasattr(value, "to_dict"):  # a DataFrame or Series
        raise TypeError(f"a {type(value).__name__} is not a JSON value: send its to_dict(), of a DataFrame to_dict('records')")
    if hasattr(value, "tolist"):
        return _unchanged(value.tolist())
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _unchanged(value: Any) -> Any:
    """The value unchanged. Raises ValueError for values that msgspec would change silently: infinity (to null) and bytes (to Base64)."""
    infinite = isinf(value) if isinstance(value, float) else isinstance(value, Decimal) and not value.is_finite()
    if infinite or isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{str(value)[:80]} is not a JSON value")
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        _unchanged(part)
    return value


_ENCODER = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")
