"""The console's routes: HTML for people, the same value as JSON under `.json`, charts as SVG. Nothing here changes anything.

The pages need no script to be read: one small script of our own keeps the first page fresh. The policy header allows
nothing but this server's own files.
"""

import re
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from loopwright.base.errors import Damaged, LedgerUnavailable, LoopwrightError, NotFound, RequestInvalid, Unavailable
from loopwright.base.ids import NAME, is_trace_id
from loopwright.base.printable import encoded
from loopwright.console import charts, wheel
from loopwright.console.filters import FILTERS
from loopwright.console.pages import Cached, ErrorPage, PageSource, Verbs, home_page
from loopwright.render.http_errors import describe, status_of

if TYPE_CHECKING:
    from loopwright.stores.home import Home

FOLDER = Path(__file__).parent
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
STATIC = {"console.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}

ASKED = ("key", "since", "until", "flag", "package", "before")
"""Query parameters of the predictions page."""
QUERY = {"page": re.compile("[1-9][0-9]{0,5}"), "size": re.compile("narrow|wide"), "theme": re.compile("dark|light")}
"""Valid values of the query parameters of other pages."""

PAGES: tuple[tuple[str, str], ...] = (
    ("/", "the wheel of six stages with live state, and every loop"),
    ("/loops/{loop}", "one loop: who serves, leaderboard, drift and quality over time, value, alerts"),
    ("/loops/{loop}/predictions", "the prediction log of a loop: newest first, by key, time, flag and package"),
    ("/predictions/{id}", "one prediction: request, features, package, training data, release, outcome, value"),
)
"""The pages and their contents; each has the same value as JSON under `.json` (the first under `/index.json`)."""


Run = Callable[[Callable[[], Response], str], Awaitable[Response]]
"""Runs the function that makes a page: in a thread, with limited concurrency."""


async def in_a_thread(call: Callable[[], Response], what: str) -> Response:
    """Make a page in a thread, however many there are."""
    return await run_in_threadpool(call)


def routes(home: "Home", run: Run = in_a_thread) -> list[Route]:
    """The routes of the console over `home`; all of them only read."""
    return routes_over(Cached(Verbs(home), home), run)


def routes_over(source: PageSource, run: Run = in_a_thread) -> list[Route]:
    """The routes of the console over any page source."""

    def limited(
        make: Callable[[Request], Response], parameters: tuple[str, ...] = ()
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                _check_query(request, parameters)
                return await run(lambda: make(request), "this page")
            except (Unavailable, RequestInvalid) as error:
                return _refusal(error, as_json=request.url.path.endswith(".json"))

        return endpoint

    def start(request: Request) -> Response:
        page = int(request.query_params.get("page", "1"))
        return _answer(request, lambda: home_page(source, page), "home.html", as_json=request.url.path.endswith(".json"))

    def loop(request: Request) -> Response:
        name, as_json = _named(request, "loop")
        return _answer(request, lambda: source.loop(_lawful(name)), "loop.html", as_json=as_json)

    def chart(request: Request) -> Response:
        return _chart(request, source)

    def listed(request: Request) -> Response:
        query = {name: text for name in ASKED if (text := request.query_params.get(name, "").strip())}
        name, as_json = request.path_params["loop"], request.url.path.endswith(".json")
        return _answer(request, lambda: source.predictions(_lawful(name), query), "predictions.html", as_json=as_json)

    def prediction(request: Request) -> Response:
        id, as_json = _named(request, "id")
        return _answer(request, lambda: source.trace(_trace_id(id)), "trace.html", as_json=as_json)

    return [
        Route("/", limited(start, ("page",)), name="home"),
        Route("/index.json", limited(start, ("page",)), name="home.json"),
        Route("/loops/{loop}", limited(loop), name="loop"),
        Route("/loops/{loop}/predictions", limited(listed, ASKED), name="predictions"),
        Route("/loops/{loop}/predictions.json", limited(listed, ASKED), name="predictions.json"),
        Route("/loops/{loop}/charts/{chart}.svg", limited(chart, ("size", "theme")), name="chart"),
        Route("/predictions", _find, name="find"),
        Route("/predictions/{id}", limited(prediction), name="prediction"),
        Route("/static/{file}", _static, name="static"),
    ]


def _check_query(request: Request, parameters: tuple[str, ...]) -> None:
    """Refuse unknown parameters and invalid values. Raises RequestInvalid naming each."""
    problems = []
    for name, value in request.query_params.multi_items():
        if name not in parameters:
            problems.append((name[:80], f"is no parameter of this page; there is {', '.join(parameters) or 'none'}"))
        elif name in QUERY and not QUERY[name].fullmatch(value):
            problems.append((name, f"{value[:80]!r} must match {QUERY[name].pattern}"))
    if problems:
        raise RequestInvalid(problems, what="the query")


def _named(request: Request, parameter: str) -> tuple[str, bool]:
    """A path parameter without `.json`, and whether it was there."""
    text: str = request.path_params[parameter]
    return text.removesuffix(".json"), text.endswith(".json")


def _lawful(loop: str) -> str:
    """The name of a loop, before anything is looked up by it."""
    if not NAME.fullmatch(loop):
        raise NotFound("loop", loop)
    return loop


def _trace_id(text: str) -> str:
    if not is_trace_id(text):
        raise NotFound("prediction", text, next_step="an id is the 32 hexadecimal digits that came with the answer")
    return text


def _answer(request: Request, ask: Callable[[], msgspec.Struct], template: str, *, as_json: bool) -> Response:
    try:
        page = ask()
    except LoopwrightError as error:
        return _refusal(error, as_json=as_json)
    if as_json:
        return _json(page)
    return _html(template, 200, page=page, path=request.url.path)


def _refusal(error: LoopwrightError, *, as_json: bool) -> Response:
    status, described = status_of(error), describe(error)
    if as_json:
        reply = _json(described, status)
    else:
        said = described["error"]["message"] if isinstance(error, Damaged | LedgerUnavailable) else str(error)
        reply = _html("error.html", status, page=ErrorPage(status=status, code=error.code, message=said), path="")
    if status == 503:
        reply.headers["retry-after"] = "2"
    return reply


def _json(value: Any, status: int = 200) -> Response:
    return Response(encoded(value), status, HEADERS, "application/json")


def _html(template: str, status: int, **values: Any) -> Response:
    return Response(_templates().get_template(template).render(**values), status, HEADERS, "text/html")


def _chart(request: Request, source: PageSource) -> Response:
    name = request.path_params["chart"]
    size: charts.Size = "narrow" if request.query_params.get("size") == "narrow" else "wide"
    theme: charts.Theme = "dark" if request.query_params.get("theme") == "dark" else "light"
    try:
        page = source.loop(_lawful(request.path_params["loop"]))
        if name not in charts.available(page):
            raise NotFound("chart", name)
        return Response(charts.svg(page, name, size=size, theme=theme), 200, HEADERS, "image/svg+xml")
    except LoopwrightError as error:
        return _refusal(error, as_json=False)


def _find(request: Request) -> Response:
    """The form in the page's head: go to the prediction with that id."""
    id = request.query_params.get("id", "").strip().lower()
    if not is_trace_id(id):
        return _refusal(
            NotFound("prediction", id, next_step="an id is the 32 hexadecimal digits that came with the answer"), as_json=False
        )
    return RedirectResponse(f"/predictions/{id}", 303, HEADERS)


def _static(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in STATIC:
        return _refusal(NotFound("file", name), as_json=False)
    headers = {**HEADERS, "cache-control": "no-cache"}
    return Response((FOLDER / "static" / name).read_bytes(), 200, headers, STATIC[name])


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals.update(wheel=wheel, charts=charts, signs=wheel.SIGNS)
    return made
