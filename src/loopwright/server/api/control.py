"""The control API and the console: one starlette application over the table of verbs.

`GET /api/{verb}` for read-only verbs, `POST /api/{verb}` for those that change something; arguments as query
parameters or as a JSON object, the answer as JSON. Everything but `/livez` requires the token, if one is set.
Changes are idempotent: a repeated `Idempotency-Key` (or `X-Request-Id`) returns the same answer and changes nothing.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as Path_

from loopwright.base.errors import LoopwrightError, NotFound, RequestInvalid, RequestMalformed, RequestTooLarge, UsageError
from loopwright.base.printable import encoded
from loopwright.base.supervision import state, states
from loopwright.console.app import routes as console_routes
from loopwright.deploy.serving.decode import parse
from loopwright.render.http_errors import describe, describe_status, status_of
from loopwright.server.api.access import Access
from loopwright.server.api.callers import Caller
from loopwright.server.api.routes import Permission, Route, check_routes
from loopwright.server.http.slots import Slots
from loopwright.stores.home import Home
from loopwright.verbs import VERBS, Verb

MAX_BYTES = 64 * 1024
SLOTS: Mapping[str, tuple[int, int, float]] = {"read": (4, 28, 20.0), "verify": (1, 0, 0.0), "change": (4, 12, 0.0)}
"""Concurrent requests, waiting requests, and their timeout in seconds (0: none): pages and read-only verbs, changes."""

DATA_PATHS = (b"/loops/", b"/v2/")
"""What is posted to these belongs to the data port."""

KEY = "request_id"
"""The argument of every verb that changes something over HTTP: its idempotency key."""

KEY_HEADERS = ("idempotency-key", "x-request-id")
_KEY = re.compile("[!-~]{1,128}")
_FILLED_IN = ("home", "progress", "all")
"""Parameters that no client may set: the server fills them in, or they are unbounded (`status --all`)."""


def control_routes(verbs: Sequence[Verb] = VERBS) -> list[Route]:
    """Routes of the control API with their permission: `read` for read-only verbs, `write` for verbs that change something."""
    return [
        Route("POST" if v.changes else "GET", f"/api/{v.name}", "write" if v.changes else "read", v.name)
        for v in verbs
        if "http" in v.doors
    ]


def control(home: Home, access: Access, verbs: Sequence[Verb] = VERBS, *, folder: Path | None = None) -> Any:
    """The application with its access checks; `folder` is where this server's processes report their state."""
    table = control_routes(verbs)
    check_routes(table)
    by_name = {v.name: v for v in verbs}
    slots = {name: Slots(at_once, waiting=waiting, seconds=seconds) for name, (at_once, waiting, seconds) in SLOTS.items()}
    routes: list[BaseRoute] = [
        Path_(r.path, _endpoint(home, access, by_name[r.handler], slots), methods=[r.method]) for r in table
    ]
    routes += [Path_("/livez", _live), Path_("/readyz", _ready(folder)), Path_("/api", _listing(table, by_name))]
    application = Starlette(
        routes=[*routes, *console_routes(home, slots["read"])], exception_handlers={404: _at_door(404), 405: _at_door(405)}
    )
    return Guarded(application, access, home.settings.port)


class Guarded:
    """Checks access before any other code sees a request. Methods other than GET and HEAD need the permission to write."""

    def __init__(self, application: Any, access: Access, data_port: int) -> None:
        self._application, self._access = application, access
        port = f"port {data_port}" if data_port else "the data port, which `loopwright serve` prints"
        where = f"this is the control port: predictions and outcomes go to {port}"
        self._elsewhere = NotFound("path here", "/loops/LOOP/...", next_step=where)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        permission: Permission = "read" if scope["method"] in ("GET", "HEAD") else "write"
        if scope["raw_path"] in (b"/livez", b"/readyz"):
            permission = "public"
        status = self._access.refuse(permission, dict(scope["headers"]), (scope.get("client") or ("",))[0])
        if status in (0, 403) and permission == "write" and scope["raw_path"].startswith(DATA_PATHS):
            await _json(describe(self._elsewhere), status_of(self._elsewhere), {"connection": "close"})(scope, receive, send)
            return
        if not status:
            await self._application(scope, receive, send)
            return
        extra = {401: {"www-authenticate": 'Basic realm="loopwright", charset="UTF-8"'}, 429: {"retry-after": "1"}}.get(
            status, {}
        )
        await _json(describe_status(status), status, {**extra, "connection": "close"})(scope, receive, send)


