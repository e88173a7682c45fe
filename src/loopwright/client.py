"""A client of a server: predictions, explanations and outcomes over HTTP, sent again where that is safe.

It needs the standard library and msgspec, and loads nothing else: no NumPy, no ONNX Runtime.
"""

import http.client
import ssl
import threading
from collections.abc import Mapping, Sequence
from random import random
from time import sleep
from typing import Any, NamedTuple, Self, TypeVar, cast, overload
from urllib.parse import quote, urlsplit

import msgspec

from loopwright.records.clock import Clock, RealClock
from loopwright.records.errors import RequestRefused, Unavailable, UsageError
from loopwright.records.ids import new_id, trace_id_of
from loopwright.records.predictions.answer import Accepted, Answer, ExplainedAnswer

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between two attempts: twice as long each time, a random part of it left out so that clients do not come all at once."""

AGAIN = frozenset((429, 502, 503, 504))
"""Statuses that say that the same request may be answered later."""

Row = Mapping[str, Any]
T = TypeVar("T")


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Error(msgspec.Struct):
    """A server's answer that is none."""

    code: str = ""
    message: str = ""
    fields: list[dict[str, str]] = []
    id: str = ""


class _Errors(msgspec.Struct):
    error: _Error


class _Outcomes(msgspec.Struct):
    outcomes: list[Accepted]


class Client:
    """Asks the server at `url`, the address that `loopwright serve` prints for predictions. Safe to share among threads.

        with loopwright.Client("http://127.0.0.1:8321", token=TOKEN) as client:
            answer = client.predict("churn", {"customer": "C17", "visits": 3})
            client.outcome("churn", {"churned": True}, prediction=answer.id)

    A request is sent again when the connection breaks (a worker that died, a server that starts anew) and when the server is overloaded or
    not ready: after what `Retry-After` says, else with back-off, up to `attempts` times within `timeout`. Each request has an id, the
    same at every attempt, so that it is answered and logged once.

    Args:
        url: `http://HOST:PORT` or `https://...`; a path before `/loops` is kept.
        token: bearer token that permits to predict.
        timeout: seconds that a call may take, all attempts together; the server is told, and lets the heuristic answer in time.
        attempts: how often a request is sent at most.
        headers: sent with each request, e.g. `traceparent` or those of a proxy.
        context: for https, if not the system's certificates.
        clock: who tells the time; for tests.
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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UsageError(f"url {url[:200]!r}: must be http://HOST:PORT or https://HOST:PORT")
        if not timeout > 0 or attempts < 1:
            raise UsageError(f"timeout {timeout} must be seconds above 0, attempts {attempts} at least 1")
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._context = (context or ssl.create_default_context()) if parts.scheme == "https" else None
        self._timeout, self._attempts, self._clock = timeout, attempts, clock or RealClock()
        self._headers = {
            **({"Authorization": f"Bearer {token}"} if token else {}),
            "Content-Type": "application/json",
            **(headers or {}),
        }
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()

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
            RequestRefused: the server says no: the contract is broken, the loop unknown, the token wrong, the id taken by another request.
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
        """Predict as `predict` does, and say what each feature contributed.

        Args:
            loop: name of the loop.
            rows: as of `predict`.
            id: as of `predict`.
            timeout: as of `predict`.

        Returns:
            An answer with contributions for each row, in order; of a single row its answer.

        Raises:
            RequestRefused: as `predict`; also where the package that serves does not explain its answers.
            Unavailable: no answer within the timeout.
        """
        found = self._predict(loop, rows, ExplainedAnswer, "?explain=true", id, timeout)
        return cast("ExplainedAnswer | list[ExplainedAnswer]", found)

    def outcome(self, loop: str, values: Row, *, prediction: str = "", timeout: float | None = None) -> Accepted:
        """Tell the truth about a prediction; the same again is one outcome.

        Args:
            loop: name of the loop.
            values: the columns of the outcome table by name; without `prediction` its key columns too.
            prediction: the id of the prediction, or what `predict` was given as `id` for a single row.
            timeout: seconds, if not those of the client.

        Returns:
            The outcome's id, what it is matched by, and flags.

        Raises:
            RequestRefused: the server says no, as of `predict`.
            Unavailable: no answer within the timeout.
        """
        field = next((name for name in ("prediction_id", "prediction", "id") if name not in values), "id")
        body = {**values, **({field: trace_id_of(prediction)} if prediction else {})}
        reply = self._send(f"/loops/{quote(loop, safe='')}/outcomes", body, "", timeout)
        return self._decoded(reply, _Outcomes).outcomes[0]

    def ready(self, loop: str = "") -> bool:
        """Whether the server, or one loop of it, can answer; asked once.

        Args:
            loop: name of a loop; default: all of them.

        Returns:
            False also where no server answers.
        """
        path = f"/loops/{quote(loop, safe='')}/ready" if loop else "/readyz"
        try:
            return self._once("GET", path, None, {}, self._timeout).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def close(self) -> None:
        """Close the connections."""
        for connection in list(self._open):
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _predict(self, loop: str, rows: Any, kind: type[Any], query: str, id: str, timeout: float | None) -> Any:
        reply = self._send(f"/loops/{quote(loop, safe='')}/predict{query}", rows, id or new_id(self._clock.now()), timeout)
        several: Any = list[kind]  # type: ignore[valid-type]  # a type made at run time
        return self._decoded(reply, kind if isinstance(rows, Mapping) else several)

    def _send(self, path: str, value: Any, id: str, timeout: float | None) -> _Reply:
        """The answer to a POST that is sent until there is one."""
        try:
            body = msgspec.json.encode(value, enc_hook=_plain)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the request cannot be written as JSON: {error}") from error
        now = self._clock.monotonic
        until = now() + (self._timeout if timeout is None else timeout)
        why, wait = "there was no time", FIRST_WAIT
        for attempt in range(self._attempts):
            if (left := until - now()) <= 0:
                break
            headers = {"X-Timeout-Ms": str(max(1, int(left * 800))), **({"X-Request-Id": id} if id else {})}
            pause = wait * (1 - random() / 2)  # noqa: S311 - spreads clients over time, guards nothing
            try:
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

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float) -> _Reply:
        connection = self._connection()
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        try:
            connection.request(method, self._path + path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            return _Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except BaseException:
            connection.close()
            raise

    def _connection(self) -> http.client.HTTPConnection:
        """That of this thread; it opens itself again after it was closed."""
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is None:
            if self._context is not None:
                found = http.client.HTTPSConnection(self._host, self._port, context=self._context)
            else:
                found = http.client.HTTPConnection(self._host, self._port)
            self._own.connection = found
            self._open.add(found)
        return found

    def _decoded(self, reply: _Reply, kind: type[T]) -> T:
        if not 200 <= reply.status < 300:
            raise _refused(reply)
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except ValueError as error:
            raise RequestRefused(reply.status, "unreadable", f"its body is no answer of loopwright: {error}") from error


def _refused(reply: _Reply) -> RequestRefused:
    try:
        error = msgspec.json.decode(reply.body, type=_Errors).error
    except ValueError:  # somebody between us and the server
        error = _Error("unknown", reply.body[:200].decode(errors="replace"))
    problems = [(field.get("field", ""), field.get("reason", "")) for field in error.fields]
    return RequestRefused(reply.status, error.code, error.message, error.id, problems)


def _seconds(text: str) -> float:
    """A Retry-After in seconds; 0 for none, or a date."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _plain(value: Any) -> Any:
    """A NumPy scalar or array as a plain value, without knowing NumPy."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
