"""What the digest of a function's closure notices, and what it does not."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopwright.base.closure import closure_of

LOOP = """
import functools
import statistics

import beside
import numpy as np
import sklearn.linear_model
from beside import strength

STRENGTH = 1.0
UNUSED = 1
TABLE = {"b": [1, 2], "a": {3, 4}}
WEIGHTS = np.array([1.0, 2.0])


class Scaled:
    offset = 3

    def __init__(self, by):
        self.by = by

    def apply(self, x):
        return x * self.by + LIMIT

    @property
    def twice(self):
        return self.by * 2


LIMIT = 9
SCALED = Scaled(2)


def helper(x, by=1):
    return [x + y * STRENGTH for y in TABLE["b"]][0] * by


def decorated(f):
    @functools.wraps(f)
    def inner(x):
        return f(x) + 1
    return inner


@decorated
def make(x):
    model = sklearn.linear_model.LogisticRegression(C=helper(x))
    return model, SCALED.apply(x), WEIGHTS, beside.limit(x), strength(x), statistics.mean([1])


partial = functools.partial(helper, by=7)


def both(x):
    return make(x), partial(x)
"""
BESIDE = """
import deeper

POWER = 2


def strength(x):
    return x ** POWER


def limit(x):
    return min(x, deeper.CEILING)


def other(x):
    return x
"""
FILES = {"loop.py": LOOP, "beside.py": BESIDE, "deeper.py": "CEILING = 5\n"}


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Loads the files above, with changes (file, what, by what), from a folder of their own, and returns the function `both`."""
    count = 0

    def load(*changes: tuple[str, str, str]) -> Any:
        nonlocal count
        folder = tmp_path / str(count)
        count += 1
        folder.mkdir()
        texts = dict(FILES)
        for file, old, new in changes:
            assert texts[file].count(old) >= 1
            texts[file] = texts[file].replace(old, new, 1)
        for file, text in texts.items():
            (folder / file).write_text(text)
        for name in ("beside", "deeper"):
            sys.modules.pop(name, None)
        spec = importlib.util.spec_from_file_location(f"a_loop_of_{tmp_path.name}", folder / "loop.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(folder))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
        return module.both

    yield load
    for name in ("beside", "deeper", f"a_loop_of_{tmp_path.name}"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "change",
    [
        ("loop.py", "STRENGTH = 1.0", "STRENGTH = 1e-9"),
        ("loop.py", '"b": [1, 2]', '"b": [1, 3]'),
        ("loop.py", '"a": {3, 4}', '"a": {3, 5}'),
        ("loop.py", "np.array([1.0, 2.0])", "np.array([1.0, 2.5])"),
        ("loop.py", "np.array([1.0, 2.0])", "np.array([1.0, 2.0], dtype=np.float32)"),
        ("loop.py", "SCALED = Scaled(2)", "SCALED = Scaled(3)"),
        ("loop.py", "x * self.by + LIMIT", "x * self.by - LIMIT"),
        ("loop.py", "LIMIT = 9", "LIMIT = 10"),
        ("loop.py", "offset = 3", "offset = 4"),
        ("loop.py", "self.by * 2", "self.by * 3"),
        ("loop.py", 'TABLE["b"]][0] * by', 'TABLE["b"]][1] * by'),
        ("loop.py", "def helper(x, by=1)", "def helper(x, by=2)"),
        ("loop.py", "f(x) + 1", "f(x) + 2"),
        ("loop.py", "helper, by=7", "helper, by=8"),
        ("beside.py", "POWER = 2", "POWER = 3"),
        ("beside.py", "x ** POWER", "x ** -POWER"),
        ("beside.py", "min(x", "max(x"),
        ("deeper.py", "CEILING = 5", "CEILING = 6"),
    ],
    ids=lambda change: change[2],
)  # fmt: skip
def test_closure_digest_changes_with_everything_that_a_function_reaches(
    loaded: Callable[..., Any], change: tuple[str, str, str]
) -> None:
    assert closure_of(loaded(change)).digest != closure_of(loaded()).digest


@pytest.mark.parametrize(
    "change",
    [
        ("loop.py", "UNUSED = 1", "UNUSED = 2"),
        ("loop.py", "def helper(x, by=1):\n", "def helper(x, by=1):\n    # a comment\n\n"),
        ("loop.py", "import functools\n", "import functools\n\n\n"),
    ],
    ids=lambda change: change[2],
)
def test_closure_digest_stays_where_nothing_that_is_reached_changes(
    loaded: Callable[..., Any], change: tuple[str, str, str]
) -> None:
    assert closure_of(loaded(change)).digest == closure_of(loaded()).digest


def test_closure_names_the_versions_of_installed_packages(loaded: Callable[..., Any]) -> None:
    versions = closure_of(loaded()).libraries
    assert {"numpy", "sklearn"} <= versions.keys()
    assert all(versions.values())
    assert not {"beside", "statistics", "functools"} & versions.keys()


def test_closure_digest_is_the_same_in_every_process_and_folder(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        for file, text in FILES.items():
            (folder / file).write_text(text)
        script = "import loop; from loopwright.base.closure import closure_of; print(closure_of(loop.both).digest)"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        found.add(done.stdout)
    assert len(found) == 1


STATEFUL = """
import functools
import logging
import random
import re
import threading

import pydantic

LOG = logging.getLogger(__name__)
LOCK = threading.Lock()
CHANCE = random.Random()
PATTERN = re.compile("|".join(f"word{n}" for n in range(100)))
Row = pydantic.create_model("Row", by=(int, 3))


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by


SLOTTED = Slotted(2)


@functools.lru_cache
def cached(x):
    return x + 1


def both(x):
    LOG.debug("%s", x)
    with LOCK:
        return CHANCE.random(), PATTERN.match(x), SLOTTED.by, cached(len(x)), Row().by
"""


def stateful(source: str = STATEFUL) -> str:
    space: dict[str, Any] = {"__name__": "stateful"}
    exec(source, space)  # the test's own text
    return closure_of(space["both"]).digest


def test_closure_digest_ignores_loggers_locks_and_unseeded_generators() -> None:
    before = stateful()
    logging.getLogger(f"imported.later.{id(before)}").setLevel(logging.DEBUG)
    logging.getLogger("stateful").isEnabledFor(logging.INFO)
    assert stateful() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [("range(100)", "range(101)"), ("Slotted(2)", "Slotted(3)"), ("x + 1", "x + 2"), ("(int, 3)", "(int, 4)")],
    ids=["pattern", "slots", "cache", "pydantic"],
)
def test_closure_digest_changes_with_state_that_no_dict_holds(old: str, new: str) -> None:
    assert stateful(STATEFUL.replace(old, new)) != stateful()


def test_closure_of_a_chain_longer_than_the_recursion_limit_ends() -> None:
    chain = "".join(f"def f{n}(x):\n    return f{n + 1}(x)\n\n" for n in range(sys.getrecursionlimit()))
    last = f"def f{sys.getrecursionlimit()}(x):\n    return {{}}\n\nboth = f0\n"
    assert stateful(chain + last.format(1)) != stateful(chain + last.format(2))
    nested: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        nested = [nested]
    assert closure_of(nested).digest == closure_of(nested).digest


def test_closure_of_what_refers_to_itself_ends() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert closure_of(ring).digest == closure_of(ring).digest
    assert closure_of(fibonacci).digest


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