def _endpoint(home: Home, access: Access, verb: Verb, slots: Mapping[str, Slots]) -> Callable[[Request], Awaitable[Response]]:
    run = slots.get(verb.name) or slots["change" if verb.changes else "read"]

    async def answer(request: Request) -> Response:
        try:
            given = _keyed(request, await _body(request)) if verb.changes else dict(request.query_params)
            acting = home.acting_as(str(_caller(access, request))) if verb.changes else home
            return _json(await run(lambda: verb.call(acting, **_arguments(verb, given)), verb.name))
        except ClientDisconnect:  # in the middle of its arguments: there is no client to answer
            return _json(describe_status(400), 400)
        except LoopwrightError as error:
            status = status_of(error)
            return _json(describe(error, arguments=parameters(verb)), status, {"retry-after": "1"} if status == 503 else {})
        except Exception as error:  # noqa: BLE001  # nothing internal goes out, and the server lives
            traceback.print_exception(error, file=sys.stderr)
            return _json(describe_status(500), 500)

    return answer


def _caller(access: Access, request: Request) -> Caller:
    return access.caller(dict(request.headers.raw), request.client.host if request.client else "nowhere")


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UsageError("send the arguments as a JSON object, with Content-Type: application/json")
    parts: list[bytes] = []
    async for part in request.stream():
        parts.append(part)
        if sum(map(len, parts)) > MAX_BYTES:
            raise RequestTooLarge("bytes", MAX_BYTES)
    plain = parse(b"".join(parts) or b"{}")
    if not isinstance(plain, dict):
        raise RequestInvalid([("body", "must be an object of arguments")])
    return plain


def _keyed(request: Request, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a change with its idempotency key, which may be in a header. Raises RequestMalformed for an invalid key."""
    found = (request.headers[name] for name in KEY_HEADERS if name in request.headers)
    key = arguments.get(KEY) or next(found, None)
    if key is None:
        return arguments
    bare = key.strip('"') if isinstance(key, str) else key  # Idempotency-Key may be a quoted string (RFC 8941)
    if isinstance(bare, str) and not _KEY.fullmatch(bare):
        raise RequestMalformed("Idempotency-Key or X-Request-Id must be 1 to 128 visible ASCII characters")
    return {**arguments, KEY: bare}


def parameters(verb: Verb) -> dict[str, inspect.Parameter]:
    """The parameters of a verb that a client may set; loads the verb.

    Raises UsageError for a verb that would let a client name a path, or whose repeated request would repeat a change.
    """
    found = {name: p for name, p in inspect.signature(verb.call).parameters.items() if name not in _FILLED_IN}
    for name, parameter in found.items():
        if Path in (parameter.annotation, *get_args(parameter.annotation)):
            raise UsageError(
                f"verb {verb.name!r} takes a path ({name}); a client never names a location: leave out the door `http`"
            )
    if verb.changes and KEY not in found:
        raise UsageError(f"verb {verb.name!r} changes something and takes no {KEY}: a request sent again would do it twice")
    return found


def _arguments(verb: Verb, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments converted to the verb's types. Raises RequestInvalid naming every invalid one."""
    expected = parameters(verb)
    problems = [
        (name[:80], f"is no argument; there is {', '.join(expected) or 'none'}") for name in arguments if name not in expected
    ]
    found = {}
    for name, parameter in expected.items():
        if name not in arguments:
            if parameter.default is inspect.Parameter.empty:
                problems.append((name, "is missing"))
            continue
        try:
            found[name] = msgspec.convert(arguments[name], parameter.annotation, strict=verb.changes)
        except ValueError as error:
            problems.append((name, str(error)))
    if problems:
        raise RequestInvalid(problems)
    return found


async def _live(_: Request) -> Response:
    return _json({"live": True})


def _ready(folder: Path | None) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        processes = {"console": state()} if folder is None else states(folder)
        down = {name: process.down for name, process in processes.items() if process.down}
        return _json({"ready": not down, "down": down}, 503 if down else 200)

    return answer


def _listing(table: Sequence[Route], verbs: Mapping[str, Verb]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        listing = [
            {
                "verb": r.handler,
                "method": r.method,
                "path": r.path,
                "help": verbs[r.handler].help,
                "arguments": list(parameters(verbs[r.handler])),
            }
            for r in table
        ]
        return _json(listing)

    return answer


def _at_door(status: int) -> Callable[[Request, Exception], Response]:
    return lambda _request, _error: _json(describe_status(status), status)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    more = {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})}
    return Response(encoded(value), status, more, "application/json")
