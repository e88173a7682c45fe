"""The yardstick: what decodes a JSON body and encodes it again, on a bare HTTP server. No model, no contract, no log.

    python benchmarks/echo.py [PORT] [own]        a raw ASGI application on uvicorn; `own`: on the server of our data plane

Prints the port that it listens on.
"""

import asyncio
import socket
import sys
from typing import Any

import msgspec
import uvicorn
import uvloop

from loopwright.server.http.connection import Server
from loopwright.server.http.request import Reply, Request

decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Echo a JSON body."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = encode(decode(body))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Echo:
    """The same as an application of our HTTP server."""

    def begin(self, request: Request) -> Reply | None:
        """Nothing is refused."""
        return None

    def handle(self, request: Request) -> Reply:
        """Echo a JSON body."""
        return Reply(200, encode(decode(request.body)))

    def failed(self, request: Request, error: Exception) -> Reply:
        """Whatever it was."""
        return Reply(500, b"{}")

    def is_health(self, request: Request) -> bool:
        """No request asks for it."""
        return False


def main() -> None:
    """Serve on the port of loopback that is given, or a free one."""
    port, own = int(sys.argv[1]) if sys.argv[1:] else 0, sys.argv[2:] == ["own"]
    listening = socket.create_server(("127.0.0.1", port))
    print(listening.getsockname()[1], flush=True)
    if own:
        server = Server(Echo())
        server.heed_signals()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(listening, lambda: None))
        return
    config = uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", access_log=False, log_level="error")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
