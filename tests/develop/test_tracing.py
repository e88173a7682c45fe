import contextlib
import datetime as dt
import random
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import ndonnx as ndx
import numpy as np
import pandas as pd
import pytest
from tests.develop.flights import COLUMNS

from loopwright.base.errors import DeclarationInvalid
from loopwright.develop.features import trace, trace_rule, trace_slices
from loopwright.records.declarations import Slice

DATA = Path(__file__)


def opened(f: Any) -> Any:
    with DATA.open() as file:
        return {"a": f.delay + len(file.read())}


def deep(f: Any) -> Any:
    return {"a": f.delay + chance()}


def chance() -> float:
    return random.gauss(0, 1)


OUTSIDE: dict[str, tuple[Any, str]] = {
    "now": (lambda f: {"a": f.delay + dt.datetime.now(dt.UTC).hour}, r"line \d+ .*now.*the clock .*seconds_between"),
    "today": (lambda f: {"a": f.delay + dt.date.today().year}, r"line \d+ .*today.*the clock"),  # noqa: DTZ011  # the point
    "time": (lambda f: {"a": f.delay + time.time()}, r"line \d+ .*time.time.*the clock"),
    "pandas' clock": (lambda f: {"a": f.delay + pd.Timestamp.now().year}, r"line \d+ .*Timestamp.now.*the clock"),
    "pandas' now": (lambda f: {"a": f.delay + pd.to_datetime("now").year}, r"line \d+ .*to_datetime.*the clock"),
    "NumPy's now": (lambda f: {"a": f.delay + np.datetime64("now").astype(int)}, r"line \d+ .*datetime64.*the clock"),
    "random": (lambda f: {"a": f.delay + random.random()}, r"line \d+ .*random.random.*chance"),
    "randint": (lambda f: {"a": f.delay + random.randint(1, 6)}, r"line \d+ .*randint.*chance"),
    "deeper": (deep, r"line \d+ .*random.gauss.*chance"),
    "numpy's own": (lambda f: {"a": f.delay + np.random.normal()}, "chance would be drawn"),  # noqa: NPY002  # the point
    "no seed": (lambda f: {"a": f.delay + np.random.default_rng().normal()}, r"line \d+ .*default_rng.*chance"),
    "file": (opened, r"line \d+ .*DATA.open.*reads no file.*Context"),
    "frame": (lambda f: {"a": f.delay + len(pd.read_csv(DATA))}, r"line \d+ .*read_csv.*reads no file"),
    "socket": (lambda f: {"a": f.delay + len(socket.create_connection(("127.0.0.1", 9)).recv(1))}, r"line \d+ .*nothing from the net"),
    "url": (lambda f: {"a": f.delay + len(urllib.request.urlopen("http://127.0.0.1:9").read())}, "nothing from the network"),
    "pandas": (lambda f: {"a": pd.cut(f.delay, [0, 10, 20])}, r"line \d+ .*pd.cut.*pandas cannot be traced: write it with ndonnx"),
    "frame of": (lambda f: {"a": pd.Series(f.delay).rolling(3).mean()}, r"line \d+ .*rolling.*pandas cannot be traced"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_read_while_tracing_is_refused_by_its_line(name: str) -> None:
    function, expected = OUTSIDE[name]
    with pytest.raises(DeclarationInvalid, match=expected):
        trace(function, COLUMNS)


def test_the_watch_ends_with_the_call() -> None:
    for function in (OUTSIDE["now"][0], OUTSIDE["numpy's own"][0], lambda f: {"a": f.delay}):
        with contextlib.suppress(DeclarationInvalid):
            trace(function, COLUMNS)
        assert dt.datetime.now(dt.UTC).year > 2000
        assert 0 <= random.random() < 1
        assert DATA.read_text()


def test_rules_and_slices_are_watched_too() -> None:
    with pytest.raises(DeclarationInvalid, match="the clock"):
        trace_rule(lambda f: f.delay > time.time(), COLUMNS)
    with pytest.raises(DeclarationInvalid, match="chance"):
        trace_slices([Slice("a", lambda f: f.delay > random.random())], COLUMNS)


def test_imports_and_seeded_constants_are_fine() -> None:
    def features(f: Any) -> dict[str, Any]:
        import colorsys  # an import reads files, and may

        weights = np.random.default_rng(0).normal(size=3)
        return {"a": f.delay * weights[0] + colorsys.rgb_to_hsv(1, 0, 0)[2], "b": ndx.sin(f.delay)}

    assert trace(features, COLUMNS).order == ["a", "b"]


def test_a_clock_in_compiled_code_is_refused_by_its_own_line() -> None:
    """Also since Python 3.13, where `Instruction.starts_line` is no number any more."""

    def features(f: Any) -> dict[str, Any]:
        late = f.delay > 10.0
        year = pd.Timestamp.now().year
        return {"a": f.delay + year, "late": late}

    with pytest.raises(DeclarationInvalid, match=f"line {features.__code__.co_firstlineno + 2} .*Timestamp.now"):
        trace(features, COLUMNS)
