import pytest

from loopwright.base.errors import UsageError
from loopwright.server.api.control import control_routes
from loopwright.server.api.routes import DATA_ROUTES, Match, Route, Routes, check_routes

routes = Routes(DATA_ROUTES)


def test_every_route_declares_its_permission() -> None:
    check_routes(DATA_ROUTES)
    check_routes(control_routes())
    for undeclared in ("", None, "anything"):
        with pytest.raises(UsageError, match="declares no permission"):
            Routes([*DATA_ROUTES, Route("GET", "/secret", undeclared, "x")])  # type: ignore[arg-type]  # what is tested


def test_only_health_is_public_and_whatever_changes_is_write() -> None:
    public = {r.path for r in DATA_ROUTES if r.permission == "public"}
    models = {
        "/loops/{loop}/ready",
        "/v2/models/{loop}/ready",
        "/v2/models/{loop}/versions/{version}/ready",
        "/v1/models/{loop}",
    }
    assert public == {"/", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"} | models
    assert all(r.permission == "predict" for r in DATA_ROUTES if r.method == "POST")
    assert {(r.method, r.permission) for r in control_routes()} == {("GET", "read"), ("POST", "write")}


def test_paths_are_found_with_their_loop() -> None:
    found = routes.find(b"POST", b"/loops/late-arrival/predict")
    assert isinstance(found, Match)
    assert (found.loop, found.route.handler) == ("late-arrival", "predict")
    found = routes.find(b"GET", b"/v2/models/a.b_c-1")
    assert isinstance(found, Match)
    assert (found.loop, found.route.handler) == ("a.b_c-1", "model")
    found = routes.find(b"POST", b"/v2/models/a.b_c-1/versions/3fa9/infer")
    assert isinstance(found, Match)
    assert (found.loop, found.version, found.route.handler) == ("a.b_c-1", "3fa9", "infer")
    assert isinstance(routes.find(b"HEAD", b"/livez"), Match)
    assert routes.find(b"GET", b"/loops/late-arrival/predict") == frozenset({"POST"})


@pytest.mark.parametrize(
    "path",
    [
        b"/loops/../predict", b"/loops//predict", b"/loops/A/predict", b"/loops/%61/predict", b"/loops/a%00/predict", b"/loops/a/predict/",
        b"/loops/a/predict\n", b"//loops/a/predict", b"/loops/a/b/predict", b"/loops/" + b"a" * 65 + b"/predict", b"", b"/metrics/",
        b"/v2/models/a/versions//infer", b"/v2/models/a/versions/3F/infer", b"/v2/models/a/versions/" + b"a" * 65 + b"/infer",
        "/loops/lаte/predict".encode(),
    ],
)  # fmt: skip
def test_other_paths_are_not_found(path: bytes) -> None:
    assert routes.find(b"POST", path) is None
