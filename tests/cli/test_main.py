"""The adapter from any table of verbs to a command line, on a small table of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loopwright.base.errors import DeclarationInvalid, IngestRefused, LoopNotFound
from loopwright.base.progress import Progress
from loopwright.cli.answer import is_yes
from loopwright.cli.main import run, table
from loopwright.records.ingestions import Ingested
from loopwright.stores.home import Home
from loopwright.verbs import Verb


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    times: int
    share: float = float("nan")
    ok: bool = True


def greet(
    home: Home, name: str, title: str = "", *, times: int = 1, loud: bool = False, polite: bool = True, out: Path | None = None
) -> Greeting:
    """Say good day.

    Args:
        name: who is greeted;
            anybody will do.
        title: how they are called.
        times: how often.
        loud: shout.
        polite: or not.
        out: where to.
    """
    print("chatter on standard output")
    text = (
        f"{'good day' if polite else 'hey'} {title}{name}".upper()
        if loud
        else f"{'good day' if polite else 'hey'} {title}{name}"
    )
    return Greeting(text=f"{text} {out or ''} in {home.settings.home} by {home.by}", times=times)


def gather(home: Home, table: str, files: list[str], *, progress: Progress | None = None) -> list[Greeting]:
    """Collect."""
    if progress:
        for i in range(1, 11):
            progress.advance("gathering", i, 10)
        progress.say("done: all of it")
    return [Greeting(text=f"{table}/{f}", times=i) for i, f in enumerate(files)]


def between(home: Home, *, start: str, end: str = "") -> Greeting:
    """What lies between."""
    return Greeting(text=f"{start}-{end}", times=0)


def judge(home: Home, verdict: str) -> Greeting:
    """Decide."""
    if verdict == "broken":
        raise DeclarationInvalid("loop.py", [("scope.problem", "is empty"), ("name", "is missing")])
    if verdict == "lost":
        raise LoopNotFound("late", ["late-arrival"])
    if verdict == "refused":
        raise IngestRefused("x.csv", "it is empty")
    if verdict == "end":
        raise SystemExit(0)
    if verdict == "leave":
        os._exit(0)
    if verdict == "bug":
        raise ZeroDivisionError("by zero")
    return Greeting(text=verdict, times=1, ok=verdict != "no")


VERBS = (
    Verb("greet", "scope", greet, "Say good day.", "loopwright greet world --times 3", False),
    Verb("gather", "data", gather, "Collect.", "loopwright gather TABLE a b", True),
    Verb("between", "loop", between, "Between.", "loopwright between --start 1", False),
    Verb("judge", "monitor", judge, "Decide.", "loopwright judge yes", False),
)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = run(argv, VERBS)
    out, err = capsys.readouterr()
    return code, out, err


def test_names_with_terminal_escapes_are_never_printed_raw(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2Jb\x9b31m\u202ec"
    for argv in (
        ["greet", name],
        ["greet", name, "--json"],
        ["greet", "x", "--times", name],
        ["greet", "x", f"--{name}", "1"],
        ["gather", name, name],
        ["gather", name, name, "--json"],
        ["judge", name, "--json", f"--ledger={name}"],
        [name],
    ):
        _, out, err = said(capsys, *argv)
        for stream in (out, err):
            assert not {"\x1b", "\x9b", "\u202e"} & set(stream), argv
        assert "[2Jb" in out + err or "valid integer" in err, argv


def test_traceback_of_a_fault_is_printed_without_terminal_escapes(tmp_path: Path) -> None:
    code = "from loopwright.cli import main as m\ndef run(argv): raise ValueError('a\\x1b[2J')\nm.run = run\nm.main(['x'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert "ValueError: a\\x1b[2J" in done.stderr
    assert "\x1b" not in done.stderr


def test_help_names_every_verb_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--help")
    assert code == 0
    for line in ("greet", "Say good day.", "gather", "judge", "--ledger", "--control-port", "--version"):
        assert line in out


def test_help_of_a_verb_has_its_prose_parameters_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "greet", "--help")
    assert code == 0
    assert "who is greeted; anybody will do." in " ".join(out.split())
    assert "[TITLE]" in out
    assert "--times" in out
    assert "--no-polite" in out
    assert "--no-loud" not in out
    assert "  loopwright greet world --times 3\n" in out


def test_arguments_options_and_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--home", str(tmp_path), "greet", "world", "dr ", "--times", "3", "--loud", "--out", "x", "--by", "ann", "--json"]
    code, out, err = said(capsys, *argv)
    assert code == 0
    assert json.loads(out) == {"text": f"GOOD DAY DR WORLD x in {tmp_path} by ann", "times": 3, "share": None, "ok": True}
    assert out.count("\n") == 1
    assert "chatter" in err


def test_a_setting_after_the_verb_wins_over_one_before_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = said(capsys, "--json", "--home", "elsewhere", "greet", "you", "--no-polite", "--home", str(tmp_path))
    assert json.loads(out)["text"].startswith(f"hey you  in {tmp_path} by")


def test_a_list_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "gather", "t", "a", "b", "--json")
    assert code == 0
    assert [row["text"] for row in json.loads(out)] == ["t/a", "t/b"]
    assert "done: all of it" in err
    assert err.count("gathering:") == 4


def test_an_option_without_a_default_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "between", "--start", "1", "--json")
    assert (code, json.loads(out)["text"]) == (0, "1-")
    code, _, err = said(capsys, "between", "--end", "2")
    assert code == 2
    assert "--start" in err


def test_an_answer_nobody_wrote_a_renderer_for_is_still_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "gather", "t", "a", "b")
    assert code == 0
    assert "t/a" in out
    assert "text" in out


@pytest.mark.parametrize(
    ("verdict", "code", "error"),
    [
        ("yes", 0, None),
        ("no", 1, None),
        ("refused", 1, "ingest_refused"),
        ("lost", 2, "loop_not_found"),
        ("broken", 2, "declaration_invalid"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], verdict: str, code: int, error: str | None) -> None:
    found, out, _ = said(capsys, "judge", verdict, "--json")
    assert found == code
    assert json.loads(out).get("error", {}).get("code") == error
    found, out, err = said(capsys, "judge", verdict)
    assert found == code
    assert (out == "") == (error is not None)
    assert (err == "") == (error is None)


def test_errors_carry_their_facts(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "judge", "broken", "--json")
    assert json.loads(out)["error"]["fields"] == [
        {"field": "scope.problem", "reason": "is empty"},
        {"field": "name", "reason": "is missing"},
    ]
    _, out, _ = said(capsys, "judge", "lost", "--json")
    assert json.loads(out)["error"]["near"] == ["late-arrival"]


@pytest.mark.parametrize(
    "argv",
    [["frob"], ["judge"], ["judge", "yes", "--frob"], ["greet", "x", "--times", "many"], ["judge", "yes", "--port", "x"], []],
)
def test_wrong_use_is_2_and_says_why(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    code, out, err = said(capsys, *argv)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
    code, out, _ = said(capsys, *argv, "--json")
    assert code == 2
    assert json.loads(out)["error"]["message"]


def test_a_bug_is_a_document_and_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(["judge", "bug", "--json"], VERBS)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "internal"


@pytest.mark.parametrize("way", ["end", "leave"])
def test_code_that_ends_the_process_is_an_error_and_a_document(capsys: pytest.CaptureFixture[str], way: str) -> None:
    """SystemExit(0) and `os._exit(0)` of a user's code, wherever they are called, must not look like a yes."""
    leave = os._exit
    code, out, err = said(capsys, "judge", way)
    assert (code, out) == (1, "")
    assert "ended the process (SystemExit: 0)" in err
    code, out, _ = said(capsys, "judge", way, "--json")
    assert code == 1
    assert "SystemExit: 0" in json.loads(out)["error"]["message"]
    assert os._exit is leave


