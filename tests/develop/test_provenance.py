import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime

from loopwright.develop.provenance import commit, environment


def test_the_environment_names_what_shapes_a_package() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["processor"]


def code_in(folder: Path) -> Any:
    file = folder / "loop_code.py"
    file.write_text("def features(f):\n    return {}\n")
    spec = importlib.util.spec_from_file_location("loop_code", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.features


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_loops_code(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    features = code_in(tmp_path)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(features) == head
    (tmp_path / "loop_code.py").write_text("changed\n")
    assert commit(features) == f"{head}-dirty"


def test_code_outside_a_repository_has_no_commit(tmp_path: Path) -> None:
    assert commit(code_in(tmp_path)) == ""
    assert commit("def features(f): ...") == ""
