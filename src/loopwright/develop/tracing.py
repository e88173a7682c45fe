"""Tracing of a user's function: one call, with columns that record the operations; and errors for what cannot be traced, by line.

The function is called with arrays that hold no values. Values that it reads meanwhile (clock, random numbers, a file, the network)
would become constants of the graph, so reading them is refused as well, with the line that does it.
"""

import builtins
import difflib
import dis
import linecache
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from datetime import date
from types import FrameType
from typing import Any

import numpy as np

from loopwright.base.errors import DeclarationInvalid, message_of
from loopwright.records.declarations import RETIRED

_NUMPY = "NumPy cannot be traced: use the function of the same name in ndonnx (`import ndonnx as ndx`)"

# Messages of ndonnx in terms of the user's code, and what to write instead; the first match counts.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        "no propagated value",
        "`if`, `and`, `or`, `float()` and `math` need one value, a column is all rows: write ndx.where(condition, a, b), &, |, ndx.sin",
    ),
    ("ufunc", _NUMPY),
    ("array element with a sequence", _NUMPY),
    ("iteration", "rows cannot be looped over: write the expression over the whole column"),
    ("'fillna'", "write nde.fill_null(column, value) (`import ndonnx.extensions as nde`)"),
    ("'isnull'", "write is_null(column) (`from loopwright.features import is_null`)"),
    ("'isna'", "write is_null(column) (`from loopwright.features import is_null`)"),
    ("'isin'", "write nde.isin(column, [...]) (`import ndonnx.extensions as nde`)"),
    ("'map'", "write nde.static_map(column, {...}, default=...) (`import ndonnx.extensions as nde`)"),
    (
        "'apply'",
        "write the expression over the whole column, or nde.static_map(column, {...}, default=...) for a table of values",
    ),
    ("'astype'", "write ndx.astype(column, ndx.float64)"),
    ("'clip'", "write ndx.clip(column, low, high)"),
    ("'dt'", 'write local_time(column, "Europe/Paris").hour (`from loopwright.features import local_time`)'),
    ("'str'", "a column of text has no `.str`: compare it, or map its values with nde.static_map"),
    ("'NotImplementedType'", "these types cannot be combined: convert one side, for instance with ndx.astype"),
    ("unsupported operand", "these types cannot be combined: convert one side, for instance with ndx.astype"),
    ("has no attribute", "an array has the methods of the Array API only: look for a function in ndx or nde instead"),
)

# Packages that compute on values, which a traced column does not have.
_VALUES = {"pandas": "pandas", "polars": "Polars", "scipy": "SciPy", "sklearn": "scikit-learn", "torch": "PyTorch"}

_CLOCK = (
    "the clock would be read once, while tracing, and that moment stay in the graph: use a timestamp column with local_time or "
    "seconds_between (`from loopwright.features import local_time`)"
)
_CHANCE = (
    "chance would be drawn once, while tracing, and stay in the graph: use a column, or constants drawn with a seed "
    "(np.random.default_rng(0))"
)
_OUTSIDE = "a graph reads {}: make it a table and declare a Context, or write the constants into the loop file"

