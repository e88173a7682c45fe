"""Every verb of the real table through the command line, on a home with nothing in it; and `serve` from start to end."""

import json
import signal
import subprocess
import sys
import urllib.request
from inspect import Parameter
from pathlib import Path

import pytest
from tests.deploy.loops import LANDINGS, LOOP, NOW, REQUESTS, opened, package

from loopwright.base.clock import RealClock
from loopwright.cli.main import run, table
from loopwright.cli.signature import SPELLED, parameters
from loopwright.data.ingest.ingestion import put_contract
from loopwright.deploy import releases
from loopwright.verbs import Verb

ON_NOTHING: dict[str, tuple[list[str], int, str]] = {
    "approve": (["nope", "--why", "x"], 2, "loop_not_found"),
    "reject": (["nope", "--why", "x"], 2, "loop_not_found"),
    "cases": (["nope"], 2, "loop_not_found"),
    "parity": (["nope"], 2, "loop_not_found"),
    "check": (["nope"], 2, "loop_not_found"),
    "contract": (["nope"], 2, "table_not_found"),
    "drift": (["nope"], 2, "loop_not_found"),
    "history": (["nope"], 2, "loop_not_found"),
    "experiment": (["nope"], 2, "loop_not_found"),
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
        (
            ["demo", "--end", "2013-02-01"],
            "--end 2013-02-01 must be after 2013-04-01, when the demo goes live, and at most 2014-01-01, when its data end",
        ),
        (["ingest", "orders"], "table 'orders': name at least one file"),
        (["ingest", "orders", "a.csv", "--query", "SELECT 1"], "name at least one file, or set both --query and --from-url"),
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


READ = ["departures", "rows.csv"]
READING: dict[str, list[str]] = {
    "encoding": ["--encoding 'nonsense'", "utf-8"],
    "sheet": ["--sheet says nothing about CSV", "leave it off"],
    "names": ["--names has 1", "7 columns"],
}
MOMENTS: dict[tuple[str, str], list[str]] = {
    ("demo", "end"): ["--no-serve"],
    ("run", "as_of"): [LOOP],
    ("replay", "start"): [LOOP, "--end", "2020-01-01"],
    ("replay", "end"): [LOOP, "--start", "2020-01-01"],
    ("predictions", "since"): [LOOP],
    ("predictions", "until"): [LOOP],
    ("rollback", "to"): [LOOP],
}
"""Each option that takes a moment, with the other words of its command."""

NONSENSE: dict[tuple[str, str], tuple[list[str], list[str]]] = {
    ("init", "directory"): (["--from", "rows.csv", "--name", "Not Lawful"], ["'Not Lawful'", "letter or digit"]),
    ("init", "from_file"): (["new"], ["'nonsense'"]),
    ("init", "label"): (["new", "--from", "rows.csv"], ["--label 'nonsense'", "flight"]),
    ("init", "time"): (["new", "--from", "rows.csv"], ["--time 'nonsense'", "flight"]),
    ("init", "key"): (["new", "--from", "rows.csv"], ["--key 'nonsense'", "flight"]),
    ("init", "zone"): (["new", "--from", "rows.csv"], ["--zone 'nonsense'", "Europe/Paris"]),
    ("init", "task"): (["new"], ["--task 'nonsense'", "multiclass"]),
    ("check", "loop"): ([], ["'nonsense'", LOOP]),
    ("ingest", "table"): (["rows.csv"], ["'nonsense'", "departures"]),
    ("ingest", "files"): (["departures"], ["'nonsense'"]),
    ("ingest", "loop"): (READ, ["'nonsense'", LOOP]),
    ("ingest", "query"): (["departures", "--from-url", "sqlite:///none.db"], ["none.db"]),
    ("ingest", "from_url"): (["departures", "--query", "SELECT 1"], ["--from-url", "sqlite:///"]),
    ("ingest", "watermark"): (READ, ["'nonsense'", "pushed_back_at"]),
    ("contract", "table"): ([], ["'nonsense'", "departures"]),
    ("contract", "loop"): (["departures"], ["'nonsense'", LOOP]),
    ("contract", "odcs"): (["departures"], ["nonsense"]),
    ("contract", "import_file"): (["departures"], ["'nonsense'"]),
    ("profile", "table"): ([], ["'nonsense'", "departures"]),
    ("quarantine", "table"): ([], ["'nonsense'", "departures"]),
    ("quarantine", "export"): (["departures"], ["nonsense", ".csv"]),
    ("quarantine", "most"): (["departures"], ["--most 0", "1 to 1,000"]),
    ("run", "loop"): ([], ["'nonsense'", LOOP]),
    ("run", "until"): ([LOOP], ["'nonsense'", "develop"]),
    ("run", "cause"): ([LOOP], ["'nonsense'", "schedule"]),
    ("leaderboard", "loop"): ([], ["'nonsense'", LOOP]),
    ("leaderboard", "turn"): ([LOOP], ["no leaderboard", LOOP]),
    ("release", "loop"): ([], ["'nonsense'", LOOP]),
    ("release", "package"): ([LOOP], ["'nonsense'", "leaderboard"]),
    ("release", "strategy"): ([LOOP], ["'nonsense'", "direct"]),
    ("cases", "loop"): ([], ["'nonsense'", LOOP]),
    ("parity", "loop"): ([], ["'nonsense'", LOOP]),
    ("parity", "package"): ([LOOP], ["'nonsense'", "leaderboard"]),
    ("parity", "since"): ([LOOP], ["--since 'nonsense'", "30 days ago"]),
    ("parity", "until"): ([LOOP], ["--until 'nonsense'", "30 days ago"]),
    ("approve", "loop"): (["--why", "x"], ["'nonsense'", LOOP]),
    ("approve", "package"): ([LOOP, "--why", "x"], ["waiting", "history"]),
    ("reject", "loop"): (["--why", "x"], ["'nonsense'", LOOP]),
    ("reject", "package"): ([LOOP, "--why", "x"], ["waiting", "history"]),
    ("rollback", "loop"): ([], ["'nonsense'", LOOP]),
    ("rollback", "segment"): ([LOOP], ["'nonsense'"]),
    ("export", "package"): ([], ["'nonsense'", "leaderboard"]),
    ("export", "as_format"): (["PACKAGE"], ["--as nonsense", "triton"]),
    ("export", "opset"): (["PACKAGE"], ["opset 0", "21"]),
    ("predict", "loop"): (["rows.csv", "--out", "a.csv"], ["'nonsense'", LOOP]),
    ("predict", "file"): ([LOOP, "--out", "a.csv"], ["'nonsense'"]),
    ("predict", "out"): ([LOOP, "rows.csv"], ["--out nonsense", ".csv"]),
    ("predict", "id"): ([LOOP, "rows.csv", "--out", "a.csv"], ["--id 'nonsense'", "flight"]),
    ("experiment", "loop"): ([], ["'nonsense'", LOOP]),
    ("experiment", "release"): ([LOOP], ["--release 99", "--plan"]),
    ("experiment", "metric"): ([LOOP, "--plan"], ["--metric 'nonsense'", "average_precision"]),
    ("experiment", "effect"): ([LOOP, "--plan"], ["--effect 0", "above 0"]),
    ("experiment", "export"): ([LOOP], ["'nonsense'", ".parquet"]),
    ("history", "loop"): ([], ["'nonsense'", LOOP]),
    ("history", "segment"): ([LOOP], ["'nonsense'"]),
    ("tend", "every"): (["--once"], ["--every 0", "seconds"]),
    ("replay", "loop"): (["--start", "2020-01-01", "--end", "2020-02-01"], ["'nonsense'", LOOP]),
    ("replay", "policy"): ([LOOP, "--start", "2020-01-01", "--end", "2020-02-01"], ["'nonsense'", "monthly"]),
    ("replay", "keep"): ([LOOP, "--start", "2020-01-01", "--end", "2020-02-01"], ["full", "is not empty"]),
    ("status", "page"): ([], ["no page 9", "1 page"]),
    ("predictions", "loop"): ([], ["'nonsense'", LOOP]),
    ("predictions", "key"): ([LOOP], ["'nonsense=1'", "there is no column 'nonsense'", "flight"]),
    ("predictions", "flag"): ([LOOP], ["'nonsense'", "out_of_range", "degraded"]),
    ("predictions", "package"): ([LOOP], ["'nonsense'", "leaderboard"]),
    ("predictions", "limit"): ([LOOP], ["--limit 0", "1 to 1,000"]),
    ("predictions", "before"): ([LOOP], ["--before nonsense"]),
    ("trace", "id"): ([], ["'nonsense'", "32 hexadecimal digits"]),
    ("lineage", "id"): ([], ["'nonsense'", "leaderboard"]),
    ("drift", "loop"): ([], ["'nonsense'", LOOP]),
    ("outcomes", "loop"): ([], ["'nonsense'", LOOP]),
    ("outcomes", "file"): ([LOOP], ["'nonsense'"]),
    ("report", "loop"): ([], ["'nonsense'", LOOP]),
    ("report", "out"): ([LOOP], ["rows.csv"]),
    **{("init", option): (["new", "--from", "rows.csv"], named) for option, named in READING.items()},
    **{("ingest", option): (READ, named) for option, named in READING.items()},
    **{("predict", option): ([LOOP, "rows.csv", "--out", "a.csv"], named) for option, named in READING.items()},
    **{("outcomes", option): ([LOOP, "rows.csv"], named) for option, named in READING.items()},
    **{place: (words, ["not a time", "30 days ago"]) for place, words in MOMENTS.items()},
}
"""Each option and argument of each verb: the other words of the command, and what is said of nonsense in its place."""

INSTEAD = {
    ("init", "directory"): "new",
    ("contract", "odcs"): "none/nonsense.yaml",
    ("ingest", "query"): "nonsense",
    ("quarantine", "most"): "0",
    ("export", "opset"): "0",
    ("tend", "every"): "0",
    ("replay", "keep"): "full",
    ("status", "page"): "9",
    ("experiment", "release"): "99",
    ("experiment", "effect"): "0",
    ("predictions", "key"): "nonsense=1",
    ("predictions", "limit"): "0",
    ("report", "out"): "rows.csv",
}
"""What stands for nonsense where that is not the word itself."""

ANYTHING = {
    ("init", "name"): "tried with the folder",
    ("run", "named"): "tests/test_tend.py; there is no loop file in this home",
    ("export", "to"): "any folder that is not there is made",
    ("leaderboard", "weights"): "tests/develop/test_leaderboard.py; there is no leaderboard in this home",
    ("leaderboard", "segment"): "tests/journeys/test_fleet.py; there is no leaderboard in this home",
    **{(verb, "why"): "a sentence; too long: below" for verb in ("run", "release", "rollback", "approve", "reject")},
    **{(verb, "request_id"): "any name" for verb in ("release", "rollback", "predict", "approve", "reject")},
}
"""Options of which no value is wrong here, and why."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in which a loop serves, and two files."""
    folder = tmp_path_factory.mktemp("serving")
    with opened(folder / "home", RealClock()) as home:
        releases.release(home, LOOP, package(home.packages).digest, why="tests")
        for contract in (REQUESTS, LANDINGS):
            put_contract(home, contract)
    (folder / "rows.csv").write_text(f"{','.join(REQUESTS.columns)}\nUA1,{NOW.isoformat()},JFK,1,9,,false\n")
    (folder / "full").mkdir()
    (folder / "full" / "a").touch()
    return folder


def options() -> list[tuple[str, str]]:
    return [(v.name, p.name) for v in table() for p in parameters(v.call) if "bool" not in str(p.annotation)]


def test_nonsense_is_tried_in_every_option_of_every_verb() -> None:
    assert set(options()) == NONSENSE.keys() | ANYTHING.keys()
    assert not NONSENSE.keys() & ANYTHING.keys()


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, verb: str, option: str, value: str, words: list[str]) -> str:
    """What a command says of a value of an option, in both forms: an error of the documented form each time."""
    [given] = [p for v in table() if v.name == verb for p in parameters(v.call) if p.name == option]
    is_argument = "ArgumentInfo" in str(given.annotation)
    digests = [path.name for path in (folder / "home" / "packages").glob("[0-9a-f]*")]
    words = [digests[0] if word == "PACKAGE" else word for word in words]
    names = [p.name for v in table() if v.name == verb for p in parameters(v.call) if "ArgumentInfo" in str(p.annotation)]
    place = names.index(option) if is_argument else len(words)
    typed = [value] if is_argument else [SPELLED.get(option, "--" + option.replace("_", "-")), value]
    argv = [verb, *words[:place], *typed, *words[place:], "--home", str(folder / "home")]
    code = run(argv)
    out, err = capsys.readouterr()
    assert code in (1, 2), argv
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("loopwright: ")]
    assert len(lines) == 1, err
    assert len(err.splitlines()) <= 3, err
    assert run([*argv, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["message"] in err
    return lines[0]


@pytest.mark.parametrize(("verb", "option"), NONSENSE)
def test_nonsense_in_an_option_names_it_and_what_can_be_written(
    capsys: pytest.CaptureFixture[str], serving: Path, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    monkeypatch.chdir(serving)
    words, named = NONSENSE[verb, option]
    said = refusal(capsys, serving, verb, option, INSTEAD.get((verb, option), "nonsense"), words)
    assert [name for name in named if name not in said] == [], said


@pytest.mark.parametrize(("verb", "option"), MOMENTS)
@pytest.mark.parametrize("moment", ["0001-01-01", "9999-12-31", "0001-01-01T00:00+14:00", "2013-04-01T09:00[Europe/Paris]"])
def test_moment_out_of_range_names_the_option_and_what_can_be_written(
    capsys: pytest.CaptureFixture[str], serving: Path, monkeypatch: pytest.MonkeyPatch, verb: str, option: str, moment: str
) -> None:
    monkeypatch.chdir(serving)
    said = refusal(capsys, serving, verb, option, moment, MOMENTS[verb, option])
    assert f"'{moment}' is" in said or "not a time" in said
    assert "30 days ago" in said


@pytest.mark.parametrize(("verb", "option"), [place for place in MOMENTS if place[1] != "until"])
def test_moment_that_is_still_to_come_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], serving: Path, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    monkeypatch.chdir(serving)
    said = refusal(capsys, serving, verb, option, "2150-01-01", MOMENTS[verb, option])
    assert "is after now (" in said or "at most 2014-01-01" in said


def test_predictions_until_a_moment_to_come_are_all_there_are(capsys: pytest.CaptureFixture[str], serving: Path) -> None:
    assert run(["predictions", LOOP, "--until", "2150-01-01", "--json", "--home", str(serving / "home")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--since", "2024-01-02", "--until", "2024-01-01"], "--since 2024-01-02 must be before --until 2024-01-01"),
        (["--flag", "out_of_range:dely"], "no flag 'out_of_range:dely': out_of_range is of delay, "),
        (
            ["--flag", "stale_context:wether"],
            "no flag 'stale_context:wether': stale_context is of departures, weather, landings",
        ),
        (["--key", "flight=UA1"], "--key 'flight=UA1': write the value of flight alone, as it was sent"),
        (["--key", "flight:UA1"], "--key 'flight:UA1': write the value of flight alone, as it was sent"),
        (["--key", "flight"], "--key 'flight': write the value of flight alone, as it was sent"),
    ],
)
def test_predictions_that_cannot_be_are_no_empty_list(
    capsys: pytest.CaptureFixture[str], serving: Path, argv: list[str], named: str
) -> None:
    assert run(["predictions", LOOP, *argv, "--home", str(serving / "home")]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "near"),
    [("churn/lop.py", "churn/loop.py"), ("chrn/loop.py", "churn/loop.py"), ("churm", "churn"), ("./churm", "churn")],
)
def test_misspelt_loop_file_names_the_nearest_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, near: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "loop.py").touch()
    for argv in (["check"], ["run"], ["ingest", "customers", "a.csv", "--loop"]):
        assert run([*argv, typed]) == 2
        assert f" - nearest: {near}; " in capsys.readouterr().err


