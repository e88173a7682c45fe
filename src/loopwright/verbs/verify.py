"""The verb `verify`."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from loopwright.base.errors import HomeNotFound, LoopwrightError
from loopwright.records.entries import Problem
from loopwright.stores.examples import verify_examples
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import verify as verify_logs
from loopwright.verbs.integrity import attempted, missing


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `verify`: how many things were read, and the damage found."""

    ok: bool
    checked: dict[str, int]
    problems: list[Problem]


def verify(home: Home) -> Verified:
    """Check every stored byte: logs, lake, packages, ledger and its audit chain. Lists all damage and changes nothing."""
    if not home.path.is_dir():
        raise HomeNotFound(str(home.path))
    counts: dict[str, Callable[[], int]] = {
        "tables": lambda: len(home.lake.names()),
        "packages": lambda: len(home.packages.list()),
        "ledger entries": lambda: home.ledger.count(),  # noqa: PLW0108  # opening it may fail, and does so where it is caught
        "log segments": lambda: sum(1 for kind in ("open", "sealed") for _ in (home.path / "log").rglob(f"*.{kind}")),
        "examples files": lambda: sum(1 for _ in (home.path / "examples").glob("*.parquet")),
    }
    looks: dict[str, Callable[[], list[Problem]]] = {
        "lake": lambda: [p for name in home.lake.names() for p in attempted(f"table {name}", partial(home.lake.verify, name))],
        "packages": lambda: home.packages.verify(),  # noqa: PLW0108  # as above
        "ledger": lambda: home.ledger.verify(),  # noqa: PLW0108  # as above
        "log": lambda: verify_logs(home),
        "examples": lambda: verify_examples(home),
        "what should be there": lambda: missing(home),
    }
    problems = [problem for where, look in looks.items() for problem in attempted(where, look)]
    checked = {}
    for what, counted in counts.items():
        with suppress(LoopwrightError, OSError):  # reported above
            checked[what] = counted()
    return Verified(ok=not problems, checked=checked, problems=list(dict.fromkeys(problems)))