NOISY = """
import ctypes, os, sys
from loopwright.cli.main import run
from loopwright.base.errors import IngestRefused
from loopwright.verbs import Verb

def noisy(home, *, fail: bool = False) -> dict:
    "Noise."
    os.write(1, b"from a C library")
    os.system("echo from a child")
    print("from python")
    if fail:
        raise IngestRefused("x", "no")
    return {"a": 1}

sys.exit(run(sys.argv[1:], [Verb("noisy", "data", noisy, "", "", False)]))
"""


@pytest.mark.parametrize(("argv", "key"), [(["noisy", "--json"], "a"), (["noisy", "--fail", "--json"], "error")])
def test_nothing_but_the_document_reaches_standard_output(argv: list[str], key: str) -> None:
    done = subprocess.run([sys.executable, "-c", NOISY, *argv], capture_output=True, text=True, timeout=600)
    assert list(json.loads(done.stdout)) == [key]
    for noise in ("from a C library", "from a child", "from python"):
        assert noise in done.stderr


def test_a_closed_pipe_is_not_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    script = "from loopwright.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=600
    )
    os.close(write)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", table(), ids=lambda v: v.name)
def test_every_real_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str], verb: Verb) -> None:
    assert run([verb.name, "--help"]) == 0
    out = capsys.readouterr().out
    assert verb.example in out
    assert verb.example.startswith(f"loopwright {verb.name}")
    assert "--json" in out
    undocumented = [line for line in out.splitlines() if line.strip().startswith("--") and len(line.split()) < 3]
    assert [line for line in undocumented if line.split()[0] != "--control-port"] == []


def test_help_of_serve_has_every_setting_of_what_it_serves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--grpc-port", "--workers", "--threads", "--memory", "--token", "--traces", "--trace-share", "--events"):
        assert f"  {option} " in out


def test_command_is_loaded_without_a_garbage_collection_and_runs_with_them() -> None:
    """Collections walk all modules: of `check` they took a tenth of the processor time."""
    script = (
        "import gc, sys; from loopwright.cli import main as cli; from loopwright.verbs import check; seen = []\n"
        "cli.table = lambda: [v for v in cli.VERBS if v.name == 'check']\n"
        "class Filled:\n    def __init__(self): self.more = self\n"
        "cli.parameters = lambda call, real=cli.parameters: ([Filled() for _ in range(100_000)], real(call))[1]\n"
        "import loopwright.cli.answer as a; a.answer = lambda *_, **__: print(len(seen), gc.isenabled(), gc.get_threshold()[0]) or 0\n"
        "gc.collect(); gc.callbacks.append(lambda phase, info: seen.append('collected'))\n"
        "cli.main(['check', 'nowhere'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.split() == ["0", "True", "10000"]


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from loopwright.cli.main import run; run(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "{'rich', 'numpy', 'sqlalchemy', 'pyarrow', 'sklearn', 'duckdb', 'starlette', 'jinja2', 'onnxruntime', 'scipy'}], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("good", "quarantined", "yes"), [(3, 0, True), (2, 1, True), (0, 3, False), (0, 0, True)])
def test_a_file_of_which_nothing_landed_is_a_no(good: int, quarantined: int, *, yes: bool) -> None:
    reasons = {"amount: below 0": quarantined} if quarantined else {}
    one = Ingested(
        table="orders",
        source="orders.csv",
        digest="d",
        rows=good + quarantined,
        good=good,
        quarantined=quarantined,
        reasons=reasons,
        version=0,
        contract="c",
    )
    assert is_yes([one]) is yes
