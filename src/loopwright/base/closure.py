"""What declared functions depend on: their code, and every user constant, function, class and module that they reach.

The source text of a function does not show the helper that it calls or the constant that it reads. So the closure is walked
from the function's own globals, defaults and cells, into modules next to the loop file and any other code that is not installed.
Code that is installed (the standard library, site-packages, loopwright itself) is known by name, and by the version of its package.
"""

import copyreg
import enum
import functools
import importlib.metadata
import random
import re
import sys
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopwright.base.ids import digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_CODE = (types.FunctionType, type, types.ModuleType)
_CHANCE = (random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState)
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_MAX_NESTED = 50
"""Data nested deeper is known by its type: the walk must not exceed Python's recursion limit."""


class Closure(NamedTuple):
    """`digest` changes whenever reachable user code changes; `libraries` are the versions of installed packages."""

    digest: str
    libraries: dict[str, str]


_INCIDENTAL = frozenset(
    {"__dict__", "__module__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__", "__annotate_func__"}
    | {"__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__"}
)
"""Class attributes that change without a change of behaviour: line numbers from Python 3.13 on, addresses in pydantic's field objects."""


def closure_of(declared: Any) -> Closure:
    """The closure of all functions in a declaration (or of one function)."""
    walk = _Walk()
    text = "\n".join(walk.all_lines(declared))
    versions = {name: version for name in sorted(walk.libraries) if (version := _version(name))}
    return Closure(digest(text.encode("utf-8", "surrogatepass")), versions)


