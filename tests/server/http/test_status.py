import inspect

from loopwright.base import errors
from loopwright.server.http.status import CODES, STATUS, describe, status_of


def test_every_error_has_a_row_before_its_parent() -> None:
    kinds = [kind for kind, _, _ in STATUS]
    for i, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[i + 1 :]), kind
    for _, found in inspect.getmembers(errors, inspect.isclass):
        if issubclass(found, errors.LoopwrightError):
            status, code = status_of(found.__new__(found))
            assert 400 <= status < 600
            assert code


def test_what_goes_out_names_fields_and_nothing_internal() -> None:
    described = describe(errors.RequestInvalid([("a", "is missing"), ("b", "too large")]), "id-1")
    assert described == {
        "error": {
            "code": "invalid",
            "message": "the request breaks the contract",
            "fields": [{"field": "a", "reason": "is missing"}, {"field": "b", "reason": "too large"}],
            "id": "id-1",
        }
    }
    assert describe(errors.Damaged("/home/x/file is cut off"))["error"]["message"] == CODES[500][1]
    away = errors.LedgerUnavailable("postgresql://user:secret@host")
    assert status_of(away) == (503, "ledger_unavailable")
    assert "secret" not in describe(away)["error"]["message"]