@pytest.mark.parametrize("verb", table(), ids=lambda verb: verb.name)
def test_wrong_use_of_every_verb_is_a_line_that_names_the_help(
    capsys: pytest.CaptureFixture[str], serving: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    monkeypatch.chdir(serving)
    arguments = [p for p in parameters(verb.call) if p.default is Parameter.empty]
    for argv in [["--nonsense"], ["a"] * 9] + ([[]] if arguments else []):
        if argv == ["a"] * 9 and verb.name == "ingest":  # it takes any number of files
            continue
        assert run([verb.name, *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert f"loopwright {verb.name} --help" in err
        assert run([verb.name, *argv, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage_error"


@pytest.mark.parametrize("end", ["x", "2013-02-01"])
def test_demo_with_a_wrong_end_looks_at_no_home(capsys: pytest.CaptureFixture[str], tmp_path: Path, end: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    for home in ("used", "new"):
        assert run(["demo", "--end", end, "--no-serve", "--home", str(tmp_path / home)]) == 2
        assert f"--end {end!r}" in (said := capsys.readouterr().err) or f"--end {end}" in said
        assert "holds other work" not in said
    assert not (tmp_path / "new").exists()


def test_file_of_outcomes_that_are_all_set_aside_says_why_and_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home, file = tmp_path / "home", tmp_path / "came.csv"
    opened(home).close()

    def typed(text: str, code: int, *options: str) -> str:
        file.write_text(text, "utf-8")
        assert run(["outcomes", LOOP, str(file), "--home", str(home), *options]) == code
        return capsys.readouterr().out

    bad = "prediction,arr_delay\nabc,31\nabd,late\n"
    said = typed(bad, 1)
    assert "accepted now                   0 rows, 2 to quarantine" in said
    for reason in ("arr_delay: not a number: 1", "prediction: must be the 32 hexadecimal digits that came with the answer: 1"):
        assert reason in said
    assert "`loopwright quarantine landings --export FILE`" in said
    assert "`loopwright ingest landings FILE --mend`" in said
    assert sum(json.loads(typed(bad, 1, "--json"))["reasons"].values()) == 2
    assert run(["quarantine", "landings", "--home", str(home)]) == 0, "though nothing was ever ingested into it"
    capsys.readouterr()
    assert "1 row, 2 to quarantine" in typed(bad + f"{'a' * 32},7\n", 0)
    assert "accepted now                   0 rows, 0 to quarantine" in typed("prediction,arr_delay\n", 0)
    typed("flight,arr_delay\nUA1,late\n", 1)
    assert run(["quarantine", "landings", "--export", str(file), "--home", str(home)]) == 0
    file.write_text(file.read_text("utf-8").replace('"late"', '"31"'), "utf-8")
    assert run(["ingest", "landings", str(file), "--mend", "--home", str(home)]) == 0
    assert f"outcomes of {LOOP}" in capsys.readouterr().out


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
