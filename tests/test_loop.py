"""Loop: declarations are checked as a whole, travel as JSON, and load from a file."""

import json
import sys
from pathlib import Path

import msgspec
import pytest

from loopwright.base.errors import DeclarationInvalid, LoopNotFound
from loopwright.cli.main import run
from loopwright.loop import load_loop
from loopwright.records.declarations import (
    Aggregate,
    Candidate,
    Column,
    Context,
    Heuristic,
    Loop,
    Objective,
    Outcome,
    Sampling,
    Scope,
    StratifiedSplit,
    Table,
    declaration_digest,
    to_builtins,
)

TIME = Column("timestamp")
REQUESTS = Table(
    "orders", {"order": Column("string"), "at": TIME, "shop": Column("string"), "amount": Column("float")}, ["order"], "at"
)
OUTCOMES = Table("returns", {"order": Column("string"), "at": TIME, "returned": Column("boolean")}, ["order"], "at")
SHOPS = Table("shops", {"shop": Column("string"), "at": TIME, "rating": Column("float")}, ["shop"], "at")


def declared(**changes: object) -> Loop:
    """A lawful loop, changed as asked."""
    given: dict[str, object] = {
        "name": "returns",
        "scope": Scope(
            problem="Which orders will come back?",
            objectives=[Objective("catch them", "sales", "average_precision", at_least=0.5)],
            heuristic=Heuristic(lambda f: f.amount > 100),
        ),
        "requests": REQUESTS,
        "outcome": Outcome(OUTCOMES, "returned"),
        "features": lambda f: {"amount": f.amount},
        "candidates": [Candidate("simple", lambda: None)],
        "context": [Context(SHOPS, {"shop": "shop"}, ["rating"])],
    }
    return Loop(**(given | changes))  # type: ignore[arg-type]  # wrong on purpose in some tests


def test_context_columns_are_nullable_and_follow_the_request() -> None:
    """What the features see: request columns as declared, context columns that may be missing."""
    loop = declared()
    assert list(loop.columns) == ["order", "at", "shop", "amount", "rating"]
    assert loop.columns["rating"].nullable
    assert not loop.columns["amount"].nullable
    assert sorted(loop.tables) == ["orders", "returns", "shops"]


def test_json_and_back_keeps_everything_but_the_code() -> None:
    """A scheduler reads the loop from JSON: the same declaration, with functions as source text."""
    loop = declared()
    again = msgspec.convert(to_builtins(loop), Loop)
    assert again.requests == loop.requests
    assert again.scope.objectives == loop.scope.objectives
    assert "f.amount" in again.features
    assert declaration_digest(again) == declaration_digest(loop)
    assert declaration_digest(declared(seed=1)) != declaration_digest(loop)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Not lawful"}, "name"),
        ({"candidates": []}, "candidates"),
        ({"candidates": [Candidate("heuristic", lambda: None)]}, "candidates"),
        ({"features": 3}, "features"),
        ({"context": [Context(SHOPS, {"shop": "store"}, ["rating"])]}, "context[0].by.shop"),
        (
            {"context": [Context(SHOPS, {"shop": "shop"}, ["rating"]), Context(SHOPS, {"shop": "shop"}, ["rating"])]},
            "context[1].columns",
        ),
        ({"outcome": Outcome(SHOPS, "rating > 3")}, "outcome.table.key"),
        ({"sampling": Sampling(keep={"no": 0.5})}, "sampling.keep.no"),
        ({"sampling": Sampling(balanced=True), "outcome": Outcome(OUTCOMES, "order", task="regression")}, "sampling"),
        (
            {"split": StratifiedSplit(), "outcome": Outcome(OUTCOMES, "returned", task="ranking", group="shop")},
            "split",
        ),
    ],
)
def test_a_wrong_declaration_names_its_field(changes: dict[str, object], field: str) -> None:
    """Each error names the field that is wrong."""
    with pytest.raises(DeclarationInvalid) as caught:
        declared(**changes)
    assert field in [p.field for p in caught.value.problems]


