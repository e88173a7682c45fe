"""Find and load a user's loop file."""

import difflib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from loopwright.base.errors import DeclarationInvalid, LoopFileNotFound, LoopwrightError, first_line
from loopwright.records.declarations import Declaration, Loop


def load_loop(path: str | Path) -> Loop:
    """Import a loop file and return its `loop`.

    Raises LoopFileNotFound when there is no such file, DeclarationInvalid when it declares nothing usable.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "loop.py"
    if not file.is_file():
        raise LoopFileNotFound(file)
    module = _imported(file.absolute())
    loop = getattr(module, "loop", None)
    if not isinstance(loop, Loop):
        raise DeclarationInvalid(str(file), [("loop", "the file must set `loop = Loop(...)`")])
    return loop


def _imported(file: Path) -> ModuleType:
    """The module of a loop file. Raises DeclarationInvalid naming the file, the line and what to write instead."""
    name = f"loopwright_loop_{file.parent.name}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise LoopFileNotFound(file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if _is_interrupt(error, file) or (isinstance(error, LoopwrightError) and not isinstance(error, DeclarationInvalid)):
            raise
        raise DeclarationInvalid(str(file), _explained(error, file)) from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _is_interrupt(error: BaseException, file: Path) -> bool:
    """Whether it is a Ctrl-C: a KeyboardInterrupt that does not come from a `raise` of the file itself."""
    if not isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return isinstance(error, KeyboardInterrupt)
    origin = traceback.extract_tb(error.__traceback__)[-1]
    code = linecache.getline(origin.filename, origin.lineno or 0).encode()[origin.colno :].strip()
    return not (code.startswith(b"raise") and _is_sibling(origin.filename, file))


def _explained(error: BaseException, file: Path) -> list[tuple[str, str]]:
    """The place and the reason of a failure in a loop file, or a module next to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return [(_line(error.filename, error.lineno or 0, file), f"{type(error).__name__}: {error.msg}")]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_sibling(f.filename, file)]
    place = _line(frames[-1].filename, frames[-1].lineno or 0, file) if frames else file.name
    if isinstance(error, DeclarationInvalid):
        return [(f"{place}: {error.what}.{p.field}", p.reason) for p in error.problems]
    if isinstance(error, SystemExit):
        return [(place, f"ends the process (SystemExit: {error.code}): a loop file only declares")]
    return [(place, f"{type(error).__name__}: {first_line(error)}{_nearest(error)}")]


def _is_sibling(name: str, file: Path) -> bool:
    """Whether code is the user's own: the loop file, or a module in its folder that is not installed there."""
    path = Path(name)
    return path.is_relative_to(file.parent) and not {"site-packages", "dist-packages"} & set(path.parts)


def _line(name: str, number: int, file: Path) -> str:
    linecache.checkcache(name)  # a notebook reads the file again after it was changed
    text = linecache.getline(name, number).strip()
    other = "" if Path(name) == file else f"{Path(name).name}, "
    return f"{other}line {number}" + (f" `{text[:100]}`" if text else "")


def _nearest(error: BaseException) -> str:
    """The name that was probably meant by a misspelt argument, import or name; empty without one."""
    said = first_line(error)
    if isinstance(error, TypeError) and "argument" in said:
        known: Collection[str] = {field for kind in _declarations() for field in kind.__struct_fields__}
        wrong = said.rpartition(" argument ")[2].strip("'")
    elif isinstance(error, ModuleNotFoundError):
        return f": install it where loopwright runs (pip install {str(error.name).partition('.')[0]}), or mend its name"
    elif isinstance(error, ImportError) and error.name and error.name in sys.modules:
        known, wrong = dir(sys.modules[error.name]), said.partition("'")[2].partition("'")[0]
    elif isinstance(error, NameError):
        known, wrong = sys.modules["loopwright"].__all__, error.name or ""
    else:
        return ""
    near = difflib.get_close_matches(wrong, known, 1)
    return f": did you mean `{near[0]}`?" if near else ""


def _declarations() -> list[type[Declaration]]:
    """Every kind of declaration there is."""
    found, waiting = list[type[Declaration]](), [Declaration]
    while waiting:
        waiting += (kinds := waiting.pop().__subclasses__())
        found += kinds
    return found