_CLOCKS = frozenset(
    {"now", "utcnow", "today", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
)
_FILES = frozenset({"open", "open_code", "listdir", "scandir", "stat", "system", "fork_exec"})
_DICE = frozenset({"random", "getrandbits", "urandom"})
_NETWORK = frozenset({"connect", "connect_ex", "getaddrinfo", "gethostbyname", "sendto"})
_WATCHED = _CLOCKS | _FILES | _DICE | _NETWORK


class Fields:
    """The argument of a traced function: one attribute per column. An unknown one raises AttributeError naming the nearest."""

    def __init__(self, arrays: Mapping[str, Any], retired: Collection[str] = ()) -> None:
        self._arrays = {name: array for name, array in arrays.items() if name not in retired}
        self._retired = retired

    def __getattr__(self, name: str) -> Any:
        try:
            return self._arrays[name]
        except KeyError:
            if name in self._retired:
                raise AttributeError(f"column {name!r} {RETIRED}") from None
            near = difflib.get_close_matches(name, self._arrays, n=3) or sorted(self._arrays)
            raise AttributeError(f"no column {name!r}; there is {', '.join(near)}") from None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def call(what: str, function: Callable[[Any], Any], arguments: Mapping[str, Any], retired: Collection[str] = ()) -> Any:
    """Trace a user's function on the columns `arguments`; it may use none of those that are `retired`.

    Raises DeclarationInvalid naming the line of the user's code that cannot be traced, and what to write instead.
    """
    if not callable(function):
        raise DeclarationInvalid(
            what, [(what, "only its source text is stored here: name the path of the loop file, whose code can run")]
        )
    if clock := _compiled_clock(function):
        raise DeclarationInvalid(what, [(clock, _CLOCK)])
    try:
        with warnings.catch_warnings(), _Watch(function):
            warnings.simplefilter("ignore")  # the libraries' remarks on precision: features are float32 anyway
            return function(Fields(arguments, retired))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any error of user code becomes one message that names the line
        raise DeclarationInvalid(what, [(_place(function, error), _advice(error))]) from error


class _Outside(Exception):  # never leaves this module
    """Something was read that is no column."""


class _Watch:
    """While active, reads of the clock, random numbers, files or the network raise at the line of the user's function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = getattr(function, "__code__", None)
        self._own = code.co_filename if code else ""

    def __enter__(self) -> None:
        self._before, self._dice = sys.getprofile(), _dice()
        sys.setprofile(self._see)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        sys.setprofile(self._before)
        if kind is None and self._dice != _dice():
            raise _Outside(_CHANCE)

    def _see(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or called.__name__ not in _WATCHED:
            return
        name, owner = called.__name__, getattr(called, "__self__", None)
        home = getattr(called, "__module__", None) or getattr(owner, "__name__", "")
        if name in _CLOCKS and frame.f_code.co_filename == self._own:
            if home == "time" or (isinstance(owner, type) and issubclass(owner, date)):
                raise _Outside(_CLOCK)
        elif name in _DICE:
            shared = getattr(random.random, "__self__", None)  # the instance behind random.random
            if (name == "urandom" or owner is shared) and not _importing(frame):
                raise _Outside(_CHANCE)
        elif name in _FILES and (called is builtins.open or home in ("io", "_io", "posix", "nt", "_posixsubprocess")):
            if not _importing(frame):
                raise _Outside(_OUTSIDE.format("no file and starts no program"))
        elif name in _NETWORK and (home == "_socket" or type(owner).__name__ == "socket"):
            raise _Outside(_OUTSIDE.format("nothing from the network"))


def _compiled_clock(function: Callable[..., Any]) -> str:
    """The line of a function that asks pandas or NumPy for the time, in compiled code that cannot be watched; "" if none does."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    last, line = "", code.co_firstlineno
    for step in dis.get_instructions(code):
        line = _line_of(step) or line
        if (last == "Timestamp" and step.argval in _CLOCKS) or (
            step.argval in ("now", "today")
            and step.opname == "LOAD_CONST"
            and last in ("datetime64", "Timestamp", "to_datetime")
        ):
            return _line(code.co_filename, line)
        last = step.argval if isinstance(step.argval, str) else last
    return ""


def _line_of(step: dis.Instruction) -> int:
    """The line of an instruction, 0 if it has none: `starts_line` is a number up to Python 3.12 and a boolean since."""
    return (step.positions.lineno if step.positions is not None else None) or 0


def _dice() -> bytes:
    """The state of NumPy's own generator, which every draw without a generator changes."""
    _, keys, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002  # the very state to be watched
    return np.asarray(keys).tobytes() + str(place).encode()


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way, a time zone is loaded or a line of source is looked up: these read files, and may."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib") or file == linecache.__file__ or "/zoneinfo/" in file.replace("\\", "/"):
            return True
        frame = frame.f_back
    return False


def _place(function: Callable[[Any], Any], error: BaseException) -> str:
    code = getattr(function, "__code__", None)
    own = code.co_filename if code else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    if not frames or frames[-1].lineno is None:
        return getattr(function, "__qualname__", "function")
    return _line(own, frames[-1].lineno)


def _line(file: str, number: int) -> str:
    text = linecache.getline(file, number).strip()
    return f"line {number}" + (f" `{text[:100]}`" if text else "")


def _advice(error: BaseException) -> str:
    text = message_of(error)
    if isinstance(error, _Outside) or (isinstance(error, AttributeError) and text.startswith("no column")):
        return text
    said = f"({type(error).__name__}: {text[:200]})"
    for frame in traceback.extract_tb(error.__traceback__):
        for package, name in _VALUES.items():
            if f"/site-packages/{package}/" in frame.filename.replace("\\", "/"):
                return f"{name} cannot be traced: write it with ndonnx (`import ndonnx as ndx`), whole columns at a time {said}"
    for sign, advice in _ADVICE:
        if sign in text:
            return f"{advice} {said}"
    return f"{type(error).__name__}: {text[:400]}"