def test_keys_that_could_never_be_equal_are_refused() -> None:
    """A context or an aggregate is found by columns of the same type, and not by floats."""
    count = Aggregate(name="n", table=SHOPS, by={"shop": "amount"}, function="count", window="1h")
    by_rating = Aggregate(name="m", table=SHOPS, by={"rating": "amount"}, function="count", window="1h")
    with pytest.raises(DeclarationInvalid) as caught:
        declared(context=[Context(SHOPS, {"shop": "at"}, ["rating"])], aggregates=[count, by_rating])
    assert [(p.field, p.reason) for p in caught.value.problems] == [
        ("context[0].by.shop", "is string in the table, but 'at' is timestamp: they would never be equal"),
        ("aggregates[0].by.shop", "is string in the table, but 'amount' is float: they would never be equal"),
        ("aggregates[1].by.rating", "float values are no keys"),
    ]


def test_all_problems_are_named_at_once() -> None:
    """Nobody has to mend a declaration one error at a time."""
    with pytest.raises(DeclarationInvalid) as caught:
        declared(name="NO", candidates=[], features=None)
    assert {p.field for p in caught.value.problems} >= {"name", "candidates", "features"}


def test_load_loop_from_file_and_folder(tmp_path: Path) -> None:
    """A loop file is found by its own path and by its folder's; it may import its neighbours."""
    (tmp_path / "rules.py").write_text("def rule(f):\n    return f.amount > 100\n")
    (tmp_path / "loop.py").write_text(
        "from rules import rule\n"
        "from loopwright import Candidate, Column, Heuristic, Loop, Objective, Outcome, Scope, Table\n"
        "t = Table('orders', {'order': Column('string'), 'at': Column('timestamp'), 'amount': Column('float')}, ['order'], 'at')\n"
        "o = Table('returns', {'order': Column('string'), 'at': Column('timestamp'), 'returned': Column('boolean')}, ['order'], 'at')\n"
        "loop = Loop(name='returns', requests=t, outcome=Outcome(o, 'returned'), features=lambda f: {'a': f.amount},\n"
        "    candidates=[Candidate('simple', lambda: None)],\n"
        "    scope=Scope(problem='p', heuristic=Heuristic(rule), objectives=[Objective('a', 'b', 'recall', at_least=0.5)]))\n"
    )
    assert load_loop(tmp_path).name == load_loop(tmp_path / "loop.py").name == "returns"


def test_load_loop_says_what_is_wrong(tmp_path: Path) -> None:
    """No file, and a file without a loop, are told apart."""
    with pytest.raises(LoopNotFound):
        load_loop(tmp_path / "none.py")
    (tmp_path / "loop.py").write_text("x = 1\n")
    with pytest.raises(DeclarationInvalid, match="must set"):
        load_loop(tmp_path)


FILE = """from loopwright import Candidate, Column, Heuristic, Loop, Monitor, Objective, Outcome, Scope, Table
t = Table("orders", {"order": Column("string"), "at": Column("timestamp"), "amount": Column("float")}, ["order"], "at")
EXTRA
loop = Loop(name="orders", requests=t, outcome=Outcome(t, "amount > 3"), features=lambda f: {"a": f.amount},
    candidates=[Candidate("simple", lambda: None)],
    scope=Scope(problem="p", heuristic=Heuristic(lambda f: f.amount > 1), objectives=[Objective("a", "b", "recall", at_least=0.5)]))
"""

