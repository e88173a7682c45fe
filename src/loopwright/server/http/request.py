"""A request of the data plane, its response, and the interface of an application."""

from typing import Any, NamedTuple, Protocol

import msgspec

from loopwright.render.http_errors import describe_status

Headers = dict[bytes, bytes]

JSON = b"application/json"
_encode = msgspec.json.Encoder().encode


class Reply(NamedTuple):
    """A response. `id` becomes X-Request-Id."""

    status: int
    body: bytes
    media: bytes = JSON
    id: str = ""
    extra: tuple[tuple[bytes, bytes], ...] = ()


def refusal(status: int, id: str = "") -> Reply:
    """The response to a request that the server itself refuses (`http_errors.DOOR`)."""
    return Reply(status, _encode(describe_status(status, id)), id=id)


class Carrier(Protocol):
    """The connection that a request came over."""

    address: str

    @property
    def ended(self) -> bool:
        """Whether it has been lost or closed."""
        ...

    def answer(self, request: "Request", reply: Reply) -> None:
        """Send the answer."""
        ...


class Request:
    """A request. `route`, `loop` and `version` are the application's; header names are lower-case; `path` is raw, without the query.

    `started` is when it was whole (`time.perf_counter`).
    """

    __slots__ = (
        "_connection", "body", "early", "headers", "keep", "loop", "method", "path", "query", "route", "started", "version",
    )  # fmt: skip

    def __init__(self, connection: Carrier, method: bytes, url: bytes, headers: Headers, *, keep: bool) -> None:
        self._connection, self.method, self.headers, self.keep = connection, method, headers, keep
        self.path, _, self.query = url.partition(b"?")
        self.body, self.loop, self.version, self.started = b"", "", "", 0.0
        self.route: Any = None
        self.early: Reply | None = None

    @property
    def address(self) -> str:
        """The address of the client."""
        return self._connection.address

    @property
    def gone(self) -> bool:
        """Whether the connection has ended, so that no client gets the answer."""
        return self._connection.ended

    def answer(self, reply: Reply) -> None:
        """Send the answer; nothing happens where the client has gone."""
        self._connection.answer(self, reply)


class Application(Protocol):
    """The interface of an application. None of these methods raises."""

    def begin(self, request: Request) -> Reply | None:
        """Called when the headers have arrived: None, or a refusal."""
        ...

    def handle(self, request: Request) -> Reply | None:
        """Called when the request is complete: its answer, or None if `request.answer` is called later."""
        ...

    def failed(self, request: Request, error: Exception) -> Reply:
        """The answer where the request met a limit."""
        ...

    def is_health(self, request: Request) -> bool:
        """Whether a request asks how the server is, which is answered however full it is."""
        ...
