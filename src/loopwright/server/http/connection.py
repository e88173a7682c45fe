"""HTTP/1.1 of the data plane: httptools parses, the event loop does the I/O, everything is bounded.

The application gets a request twice: when its headers have arrived (`begin`, which may refuse it before the body), and
when it is complete (`handle`). The answer is a `Reply`, returned at once or passed later (`Request.answer`, in the loop's thread):
there is no task and no future per request. Requests of one connection are answered one after the other, in order.

A refusal whose body is still arriving is sent at once; then the connection is closed for writing, further input is discarded
for a while, so that the client receives the answer, and the connection is closed.
"""

import asyncio
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any

import httptools

from loopwright.base.errors import Overloaded, RequestTooLarge
from loopwright.server.http.admission import Admission, Peer
from loopwright.server.http.request import Application, Headers, Reply, Request, refusal
from loopwright.server.http.wire import VERSIONS, read_plain, without_upgrade

HEADER_BYTES = 16 * 1024
CONNECTIONS, ADDRESS_SHARE = 2048, 0.5
ARRIVAL_SECONDS = 30.0
IDLE_SECONDS = 75
GRACE_SECONDS = 10
MAX_BYTES = 10 * 2**20
MAX_HELD_BYTES = 128 * 2**20
DISCARD_BYTES = 16 * 2**20
DISCARD_SECONDS = 2.0
LAST_CALL_SECONDS = 0.05

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\ncontent-type: ".encode() for s in HTTPStatus}


class Server:
    """Serves `app` until SIGTERM or `should_exit`. `every_second` is called in the loop."""

    def __init__(
        self, app: Application, *, every_second: Callable[[], None] | None = None, admission: Admission | None = None
    ) -> None:
        self.app, self._every_second = app, every_second
        self.admission = admission or Admission(CONNECTIONS, ADDRESS_SHARE)
        self.connections: set[Connection] = set()
        self.should_exit = self.draining = False
        self.held = 0
        self.now = 0.0

    def heed_signals(self) -> None:
        """Install signal handlers: SIGTERM stops this server in order; SIGINT is left to the parent process."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def serve(self, listening: socket.socket, ready: Callable[[], None]) -> None:
        """Accept connections on a listening socket until asked to stop; then answer the accepted requests, within `GRACE_SECONDS`."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        server = await loop.create_server(lambda: Connection(self, loop), sock=listening, backlog=1024)
        ready()
        ticks = 0
        while not self.should_exit:
            await asyncio.sleep(0.1)
            self._sweep(loop.time())
            ticks += 1
            if ticks % 10 == 0 and self._every_second is not None:
                self._every_second()
        server.close()
        self.draining = True
        await asyncio.sleep(LAST_CALL_SECONDS)  # requests that have arrived by now are answered
        until = loop.time() + GRACE_SECONDS
        for connection in list(self.connections):
            connection.drain()
        while self.connections and loop.time() < until:
            await asyncio.sleep(0.02)
            self._sweep(loop.time())
        for connection in list(self.connections):
            connection.abort()

    def _sweep(self, now: float) -> None:
        last, self.now = self.now, now
        if self.draining or int(now) != int(last):
            for connection in list(self.connections):
                connection.expire(now)