BROKEN = {
    "m = Monitor(evry='1d')": "line 3 `m = Monitor(evry='1d')`: TypeError: Unexpected keyword argument 'evry': did you mean `every`?",
    "m = Monitor(every='0d')": "line 3 `m = Monitor(every='0d')`: Monitor.every: '0d' is not at least 1m",
    "m = Monitor(": "SyntaxError",
    "import no_such_library": "line 3 `import no_such_library`: ModuleNotFoundError: No module named 'no_such_library': install it",
    "from loopwright import Retrian": "ImportError: cannot import name 'Retrian'",
    "m = Monitr()": "NameError: name 'Monitr' is not defined: did you mean `Monitor`?",
    "1 / 0": "line 3 `1 / 0`: ZeroDivisionError",
    "raise SystemExit": "line 3 `raise SystemExit`: ends the process (SystemExit: None)",
    "import sys; sys.exit(0)": "ends the process (SystemExit: 0)",
    "raise KeyboardInterrupt": "line 3 `raise KeyboardInterrupt`: KeyboardInterrupt",
    "x = 1; raise KeyboardInterrupt('stop')": "KeyboardInterrupt: stop",
    "raise GeneratorExit": "line 3 `raise GeneratorExit`: GeneratorExit",
    "open('/no/such/file')": "line 3 `open('/no/such/file')`: FileNotFoundError",
    "import beside": "beside.py, line 2 `x = 1 / 0`: ZeroDivisionError",
    "import unwritten": "unwritten.py, line 1",
}


def test_loop_file_that_was_changed_is_quoted_as_it_is_now(tmp_path: Path) -> None:
    """A notebook reads it again and again in one process."""
    for wrong in ("x = undefined", "loop = = None"):
        (tmp_path / "loop.py").write_text(f"{wrong}\n")
        with pytest.raises(DeclarationInvalid, match=f"line 1 `{wrong}`"):
            load_loop(tmp_path)


@pytest.mark.parametrize("extra", BROKEN)
def test_broken_loop_file_names_the_line_and_what_was_meant(
    tmp_path: Path, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in few lines and an exit code, whatever the file does; the whole traceback where it is asked for."""
    (tmp_path / "beside.py").write_text("\nx = 1 / 0\n")
    (tmp_path / "unwritten.py").write_text("def f(:\n")
    file = tmp_path / "loop.py"
    file.write_text(FILE.replace("EXTRA", extra))
    at = ["--home", str(tmp_path / "home")]
    assert run([*at, "check", str(file)]) == 2
    told = capsys.readouterr()
    assert str(file) in told.err
    assert BROKEN[extra] in told.err
    assert len(told.err.splitlines()) <= 3
    assert told.out == ""
    assert run([*at, "check", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "declaration_invalid"
    monkeypatch.setenv("LOOPWRIGHT_TRACEBACK", "1")
    assert run([*at, "check", str(file)]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert not [name for name in sys.modules if name.startswith("loopwright_loop_" + tmp_path.name)]


@pytest.mark.parametrize("raised", ["ValueError", "SystemExit", "GeneratorExit"])
def test_loop_file_whose_exception_cannot_be_shown_is_named_with_its_line(tmp_path: Path, raised: str) -> None:
    file = tmp_path / "loop.py"
    file.write_text(f"class Odd(Exception):\n    def __str__(self):\n        raise {raised}\n\nraise Odd\n")
    with pytest.raises(DeclarationInvalid, match=r"line 5 .*Odd: Odd"):
        load_loop(file)


INTERRUPTED = {  # with the handler that Python has unless it was started with SIGINT ignored, as by `nohup`
    "signal": "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(signal.SIGINT)\n",
    "raised again": "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise\n",
    "replaced": "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise KeyboardInterrupt\n",
}


@pytest.mark.parametrize("interrupted", INTERRUPTED)
def test_interrupt_while_a_loop_file_is_read_ends_the_command(tmp_path: Path, interrupted: str) -> None:
    """A Ctrl-C of who waits is no error of the file, also where the file cleans up after it."""
    file = tmp_path / "loop.py"
    file.write_text(INTERRUPTED[interrupted])
    assert run(["--home", str(tmp_path / "home"), "check", str(file)]) == 130
