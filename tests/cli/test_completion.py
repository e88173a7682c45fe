"""Shells complete commands, options and the names of loops, asking the command itself as their scripts do."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.loops import LOOP, opened, package
from tests.test_docs import environment

from loopwright.cli.main import SHELLS, run
from loopwright.deploy import releases

PROGRAM = str(Path(sys.executable).with_name("loopwright"))

IN_BASH = """
source <("{program}" --completion bash)
try() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _loopwright_completion "{program}"; echo "${{COMPREPLY[@]}}"
}}
try loopwright predi
try loopwright predictions la
try loopwright predictions late-arrival --un
try loopwright --json --workers 2 --vers
"""


def test_bash_completes_commands_loops_and_options(tmp_path: Path) -> None:
    with opened(tmp_path / ".loopwright") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
    script = IN_BASH.format(program=PROGRAM)
    done = subprocess.run(["bash", "-c", script], env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout.split("\n") == ["predict predictions", LOOP, "--until", "--version", ""], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_ask_in_their_own_way(tmp_path: Path, shell: str) -> None:
    asked = {
        **environment(tmp_path),
        "_LOOPWRIGHT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "loopwright predictions late-arrival --pack",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run([PROGRAM], env=asked, capture_output=True, text=True)
    assert "--package" in done.stdout
    assert "beginning of its digest" in done.stdout  # with the help of the option
    assert not (tmp_path / ".loopwright").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_script_of_each_shell_is_all_that_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--completion", shell]) == 0
    out, err = capsys.readouterr()
    assert "_LOOPWRIGHT_COMPLETE" in out
    assert (err, "install" in out) == ("", False)


def test_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--completion", "csh"]) == 2
    assert "'csh' is none of bash, zsh, fish" in capsys.readouterr().err
