import inspect

from loopwright.base import errors
from loopwright.render.http_errors import DOOR, STATUS, describe, status_of


def test_every_error_has_a_row_before_its_parent() -> None:
    kinds = [kind for kind, _ in STATUS]
    for i, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[i + 1 :]), kind
    for _, found in inspect.getmembers(errors, inspect.isclass):
        if issubclass(found, errors.LoopwrightError):
            assert 400 <= status_of(found.__new__(found)) < 600


def test_code_of_an_error_is_the_name_of_its_class_once() -> None:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LoopwrightError)]
    assert {k.code for k in found} >= {"loopwright_error", "usage_error", "not_found", "loop_not_found", "request_invalid"}
    assert len({k.code for k in found}) == len(found)


def test_what_goes_out_names_fields_and_nothing_internal() -> None:
    described = describe(errors.RequestInvalid([("a", "is missing"), ("b", "too large")]), "id-1")
    assert described == {
        "error": {
            "code": "request_invalid",
            "message": "the request breaks the contract",
            "fields": [{"field": "a", "reason": "is missing"}, {"field": "b", "reason": "too large"}],
            "id": "id-1",
        }
    }
    assert describe(errors.Damaged("/home/x/file is cut off"))["error"]["message"] == DOOR[500][1]
    away = errors.LedgerUnavailable("postgresql://user:secret@host")
    assert (status_of(away), away.code) == (503, "ledger_unavailable")
    assert "secret" not in describe(away)["error"]["message"]


def test_option_of_a_command_is_named_as_the_argument_that_it_is_here() -> None:
    error = errors.UsageError(
        "--despite-guard needs --why REASON (`--force`: `loopwright release LOOP --force`); --until is none here"
    )
    said = describe(error, arguments=["despite_guard", "why", "force"])["error"]["message"]
    assert said == "`despite_guard` needs `why` REASON (`force`: `loopwright release LOOP --force`); --until is none here"
