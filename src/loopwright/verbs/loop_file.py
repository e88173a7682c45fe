"""The loop file that a verb was pointed to, by its path or by the loop's name."""

from pathlib import Path

from loopwright.base.errors import LoopNotFound, NotFound, UsageError, nearest, nearest_paths
from loopwright.loop import load_loop
from loopwright.records.declarations import Loop
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home


def loop_with_code(home: Home, loop: str) -> tuple[Loop, str]:
    """The loop with its functions, and its file: from a path, or from the file that the ledger knows for a name.

    Raises UsageError when the file of a name, or the loop file in a folder of that name, declares another loop.
    """
    path = Path(loop)
    known = path.name == loop and home.exists and home.ledger.latest(LoopRecord, loop=loop) is not None
    if path.suffix == ".py" or path.name != loop or (path.is_dir() and (not known or (path / "loop.py").is_file())):
        file = path / "loop.py" if path.is_dir() else path
        declared = load_loop(file)
        if known:
            check_declared(declared, str(file), loop)
        return declared, str(file.absolute())
    if not home.exists:  # do not make one in order to look into it
        raise LoopNotFound(loop, _loops_here(path))
    entry = home.ledger.latest(LoopRecord, loop=loop)
    if entry is None:
        raise LoopNotFound(loop, [*nearest(loop, home.ledger.loops(LoopRecord)), *_loops_here(path)])
    if not Path(entry.record.file).is_file():
        raise NotFound(
            "loop file", entry.record.file, next_step=f"loop {loop!r} was declared there; give the path where it is now"
        )
    declared = load_loop(entry.record.file)
    check_declared(declared, entry.record.file, loop)
    return declared, entry.record.file


def check_declared(declared: Loop, file: str, loop: str) -> None:
    """Raise UsageError when a file declares another loop than `loop`."""
    if declared.name != loop:
        raise UsageError(
            f"{file} declares loop {declared.name!r}, not {loop!r}: put the name back, or begin the other loop"
            f" with `loopwright run {file}`; {loop!r} serves on and is not retrained"
        )


def _loops_here(path: Path) -> list[str]:
    """Loop files and folders with paths similar to a missing one."""
    return [name for name in nearest_paths(path) if name.endswith(".py") or (Path(name) / "loop.py").is_file()]