class _Walk:
    """A walk over values: each gives lines that are the same in every process as long as the value is the same."""

    def __init__(self) -> None:
        self.libraries: set[str] = set()
        self._seen: dict[int, tuple[int, Any]] = {}
        self._waiting: deque[Any] = deque()
        self._depth = 0

    def all_lines(self, value: Any) -> Iterator[str]:
        """Lines that describe a value and everything reachable from it.

        Functions, classes and modules wait for their turn: a chain of calls may be longer than Python's recursion limit.
        """
        yield from self.lines(value)
        while self._waiting:
            yield from self._of(self._waiting.popleft())

    def lines(self, value: Any) -> Iterator[str]:
        """Lines that describe a value; the code that it refers to follows later."""
        if isinstance(value, _PLAIN):
            yield repr(value)
        elif isinstance(value, tuple | frozenset):  # not by identity: Python may make one or two of equal constants
            yield from self._nested(value)
        elif id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]}"
        else:
            self._seen[id(value)] = len(self._seen), value  # the value too, so that its id stays its own
            if isinstance(value, _CODE):
                self._waiting.append(value)
                yield f"see {self._seen[id(value)][0]}"
            else:
                yield from self._nested(value)

    def _nested(self, value: Any) -> Iterator[str]:
        self._depth += 1
        try:
            yield from self._of(value) if self._depth <= _MAX_NESTED else [type(value).__qualname__]
        finally:
            self._depth -= 1

    def _of(self, value: Any) -> Iterator[str]:
        if isinstance(value, types.ModuleType):
            yield from self._module(value)
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.MethodType):
            yield from self._parts("method", value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from self._parts("partial", value.func, value.args, value.keywords)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif callable(value) and self._is_library(getattr(value, "__module__", None)):
            yield self._name(value)
        else:
            yield from self._data(value)

    def _parts(self, what: str, *parts: Any) -> Iterator[str]:
        yield what
        for part in parts:
            yield from self.lines(part)

    def _module(self, module: types.ModuleType) -> Iterator[str]:
        if self._is_library(module.__name__):
            yield f"module {module.__name__}"
        else:
            source = Path(str(module.__file__))
            yield digest(source.read_bytes()) if source.is_file() else ""

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield self._name(function)
        if self._is_library(function.__module__):
            return
        yield from self._parts("defaults", function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield from self._parts("cell", cell.cell_contents)
            except ValueError:  # an empty cell
                yield "cell"
        yield from self._code(function.__code__)
        names = sorted(set(_names(function.__code__)))
        for name in names:
            if name in function.__globals__:
                yield from self._reached(name, function.__globals__[name], names)

    def _reached(self, name: str, value: Any, names: list[str]) -> Iterator[str]:
        """A global, and of a module of the user's the attributes that a function with these names may take."""
        yield from self._parts(name, value)
        if isinstance(value, types.ModuleType) and not self._is_library(value.__name__):
            for attribute in names:
                if attribute in vars(value):
                    yield from self._reached(
                        f"{name}.{attribute}", vars(value)[attribute], [n for n in names if n != attribute]
                    )

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield f"code {code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {code.co_exceptiontable.hex()}"
        for constant in code.co_consts:
            yield from self._code(constant) if isinstance(constant, types.CodeType) else self.lines(constant)

    def _class(self, cls: type) -> Iterator[str]:
        yield self._name(cls)
        if self._is_library(cls.__module__):
            return
        for base in cls.__bases__:
            yield from self.lines(base)
        for name, value in sorted(vars(cls).items()):
            if name not in _INCIDENTAL and not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                yield from self._parts(name, getattr(value, "__func__", getattr(value, "fget", value)))

    def _data(self, value: Any) -> Iterator[str]:
        yield from self.lines(type(value))
        if isinstance(value, enum.Enum):
            yield repr(value)
        elif isinstance(value, dict):
            yield from sorted(["\n".join(self._parts(_steady(k), v)) for k, v in value.items()])
        elif isinstance(value, set | frozenset):
            ordered = sorted(
                value, key=lambda part: (type(part).__qualname__, getattr(part, "__qualname__", ""), _steady(part))
            )
            yield from self._parts(str(len(value)), *ordered)
        elif isinstance(value, list | tuple):
            yield from self._parts(str(len(value)), *value)
        elif isinstance(value, msgspec.Struct):
            yield from self._parts("fields", *(getattr(value, name) for name in value.__struct_fields__))
        elif hasattr(value, "to_pylist"):
            yield from self._parts("values", value.to_pylist())
        elif hasattr(value, "__array__"):
            yield from self._array(value)
        elif hasattr(value, "__wrapped__"):
            yield from self._parts("wrapped", value.__wrapped__)
        elif not isinstance(value, _CHANCE):  # the state of a generator that is not seeded is another one in each process
            yield from self._state(value)

    def _state(self, value: Any) -> Iterator[str]:
        """The state that `pickle` would store of a value: without caches, locks and addresses."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce is not None else value.__reduce_ex__(4)
            state = reduced if isinstance(reduced, str) else [list(p) if isinstance(p, Iterator) else p for p in reduced]
        except Exception:  # noqa: BLE001  # a lock, a connection: not data; or a user's object that refuses
            yield from self._parts("state", vars(value)) if _is_users(type(value).__module__) else [_steady(value)]
            return
        yield from self._parts("state", state)

    def _array(self, value: Any) -> Iterator[str]:
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape} {list(getattr(value, 'columns', ()))}"
        yield from self.lines(array.tolist()) if array.dtype.hasobject else [digest(array.tobytes())]

    def _name(self, value: Any) -> str:
        module = getattr(value, "__module__", None)
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{module}.{name}" if self._is_library(module) else name

    def _is_library(self, module: str | None) -> bool:
        """Whether a module is installed code; its package is noted."""
        if module is not None and _is_users(module):
            return False
        self.libraries.add(str(module).partition(".")[0])
        return True


def _is_users(module: str) -> bool:
    """Whether a module is the user's: not standard library, not loopwright, not an installed package."""
    top = module.partition(".")[0]
    if top == "loopwright" or top in sys.stdlib_module_names:
        return False
    loaded = sys.modules.get(module)
    places = [str(getattr(loaded, "__file__", None) or ""), *map(str, getattr(loaded, "__path__", ()))]
    return not any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names of globals and attributes in a code object and those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _steady(value: Any) -> str:
    """A value's text where it is no address in memory."""
    text = repr(value)
    return "" if _ADDRESS.search(text) else text


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))
