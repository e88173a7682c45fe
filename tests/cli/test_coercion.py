"""The values of a command's parameters: text and paths as typed, what is no number refused as typer says it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.core import TyperOption

from loopwright.cli import coercion
from loopwright.cli.main import run
from loopwright.verbs import Verb

SEEN: dict[str, Any] = {}


def take(
    home: Any, sources: list[Path], *, name: str = "", limit: int = 20, to: Path | None = None, deep: bool = False
) -> None:
    """Take what was typed."""
    SEEN.update(sources=sources, name=name, limit=limit, to=to, deep=deep)


TAKE = Verb(name="take", stage="loop", function=take, help="Take.", example="loopwright take a", changes=False)


def test_values_reach_the_verb_in_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["take", "a.csv", "b.csv", "--name", "x", "--to", "out", "--limit", "7", "--deep"], [TAKE]) == 0
    typed = {"sources": [Path("a.csv"), Path("b.csv")], "name": "x", "limit": 7, "to": Path("out"), "deep": True}
    assert typed == SEEN
    assert run(["take", "a.csv"], [TAKE]) == 0
    defaults = {"sources": [Path("a.csv")], "name": "", "limit": 20, "to": None, "deep": False}
    assert defaults == SEEN


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "--limit", "many"], "'--limit'"), ([], "Missing argument 'SOURCES'"), (["a", "--limit"], "requires an argument")],
)
def test_wrong_values_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["take", *words], [TAKE]) == 2
    assert message in capsys.readouterr().err


def test_only_verbs_that_train_start_threads_for_linear_algebra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, threads in (("take", "1"), ("run", None), ("serve", None)):
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        assert run([name, "a.csv"], [msgspec.structs.replace(TAKE, name=name)]) == 0
        assert os.environ.get("OPENBLAS_NUM_THREADS") == threads


@pytest.mark.parametrize(("verb", "threads"), [("predictions", "1"), ("run", "None")])
def test_threads_for_linear_algebra_are_chosen_before_numpy_loads(tmp_path: Path, verb: str, threads: str) -> None:
    """OpenBLAS reads the variable once, when NumPy loads it with the module of the verb."""
    code = (
        "import os, sys; from loopwright.cli.main import main\n"
        "class Seen:\n    def find_spec(self, name, *_):\n"
        "        if name == 'numpy': print(os.environ.get('OPENBLAS_NUM_THREADS'), file=sys.stderr)\n"
        "sys.meta_path.insert(0, Seen()); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, verb, "nothing", "--home", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[0] == threads


def test_command_ends_without_collecting_its_modules() -> None:
    code = (
        "import atexit, gc; from loopwright.cli.main import main; "
        "atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1000)); main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["10000 True"]


@pytest.fixture
def coerced(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The options whose values typer itself coerces, as it does."""
    names: list[str | None] = []
    by_typer = TyperOption.get_runtime_param

    def observed(option: TyperOption) -> Any:
        names.append(option.name)
        return by_typer(option)

    monkeypatch.setattr(TyperOption, "get_runtime_param", observed)
    return names


@pytest.mark.parametrize("gone", ["get_runtime_param", "type_descriptor"])
def test_values_are_coerced_by_a_typer_that_does_it_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coerced: list[str | None], gone: str
) -> None:
    """What is quicker rests on two attributes of typer's parameters: without them typer coerces by itself."""
    monkeypatch.setattr(
        coercion, "getattr", lambda o, name, *other: None if name == gone else getattr(o, name, *other), raising=False
    )
    test_values_reach_the_verb_in_their_types(tmp_path, monkeypatch)
    assert "name" in coerced


def test_typer_has_the_attributes_that_make_commands_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coerced: list[str | None]
) -> None:
    """Where this fails alone, commands work and are slower: see how this typer coerces."""
    monkeypatch.chdir(tmp_path)
    assert run(["take", "a.csv", "--name", "x", "--to", "out", "--limit", "7"], [TAKE]) == 0
    assert coerced == ["limit"]
