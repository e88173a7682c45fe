"""What declared functions depend on: their code, and every constant, function, class and module of the user's that they reach.

The source text of a function says nothing of the helper that it calls or of the constant that it reads. So the closure is walked
from the function's own globals, defaults and cells, into modules beside the loop file and any other code that is not installed.
Code that is installed (the standard library, site-packages, loopwright itself) is known by name, and by the version of its package.
"""

import enum
import functools
import importlib.metadata
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopwright.records.ids import digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


class Closure(NamedTuple):
    """`digest` changes whenever something of the user's that is reached changes; `libraries` are versions of what is installed."""

    digest: str
    libraries: dict[str, str]


_INCIDENTAL = frozenset({"__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__", "__annotate_func__"})
"""Attributes of a class that change without its behaviour; from Python 3.13 on its line is one."""


def closure_of(declared: Any) -> Closure:
    """The closure of all functions in a declaration (or of one function)."""
    walk = _Walk()
    text = "\n".join(walk.lines(declared))
    versions = {name: version for name in sorted(walk.libraries) if (version := _version(name))}
    return Closure(digest(text.encode("utf-8", "surrogatepass")), versions)


class _Walk:
    """A walk over values: each gives lines that are the same in every process as long as the value is the same."""

    def __init__(self) -> None:
        self.libraries: set[str] = set()
        self._seen: dict[int, tuple[int, Any]] = {}

    def lines(self, value: Any) -> Iterator[str]:
        """Lines that stand for a value and all that it reaches."""
        if isinstance(value, _PLAIN):
            yield repr(value)
        elif id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]}"
        else:
            self._seen[id(value)] = len(self._seen), value  # the value too, so that its id stays its own
            yield from self._of(value)

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
            yield from sorted("\n".join(self.lines(part)) for part in value)
        elif isinstance(value, list | tuple):
            yield from self._parts(str(len(value)), *value)
        elif isinstance(value, msgspec.Struct):
            yield from self._parts("fields", *(getattr(value, name) for name in value.__struct_fields__))
        elif hasattr(value, "to_pylist"):
            yield from self._parts("values", value.to_pylist())
        elif hasattr(value, "__array__"):
            yield from self._array(value)
        elif hasattr(value, "__dict__"):
            yield from self._parts("state", vars(value))
        else:
            yield _steady(value)

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
    """Whether a module is the user's: neither of the standard library, nor of loopwright, nor of an installed package."""
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
    return "" if " at 0x" in text else text


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))
