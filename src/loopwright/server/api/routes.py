"""Every route of the data plane, in one table, each with the permission it asks for."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from loopwright.base.errors import UsageError
from loopwright.base.ids import NAME

MAX_KNOWN = 10_000
"""Maximum number of cached paths."""

Permission = Literal["public", "predict", "observe", "read", "write"]
"""public: no token; predict: predictions and outcomes; observe: metrics and contracts; read, write: the control API."""


class Route(NamedTuple):
    """Method, path (`{loop}` is a name, `{version}` a package or the beginning of its digest), required permission, and handler's name."""

    method: Literal["GET", "POST"]
    path: str
    permission: Permission
    handler: str


DATA_ROUTES: tuple[Route, ...] = (
    Route("POST", "/loops/{loop}/predict", "predict", "predict"),
    Route("POST", "/loops/{loop}/outcomes", "predict", "outcomes"),
    Route("POST", "/v2/models/{loop}/infer", "predict", "infer"),
    Route("GET", "/v2/models/{loop}", "observe", "model"),
    Route("GET", "/loops/{loop}/ready", "public", "model_ready"),
    Route("GET", "/v2/models/{loop}/ready", "public", "model_ready"),
    Route("POST", "/v2/models/{loop}/versions/{version}/infer", "predict", "infer"),
    Route("GET", "/v2/models/{loop}/versions/{version}", "observe", "model"),
    Route("GET", "/v2/models/{loop}/versions/{version}/ready", "public", "model_ready"),
    Route("GET", "/v2/models/{loop}/config", "observe", "config"),
    Route("GET", "/v2/models/{loop}/versions/{version}/config", "observe", "config"),
    Route("GET", "/v2/models/{loop}/stats", "observe", "stats"),
    Route("GET", "/v2/models/{loop}/versions/{version}/stats", "observe", "stats"),
    Route("GET", "/v2/models/stats", "observe", "all_stats"),
    Route("POST", "/v2/repository/index", "predict", "index"),
    Route("POST", "/v2/repository/models/{loop}/load", "predict", "load"),
    Route("POST", "/v2/repository/models/{loop}/unload", "predict", "load"),
    Route("POST", "/v1/models/{loop}:predict", "predict", "predict_instances"),
    Route("GET", "/v1/models/{loop}", "public", "model_ready"),
    Route("GET", "/v1/models", "observe", "models"),
    Route("GET", "/v2/health/live", "public", "live"),
    Route("GET", "/v2/health/ready", "public", "ready"),
    Route("GET", "/v2", "observe", "server"),
    Route("GET", "/v2/", "observe", "server"),
    Route("GET", "/", "public", "alive"),
    Route("GET", "/livez", "public", "live"),
    Route("GET", "/readyz", "public", "ready"),
    Route("GET", "/metrics", "observe", "metrics"),
    Route("GET", "/openapi.json", "observe", "openapi"),
)


_VERSION = "([0-9a-f]{1,64})"


class Match(NamedTuple):
    """A route, and the loop and the version in its path ("" when it has none)."""

    route: Route
    loop: str
    version: str = ""


class Routes:
    """Finds the route of a request by its raw path, so that no encoding gets past the check of names."""

    def __init__(self, routes: Sequence[Route]) -> None:
        check_routes(routes)
        self._fixed: dict[bytes, dict[str, Route]] = {}
        self._named: list[tuple[re.Pattern[bytes], dict[str, Route]]] = []
        self._known: dict[tuple[bytes, bytes], Match] = {}
        named: dict[str, dict[str, Route]] = {}
        for route in routes:
            if "{loop}" in route.path:
                named.setdefault(route.path, {})[route.method] = route
            else:
                self._fixed.setdefault(route.path.encode(), {})[route.method] = route
        for path, methods in named.items():
            pattern = (
                re.escape(path).replace(re.escape("{loop}"), f"({NAME.pattern})").replace(re.escape("{version}"), _VERSION)
            )
            self._named.append((re.compile(pattern.encode()), methods))

    def find(self, method: bytes, raw_path: bytes) -> Match | frozenset[str] | None:
        """The route, or the methods that the path has when `method` is not one of them, or None for an unknown path."""
        found = self._known.get((method, raw_path))
        if found is not None:
            return found
        match = self._find(method.decode("latin-1"), raw_path)
        if isinstance(match, Match) and len(self._known) < MAX_KNOWN:
            self._known[method, raw_path] = match
        return match

    def _find(self, method: str, raw_path: bytes) -> Match | frozenset[str] | None:
        methods, named = self._fixed.get(raw_path), [""]
        if methods is None:
            for pattern, candidates in self._named:
                found = pattern.fullmatch(raw_path)
                if found is not None:
                    methods, named = candidates, [part.decode() for part in found.groups()]
                    break
        if methods is None:
            return None
        route = methods.get("GET" if method == "HEAD" else method)
        return Match(route, *named) if route is not None else frozenset(methods)


def check_routes(routes: Sequence[Route]) -> None:
    """Refuse a table in which a route names no known permission: raises UsageError, and the server does not start."""
    for route in routes:
        if route.permission not in get_args(Permission):
            raise UsageError(f"route {route.method} {route.path} declares no permission; the server does not start without")