class Connection(asyncio.Protocol):
    """One connection of a client.

    `_current` is the arriving request, `_active` the one being answered, `_waiting` those after it. `_fed` counts the
    bytes since the current request began, `_held` those of bodies kept. `_left` is None until the input has ended; then the number of
    bytes still to discard. `_since` is the time of the last state change. `_peer` is None once its place was given away (`admission`).
    """

    __slots__ = (
        "_active", "_arriving", "_body", "_closed", "_current", "_eof", "_exact", "_expecting", "_fed", "_headers", "_held",
        "_left", "_loop", "_parser", "_paused", "_peer", "_repeated", "_server", "_since", "_size", "_stuck", "_transport",
        "_url", "_waiting", "address", "spare",
    )  # fmt: skip

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._closed = self._eof = self._paused = self._expecting = self._exact = False
        self._arriving = True
        self._left: int | None = None
        self._since = server.now
        self._stuck: tuple[float, int] | None = None
        self._url, self._headers = b"", Headers()
        self._fed = self._size = self._held = self._repeated = 0
        self._body: bytes | bytearray = b""
        self._peer: Peer | None = None
        self.address = ""
        self.spare = False
        self._current: Request | None = None
        self._active: Request | None = None
        self._waiting: deque[Request] = deque()

    # --- callbacks of the event loop -----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Find a place for the connection."""
        self._transport = transport
        self._server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self._peer = self._server.admission.admit(self, self.address)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client went away, or was closed."""
        self._closed = True
        self._leave()
        self._server.connections.discard(self)
        self._server.held -= self._held
        self._held = 0
        self._active = self._current = self._parser = None  # it refers back
        self._waiting.clear()

    def eof_received(self) -> bool:
        """The client has closed its side: its requests are still answered."""
        if self._active is None:
            return False
        self._end_input()
        self._eof = True
        (self._waiting[-1] if self._waiting else self._active).keep = False
        return True

    def pause_writing(self) -> None:
        """The client reads slowly: nothing more is read from it."""
        self._stuck = (self._server.now, self._transport.get_write_buffer_size())
        self._pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stuck = None
        self._resume()

    def data_received(self, data: bytes) -> None:
        """Feed the parser within limits."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.abort()
            return
        self._fed += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                read_plain(memoryview(data), upgrade.args[0], self._read_again)
        except httptools.HttpParserError:
            self._refuse(400)
        if self._arriving:
            self._check_arriving()

    def _read_again(self) -> tuple[Any, bytes] | None:
        old = self._parser
        if self._left is not None or old.get_method() == b"CONNECT":
            return None
        self._parser = httptools.HttpRequestParser(self)
        return self._parser, without_upgrade(old.get_method(), self._url, old.get_http_version(), self._headers.items())

    def _check_arriving(self) -> None:
        current = self._current
        if current is None:
            if self._fed > HEADER_BYTES:
                self._refuse(431)
        elif current.early is not None:  # refused while its body still comes
            self._current, current.keep = None, False
            self._end_input()
            self._take(current)
        elif self._fed > 2 * self._size + 4 * HEADER_BYTES:  # chunks of next to nothing, trailers
            self._refuse(400)

    # --- callbacks of the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        if self._left is not None:
            return
        self._arriving, self._since = True, self._server.now
        self._exact = self._fed == 0  # in one piece with the bytes before it
        self._url, self._headers, self._repeated = b"", {}, 0

    def on_url(self, url: bytes) -> None:
        """A part of the URL."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers of a body are dropped. Raises ValueError (to the client: 400) for a second Host."""
        if self._current is None:
            name, headers = name.lower(), self._headers
            if name in headers:
                if name == b"host":
                    raise ValueError("two hosts")
                self._repeated += len(name) + len(headers[name]) + 4
                if name in (b"transfer-encoding", b"connection"):
                    value = headers[name] + b", " + value
            headers[name] = value

    def on_headers_complete(self) -> None:
        """Let the application look, before the body comes."""
        if self._left is not None:
            return
        headers, parser, url, app = self._headers, self._parser, self._url, self._server.app
        if (self._exact or self._fed > HEADER_BYTES) and _size(url, headers) + self._repeated > HEADER_BYTES:
            self._refuse(431)
            return
        if parser.get_http_version() not in VERSIONS:
            self._refuse(400)
            return
        method = parser.get_method()
        if parser.should_upgrade() and method != b"CONNECT":
            return  # the parser stops here: see `wire.read_plain`
        if url[:1] != b"/":
            url = _relative(url)
        self._current = request = Request(self, method, url, headers, keep=parser.should_keep_alive() and not self.spare)
        request.early = app.begin(request)
        if self.spare and request.early is None and not app.is_health(request):
            request.early = app.failed(request, Overloaded("more connections are open than can be held; try again"))
        if request.early is None and int(headers.get(b"content-length", b"0")) > MAX_BYTES:
            request.early = app.failed(request, RequestTooLarge("bytes", MAX_BYTES))
        if request.early is None and b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self._expecting = True
            self._encourage()

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        current, server = self._current, self._server
        if current is None or current.early is not None:
            return
        size = len(part)
        if not self._size:
            self._body = part
        elif isinstance(self._body, bytearray):
            self._body += part
        else:
            self._body = bytearray(self._body)
            self._body += part
        self._size += size
        self._held += size
        server.held += size
        if self._size > MAX_BYTES:
            current.early = server.app.failed(current, RequestTooLarge("bytes", MAX_BYTES))
        elif server.held > MAX_HELD_BYTES:
            current.early = server.app.failed(
                current, Overloaded("the server is overloaded: too many bytes are in flight; try again")
            )

    def on_message_complete(self) -> None:
        """The request has arrived."""
        request, self._current = self._current, None
        if request is None:
            return
        self._arriving, self._fed, self._expecting = False, 0, False
        if request.early is None:
            request.body = bytes(self._body)
        else:
            self._forget(self._size)
        self._size, self._body = 0, b""
        request.started = time.perf_counter()
        if not request.keep:
            self._end_input()
        self._take(request)

    # --- one request after the other -----------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        if self._active is None:
            self._start(request)
        else:
            self._waiting.append(request)
            self._pause()

    def _start(self, request: Request) -> None:
        self._active = request
        if self._peer is not None:
            self._peer.waiting.pop(self, None)
        reply = request.early or self._server.app.handle(request)
        if reply is not None:
            self.answer(request, reply)

    def _next(self) -> None:
        if self._active is None and self._waiting:
            self._start(self._waiting.popleft())
            self._resume()

    def answer(self, request: Request, reply: Reply) -> None:
        """Send the answer to the request that waits for it."""
        if self._active is not request:
            return
        self._active = None
        server = self._server
        self._forget(len(request.body))
        self._since = server.now
        if self._peer is not None and not self.spare and not self._waiting:
            self._peer.waiting[self] = None
        keep = request.keep and (not server.draining or bool(self._waiting))
        status, body, media, id, extra = reply
        if status == 200 and keep and id and not extra and b"connection" not in request.headers and request.method != b"HEAD":
            head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b"
            self._transport.write(head % (media, len(body), id.encode("latin-1"), body))
        else:
            self._transport.write(_head(reply, request, keep=keep) + (b"" if request.method == b"HEAD" else body))
        if not keep:
            self._finish()
        elif self._waiting:
            self._loop.call_soon(self._next)
        elif self._expecting:
            self._encourage()

    def _encourage(self) -> None:
        """Send `100 Continue` to a client that waits for it, unless answers to earlier requests must come first."""
        if self._active is None and not self._waiting:
            self._expecting = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, status: int) -> None:
        """Answer an invalid request that cannot continue, and close the connection."""
        if self._left is None:
            self._current = None
            self._end_input()
            request = Request(self, b"GET", b"", {}, keep=False)
            request.early = refusal(status, os.urandom(16).hex())
            self._take(request)

    def _end_input(self) -> None:
        """Stop parsing, and drop the request that was arriving."""
        if self._left is None:
            self._left, self._arriving, self._since = DISCARD_BYTES, False, self._server.now
            self._forget(self._size)
            self._size, self._body = 0, b""

    def _forget(self, size: int) -> None:
        self._held -= size
        self._server.held -= size

    def _finish(self) -> None:
        """The last answer is on its way: close for writing, then wait for the client to do so too."""
        self._end_input()
        self._since = self._server.now
        if self._eof or self._transport.is_closing():
            self._transport.close()
        else:
            self._transport.write_eof()

    # --- flow, ends ----------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if not self._paused and not self._closed and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._waiting and self._stuck is None and not self._closed and not self._transport.is_closing():
            self._paused, self._since = False, self._server.now
            self._transport.resume_reading()

    def expire(self, now: float) -> None:
        """Close a connection that has exceeded a time limit. `now` is the loop's time."""
        took = now - self._since
        if self._stuck is not None:
            self._expire_stuck(now, self._stuck)
        elif self._active is not None or self._paused:
            return
        elif self._left is not None:
            if took > (DISCARD_SECONDS / 4 if self._server.draining else DISCARD_SECONDS):
                self.abort()
        elif self._arriving:
            if took > ARRIVAL_SECONDS:
                self._refuse(408)
        elif took > IDLE_SECONDS:
            self._transport.close()

    def _expire_stuck(self, now: float, stuck: tuple[float, int]) -> None:
        size = self._transport.get_write_buffer_size()
        if size < stuck[1]:
            self._stuck = (now, size)
        elif now - stuck[0] > ARRIVAL_SECONDS:
            self.abort()

    def drain(self) -> None:
        """Close, unless a request is being answered or has begun to arrive: its answer will be the last."""
        if self._active is None and not self._waiting and not (self._arriving and self._fed):
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    @property
    def ended(self) -> bool:
        """Whether it has been lost or closed."""
        return self._closed

    # --- its place (`admission`) ---------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing of a next request has arrived."""
        return self._left is not None or not (self._arriving and self._fed)

    def evict(self) -> None:
        """Close at once to make room for another; a client in the middle of a request gets an error."""
        self._leave()
        if self._transport.get_write_buffer_size():
            self.abort()
            return
        if not self.idle:
            reply = refusal(503, os.urandom(16).hex())
            self._transport.write(_head(reply, Request(self, b"GET", b"", {}, keep=False), keep=False) + reply.body)
        self._transport.close()

    def _leave(self) -> None:
        if self._peer is not None:
            self._server.admission.release(self, self._peer)
            self._peer = None


def _size(url: bytes, headers: Headers) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers.items())


def _relative(url: bytes) -> bytes:
    """The path and query of a URL that a client gave whole. Raises HttpParserInvalidURLError."""
    found = httptools.parse_url(url)
    path: bytes = found.path or b"/"
    return path + b"?" + found.query if found.query else path


def _head(reply: Reply, request: Request, *, keep: bool) -> bytes:
    extra = list(reply.extra)
    if reply.id:
        extra.append((b"x-request-id", reply.id.encode("latin-1")))
    if not keep:
        extra.append((b"connection", b"close"))
    elif b"connection" in request.headers:
        extra.append((b"connection", b"keep-alive"))
    lines = b"".join(b"%b: %b\r\n" % pair for pair in extra)
    return b"%b%b\r\ncontent-length: %d\r\n%b\r\n" % (_STATUS_LINES[reply.status], reply.media, len(reply.body), lines)
