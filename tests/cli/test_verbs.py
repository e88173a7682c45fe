"""Every verb of the real table through the command line, on a home with nothing in it; and `serve` from start to end."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from loopwright.cli.main import run, table
from loopwright.verbs import Verb

ON_NOTHING: dict[str, tuple[list[str], int, str]] = {
    "check": (["nope"], 2, "loop_not_found"),
    "contract": (["nope"], 2, "table_not_found"),
    "drift": (["nope"], 2, "loop_not_found"),
    "history": (["nope"], 2, "loop_not_found"),
    "ingest": (["nope", "nope.csv"], 2, "table_not_found"),
    "init": (["new", "--name", "Not Lawful", "--from", "nope.csv"], 2, ""),
    "leaderboard": (["nope"], 2, "loop_not_found"),
    "lineage": (["nope"], 2, ""),
    "outcomes": (["nope"], 2, "loop_not_found"),
    "predict": (["nope", "nope.csv", "--out", "out.csv"], 2, "loop_not_found"),
    "predictions": (["nope"], 2, "loop_not_found"),
    "profile": (["nope"], 2, "table_not_found"),
    "quarantine": (["nope"], 2, "table_not_found"),
    "export": (["0" * 64], 2, "package_not_found"),
    "release": (["nope"], 2, "loop_not_found"),
    "replay": (["nope", "--start", "2013-04-01", "--end", "2013-05-01"], 2, "loop_not_found"),
    "report": (["nope"], 2, "loop_not_found"),
    "rollback": (["nope"], 2, "loop_not_found"),
    "run": (["nope"], 2, "loop_not_found"),
    "trace": (["0" * 31 + "1"], 2, "prediction_not_found"),
}
ANSWERED: dict[str, list[str]] = {
    "doctor": ["ok", "items"],
    "status": ["loops", "version"],
    "tend": ["leader"],
    "verify": ["ok", "problems"],
}
ELSEWHERE = {"demo", "serve"}  # demo: tests/journeys; serve: below


def test_every_verb_is_tried() -> None:
    assert ON_NOTHING.keys() | ANSWERED.keys() | ELSEWHERE == {verb.name for verb in table()}


@pytest.mark.parametrize("verb", ON_NOTHING)
def test_what_is_not_there_is_an_error_document(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    arguments, code, expected = ON_NOTHING[verb]
    arguments = [str(tmp_path / "new") if a == "new" else a for a in arguments]
    (tmp_path / "home").mkdir()
    assert run([verb, *arguments, "--json", "--home", str(tmp_path / "home")]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"]
    assert expected in ("", error["code"])


@pytest.mark.parametrize("verb", [verb for verb in table() if verb.needs_home], ids=lambda verb: verb.name)
def test_command_without_home_names_it_and_makes_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: Verb) -> None:
    arguments = ON_NOTHING.get(verb.name, ([], 0, ""))[0]
    assert run([verb.name, *arguments, "--home", str(tmp_path / "typo")]) == 2
    assert f"no home '{tmp_path / 'typo'}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_verbs_that_change_nothing_make_no_home(tmp_path: Path) -> None:
    for verb in (verb for verb in table() if not verb.changes and not verb.needs_home):
        run([verb.name, *ON_NOTHING.get(verb.name, ([], 0, ""))[0], "--home", str(tmp_path / "typo")])
        assert list(tmp_path.iterdir()) == [], verb.name


def test_new_home_is_said_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for told in (1, 0):
        run(["tend", "--once", "--home", str(tmp_path / "new")])
        assert capsys.readouterr().err.count(f"made a new home, {tmp_path / 'new'}") == told


def test_unknown_setting_is_named_by_every_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_WEBHOK", "https://alerts.example")
    run(["status", "--json", "--home", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "LOOPWRIGHT_WEBHOK is no setting: did you mean LOOPWRIGHT_WEBHOOK?" in err
    assert json.loads(out)["loops"] == []


@pytest.mark.parametrize("verb", ANSWERED)
def test_what_can_be_answered_without_a_loop_is_one_document(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    arguments = ["--once"] if verb == "tend" else []
    code = run([verb, *arguments, "--json", "--home", str(tmp_path)])
    answer = json.loads(capsys.readouterr().out)
    assert set(ANSWERED[verb]) <= answer.keys()
    assert code == (0 if answer.get("ok", True) else 1)
    assert run([verb, *arguments, "--home", str(tmp_path)]) == code
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "nope", "--cause", "boredom"], "no cause 'boredom': one of manual, schedule, drift, decay"),
        (["tend", "--every", "-1"], "--every -1: must be seconds above 0"),
        (["tend", "--every", "nan"], "--every nan: must be seconds above 0"),
        (["demo", "--end", "2013-02-01"], "--end 2013-02-01 must be after 2013-04-01, when the demo goes live"),
        (["ingest", "orders"], "table 'orders': name at least one file"),
        (["ingest", "orders", "a.csv", "--query", "SELECT 1"], "give files, or --query together with --from-url"),
        *(
            (
                [*verb, "--why", "x" * 1001],
                "the request breaks the contract: why: has 1,001 characters; at most 1,000: say it in a sentence",
            )
            for verb in (["run", "nope"], ["release", "nope"], ["rollback", "nope"])
        ),
    ],
)
def test_option_value_out_of_range_is_wrong_use_and_nothing_is_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str
) -> None:
    if argv[0] in ("release", "rollback"):
        (tmp_path / "home").mkdir()
    assert run([*argv, "--json", "--home", str(tmp_path / "home")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == message
    assert not list((tmp_path / "home").glob("*"))


@pytest.mark.parametrize("end", ["x", "2013-02-01"])
def test_demo_with_a_wrong_end_looks_at_no_home(capsys: pytest.CaptureFixture[str], tmp_path: Path, end: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    for home in ("used", "new"):
        assert run(["demo", "--end", end, "--no-serve", "--home", str(tmp_path / home)]) == 2
        assert f"--end {end!r}" in (said := capsys.readouterr().err) or f"--end {end}" in said
        assert "holds other work" not in said
    assert not (tmp_path / "new").exists()


def test_serve_says_where_it_is_and_ends_in_order(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from loopwright.cli.main import main; main()", "serve", "--json", "--no-tend"]
    command += ["--home", str(tmp_path), "--port", "0", "--control-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            with urllib.request.urlopen(ready["control"] + "/", timeout=600) as reply:
                assert b"loopwright demo" in reply.read()
                assert "default-src 'self'" in reply.headers["content-security-policy"]
            with urllib.request.urlopen(ready["data"] + "/livez", timeout=600) as reply:
                assert reply.status == 200
            server.send_signal(signal.SIGTERM)
            rest, _ = server.communicate(timeout=600)
            assert (server.returncode, rest) == (0, "")
        finally:
            server.kill()
