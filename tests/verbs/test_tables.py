"""The verbs of tables, through the command line as a person types them."""

import json
from pathlib import Path
from typing import Any

import pytest

from loopwright.cli.main import run

LOOP = """
from loopwright import *
orders = Table("orders", {"id": Column("string", source="Order Id"), "at": Column("timestamp", zone="America/New_York"),
                          "size": Column("float", minimum=0)}, key=["id"], event_time="at")
came = Table("came", {"id": Column("string"), "at": Column("timestamp"), "back": Column("boolean")}, key=["id"], event_time="at")
loop = Loop(name="shop", requests=orders, outcome=Outcome(came, label="back"), features=lambda f: {"size": f.size},
            scope=Scope(problem="p", objectives=[Objective("a", "b", "recall", at_least=0.5)], heuristic=Heuristic(lambda f: f.size > 1)),
            candidates=[Candidate("c", lambda: None)])
"""
CSV = "Order Id,at,size\na,2024-01-01,1\nb,2024-03-10 02:30,2\n"


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").write_text(LOOP, encoding="utf-8")
    (tmp_path / "orders.csv").write_text(CSV, encoding="utf-8")

    def call(*arguments: str, code: int = 0, as_json: bool = True) -> Any:
        assert run([*arguments, *(["--json"] if as_json else []), "--home", str(tmp_path / "home")]) == code
        out = capsys.readouterr().out
        return json.loads(out) if as_json else out

    return call


def test_from_quarantine_to_the_table(typed: Any, tmp_path: Path) -> None:
    [done] = typed("ingest", "orders", "orders.csv", "--loop", "loop.py")
    assert (done["good"], done["quarantined"]) == (1, 1)
    waiting = typed("quarantine", "orders", "--export", "bad.csv")
    assert (waiting["rows"], waiting["file"]) == (1, "bad.csv")
    file = tmp_path / "bad.csv"
    file.write_text(file.read_text(encoding="utf-8").replace('"2024-03-10 02:30"', '"2024-03-10 03:30"'), encoding="utf-8")
    assert typed("ingest", "orders", "bad.csv", "--mend")[0]["good"] == 1
    assert typed("quarantine", "orders")["mended"] == 1
    assert typed("ingest", "orders", "--mend")[0]["rows"] == 0, "without a file: what waits, as it is"


def test_a_contract_goes_out_and_comes_in(typed: Any, tmp_path: Path) -> None:
    shown = typed("contract", "orders", "--loop", "loop.py", "--odcs", "orders.yaml")
    assert list(shown["table"]["columns"]) == ["id", "at", "size"]
    assert [v["number"] for v in shown["versions"]] == [1]
    file = tmp_path / "orders.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("minimum: 0.0", "minimum: -5.0"), encoding="utf-8")
    changed = typed("contract", "orders", "--import", "orders.yaml")
    assert changed["table"]["columns"]["size"]["minimum"] == -5
    assert changed["versions"][1]["changes"] == ["size.minimum: 0.0 -> -5.0"]
    typed("contract", "nope", "--loop", "loop.py", code=2)


def test_what_a_person_sees(typed: Any) -> None:
    said = typed("ingest", "orders", "orders.csv", "--loop", "loop.py", as_json=False)
    for text in ("table orders", "orders.csv", "a time that America/New_York skips", "loopwright quarantine orders"):
        assert text in said
    assert "there before" in typed("ingest", "orders", "orders.csv", as_json=False)
    said = typed("quarantine", "orders", as_json=False)
    for text in ("1 row, 0 mended before", "2024-03-10 02:30", "--export FILE"):
        assert text in said
    said = typed("contract", "orders", as_json=False)
    for text in ("key id, event time at", "times of America/New_York", "Order Id", "from 0"):
        assert text in said


@pytest.mark.parametrize(
    "arguments",
    [("--query", "SELECT 1"), ("orders.csv", "--query", "SELECT 1", "--from-url", "sqlite://"), ("--from-url", "sqlite://")],
)
def test_a_query_needs_its_database_and_no_files(typed: Any, arguments: tuple[str, ...]) -> None:
    error = typed("ingest", "orders", "--loop", "loop.py", *arguments, code=2)["error"]
    assert "--query together with --from-url" in error["message"]
