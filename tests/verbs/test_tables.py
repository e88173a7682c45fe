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
    assert "set both --query and --from-url" in error["message"]


def test_file_without_a_header_in_another_encoding_goes_from_init_to_its_profile(typed: Any, tmp_path: Path) -> None:
    (tmp_path / "loop.py").unlink()
    cities = ["Zürich", "Genève", "Bern"]
    lines = [f"k{i};2024-{1 + i % 12:02}-{1 + i % 28:02};{i % 97},{i % 10}5;{cities[i % 3]};{'yn'[i % 2]}" for i in range(600)]
    (tmp_path / "n.csv").write_bytes("\n".join(lines).encode("cp1252"))
    error = typed("init", "shop", "--from", "n.csv", "--label", "back", code=1)["error"]
    assert "--no-header or --names" in error["message"]
    options = ["--names", "id,at,amount,city,back", "--encoding", "windows-1252"]
    made = typed("init", "shop", "--from", "n.csv", "--label", "back", "--key", "id", "--time", "at", *options)
    assert "read as cp1252: say --encoding if letters look wrong" in made["notes"]
    next_step = "loopwright ingest shop-requests n.csv --encoding windows-1252 --names id,at,amount,city,back --loop shop"
    assert next_step in made["next_steps"]
    [done] = typed(*next_step.split()[1:])
    assert (done["rows"], done["good"], done["encoding"]) == (600, 600, "cp1252")
    found = typed("profile", "shop-requests")
    of = {c["name"]: c for c in found["columns"]}
    assert (found["rows"], of["amount"]["minimum"], of["amount"]["maximum"]) == (600, 0.05, 96.75)
    assert of["city"]["top"] == [["Bern", 200], ["Genève", 200], ["Zürich", 200]]
    assert "Genève 33%" in typed("profile", "shop-requests", as_json=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ingest", "orders", "order.csv", "--loop", "loop.py"),
        ("ingest", "orders", "order.csv", "--mend"),
        ("contract", "orders", "--import", "order.csv"),
        ("init", "new", "--from", "order.csv", "--label", "size"),
    ],
)
def test_missing_file_is_wrong_use_and_names_the_nearest(typed: Any, arguments: tuple[str, ...]) -> None:
    typed("ingest", "orders", "orders.csv", "--loop", "loop.py")
    error = typed(*arguments, code=2)["error"]
    assert error["code"] == "file_missing"
    assert error["message"].startswith("no file 'order.csv' - nearest: orders.csv")
    assert error["near"] == ["orders.csv"]


@pytest.mark.parametrize("verb", ["contract", "quarantine", "profile", "ingest"])
def test_wrong_table_is_one_document_with_the_nearest_names(typed: Any, verb: str) -> None:
    typed("ingest", "orders", "orders.csv", "--loop", "loop.py")
    error = typed(verb, "order", *(["orders.csv"] if verb == "ingest" else []), code=2)["error"]
    assert (error["code"], error["near"]) == ("table_not_found", ["orders"])


@pytest.mark.parametrize("ran", [True, False])
def test_contract_that_two_loops_declare_differently_is_refused_with_the_other_loop_and_the_difference(
    typed: Any, tmp_path: Path, ran: bool
) -> None:
    other = LOOP.replace('name="shop"', 'name="store"').replace(
        '"size": Column("float", minimum=0)', '"size": Column("float", minimum=-5)'
    )
    (tmp_path / "other.py").write_text(other, encoding="utf-8")
    typed("ingest", "orders", "orders.csv", "--loop", "loop.py")
    if ran:
        typed("run", "loop.py", "--until", "data", code=1)  # no outcome yet, but the loop is known
    assert len(typed("contract", "orders")["versions"]) == 1
    for command in (("ingest", "orders", "orders.csv", "--loop", "other.py"), ("run", "other.py")):
        refused = typed(*command, code=2)["error"]["message"]
        assert "loop shop: declares this table differently: size.minimum: 0.0 -> -5.0" in refused
        assert "`loopwright contract orders --loop" in refused
    [item] = [i for i in typed("check", "other.py", code=1)["items"] if i["name"] == "table orders"]
    assert not item["ok"]
    assert "loop shop: declares this table differently" in item["detail"]
    assert len(typed("contract", "orders")["versions"]) == 1, "nothing was rewritten"
    typed("contract", "orders", "--loop", "other.py")
    if not ran:
        return
    assert "loop store: declares this table differently" in typed("run", "loop.py", code=2)["error"]["message"]
    assert len(typed("contract", "orders")["versions"]) == 2
    (tmp_path / "other.py").unlink()
    typed("run", "loop.py", "--until", "data", code=1)
    assert len(typed("contract", "orders")["versions"]) == 3, "a loop whose file is gone has no say"
    (tmp_path / "loop.py").write_text(
        LOOP.replace('name="shop"', 'name="renamed"').replace("minimum=0", "minimum=-1"), encoding="utf-8"
    )
    typed("ingest", "orders", "orders.csv", "--loop", "loop.py")
    assert len(typed("contract", "orders")["versions"]) == 4, "nor has the name that the file had before"
