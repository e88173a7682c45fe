import inspect
import re

import pytest

from loopwright.base import errors
from loopwright.base.errors import (
    ConversionRefused,
    DeclarationInvalid,
    ExtraMissing,
    GateFailed,
    IngestRefused,
    LoopNotFound,
    LoopwrightError,
    NotFound,
    PackageNotFound,
    PackageRefused,
    PredictionNotFound,
    RecordNotFound,
    ReleaseConflict,
    RequestInvalid,
    SettingInvalid,
    TableNotFound,
)


def tree(root: type[LoopwrightError]) -> dict[str, str]:
    """Name to parent's name, of everything below."""
    found = {}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found[child.__name__] = root.__name__
            found |= tree(child)
    return found


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents = {-1: "LoopwrightError"}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]+)(\w+)", line):
            depth = len(match[1]) // 4 - 1
            drawn[match[2]] = parents[depth - 1]
            parents[depth] = match[2]
    assert drawn == tree(LoopwrightError)


def test_every_error_says_what_it_is_for_and_none_knows_http() -> None:
    for name in tree(LoopwrightError):
        assert getattr(errors, name).__doc__
    assert not re.search(r"import (http|starlette)|status_code|\b[45]\d\d\b", inspect.getsource(errors))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SettingInvalid("LOOPWRIGHT_PORT", "x", "no number"), "setting LOOPWRIGHT_PORT = 'x': no number"),
        (DeclarationInvalid("Scope", [("a", "wrong"), ("b[0]", "bad")]), "Scope is not valid:\n  a: wrong\n  b[0]: bad"),
        (RequestInvalid([("a", "missing")]), "the request breaks the contract: a: missing"),
        (ExtraMissing("postgres", "a ledger"), "a ledger needs an extra: pip install 'loopwright[postgres]'"),
        (LoopNotFound("lat", ["late"]), "no loop 'lat' - nearest: late; list them with `loopwright status`"),
        (PackageNotFound("3fa9", ["3fa1", "3fb9"]), "no package '3fa9' - nearest: 3fa1, 3fb9; list them with"),
        (PredictionNotFound("00"), "no prediction '00'; an id is the 32 hexadecimal digits"),
        (TableNotFound("wether"), "no table 'wether'; declare it in the loop file"),
        (
            TableNotFound("orders", is_empty=True),
            "no table 'orders'; nothing was ingested into it in this home: `loopwright ingest orders FILE --loop LOOP`",
        ),
        (RecordNotFound("x"), "no record 'x'; see `loopwright status`"),
        (NotFound("thing", "y" * 500), f"no thing '{'y' * 80}'"),
        (IngestRefused("a.csv", "truncated"), "a.csv was not ingested: truncated"),
        (ConversionRefused("mlp", "no converter"), "candidate 'mlp' cannot become one graph: no converter"),
        (PackageRefused("a" * 64, "digest"), f"package {'a' * 12} refused: digest"),
        (GateFailed("b" * 64, ["slow", "worse"]), f"package {'b' * 12} did not pass the gate: slow; worse"),
        (ReleaseConflict("release.a", 1, 2), "release.a is at generation 2, not 1: somebody changed it first"),
    ],
)
def test_a_message_has_the_facts_and_the_next_step(error: LoopwrightError, message: str) -> None:
    assert str(error).startswith(message)


def test_at_most_twenty_fields_are_named() -> None:
    error = RequestInvalid([(f"f{i}", "missing") for i in range(50)])
    assert len(error.problems) == 20
    assert error.problems[3] == ("f3", "missing")
