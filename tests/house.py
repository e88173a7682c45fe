"""Counts of the code's shape and language: `make house` prints them, tests/test_house.py holds them.

A room is a folder of `src/loopwright` (or one of its top files). A function's length is from `def` to its last line, without decorators.
Nesting counts the blocks (`if`, `for`, `while`, `with`, `try`, `match`) around a function's deepest statement. A knot is a set of modules
that import each other in a circle; imports for type checkers only and imports inside functions count too.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "loopwright"

BANNED_WORDS = frozenset({"found", "told", "given", "said", "asked", "beside", "kept", "usual", "there"})
"""Words that say nothing about a thing, as parts of the names of modules, classes, functions and parameters."""

# `count` is also the name of an aggregate of SQL.
TASKS = frozenset({"binary", "multiclass", "regression", "ranking", "anomaly", "quantiles"})
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """Something counted, and where it is: `path:line name`, sorted by its size."""

    size: int
    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name} ({self.size})"


@dataclass(frozen=True)
class Module:
    """A source file, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        parts = ("loopwright", *Path(self.path).with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    @property
    def room(self) -> str:
        return Path(self.path).parts[0]

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def functions(self) -> Iterator[Function]:
        return (n for n in ast.walk(self.tree) if isinstance(n, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (n for n in ast.walk(self.tree) if isinstance(n, ast.ClassDef))

    def place(self, node: ast.stmt | ast.expr, name: str, size: int = 1) -> Place:
        return Place(size, self.path, node.lineno, name)


@cache
def modules() -> tuple[Module, ...]:
    files = sorted(SOURCE.rglob("*.py"))
    texts = {path: path.read_text() for path in files}
    return tuple(Module(path.relative_to(SOURCE).as_posix(), text, ast.parse(text)) for path, text in texts.items())


def parameters(function: Function) -> list[ast.arg]:
    """All but `self` and `cls`."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [x for x in every if x.arg not in ("self", "cls")]


def nesting(node: ast.AST) -> int:
    """Blocks around the deepest statement of a function; `elif` is no deeper than its `if`."""
    inside = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        inside = max(inside, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return inside


def files() -> list[Place]:
    return sorted((Place(m.lines, m.path, 1, "") for m in modules()), key=lambda p: -p.size)


def functions() -> list[Place]:
    every = [m.place(f, f.name, (f.end_lineno or 0) - f.lineno + 1) for m in modules() for f in m.functions()]
    return sorted(every, key=lambda p: -p.size)


def parameter_counts() -> list[Place]:
    every = [m.place(f, f.name, len(parameters(f))) for m in modules() for f in m.functions()]
    return sorted(every, key=lambda p: -p.size)


def nestings() -> list[Place]:
    return sorted((m.place(f, f.name, nesting(f)) for m in modules() for f in m.functions()), key=lambda p: -p.size)


def public_methods() -> list[Place]:
    every = []
    for m in modules():
        for c in m.classes():
            public = [n for n in c.body if isinstance(n, Function) and not n.name.startswith("_")]
            every.append(m.place(c, c.name, len(public)))
    return sorted(every, key=lambda p: -p.size)


def names() -> list[Place]:
    """Every module, class, function and parameter."""
    every = [Place(1, m.path, 1, Path(m.path).stem) for m in modules()]
    for m in modules():
        every += [m.place(c, c.name) for c in m.classes()]
        for f in m.functions():
            every += [m.place(f, f.name), *(Place(1, m.path, a.lineno, a.arg) for a in parameters(f))]
    return every


def banned_names() -> list[Place]:
    return [place for place in names() if BANNED_WORDS & set(words(place.name.replace("NotFound", "")))]  # a term of the field


def words(name: str) -> list[str]:
    """`HomeNotFound`, `home_not_found` -> home, not, found."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def duplicate_classes() -> dict[str, list[Place]]:
    """Names that more than one class has; private ones count too."""
    by_name: dict[str, list[Place]] = {}
    for m in modules():
        for c in m.classes():
            by_name.setdefault(c.name, []).append(m.place(c, c.name))
    return {name: places for name, places in sorted(by_name.items()) if len(places) > 1}


def imports_inside_functions() -> list[Place]:
    """Each import statement in a function, named by what it imports; size 0 if no comment gives the reason on its line or the one above."""
    every = {}
    for m in modules():
        lines = m.text.splitlines()
        for f in m.functions():
            for node in ast.walk(f):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    reason = "#" in lines[node.lineno - 1] or lines[node.lineno - 2].lstrip().startswith("#")
                    name = node.module or "." if isinstance(node, ast.ImportFrom) else node.names[0].name
                    every[m.path, node.lineno] = m.place(node, name, int(reason))
    return list(every.values())


def task_comparisons(room: str = "tasks") -> list[Place]:
    """Comparisons with, and matches on, the name of a task outside the room of tasks."""
    every = []
    for m in modules():
        if m.room == room:
            continue
        for node in ast.walk(m.tree):
            sides: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                sides = [node.value]
            literals = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)}
            if literals & TASKS:
                every.append(m.place(sides[0], ast.unparse(sides[0])))
    return every


def first_arms(room: str = "deploy/strategies/") -> list[Place]:
    """`arms[0]` outside the room of release strategies: code that knows one strategy only."""
    return [
        m.place(node, ast.unparse(node))
        for m in modules()
        if not m.path.startswith(room)
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node).endswith("arms[0]")
    ]


def strategy_names(room: str = "deploy/strategies/", declared: str = "records/declarations/deploy.py") -> list[Place]:
    """Names of release strategies as text outside their room and the declaration that offers them: a comparison, or a default of its own."""
    files = {m.path.removeprefix(room) for m in modules() if m.path.startswith(room)} - {"__init__.py", "strategy.py"}
    names = {file.removesuffix(".py").replace("_", "-") for file in files}
    return [
        m.place(node, node.value)
        for m in modules()
        if not m.path.startswith(room) and m.path != declared
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Constant) and node.value in names and isinstance(node.value, str)
    ]


def imports(module: Module) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    known = {m.name for m in modules()}
    targets = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names}
    return (targets & known) - {module.name}


def knots() -> list[list[str]]:
    """Modules that import each other in a circle, largest first: each reaches every other one."""
    graph = {m.name: imports(m) for m in modules()}
    reach = {name: _reachable(graph, name) for name in graph}
    circles = {frozenset(o for o in reach[name] if name in reach[o]) for name in graph if name in reach[name]}
    return sorted((sorted(c) for c in circles), key=lambda c: (-len(c), c))


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


def percentile(places: list[Place], share: float) -> int:
    """Nearest rank; `places` are sorted, largest first."""
    return places[min(len(places) - 1, int(len(places) * (1 - share)))].size


def lines_by_room() -> dict[str, int]:
    count: Counter[str] = Counter()
    for m in modules():
        count[m.room] += m.lines
    return dict(count.most_common())


def report() -> str:
    lengths, params, depths, methods, banned = functions(), parameter_counts(), nestings(), public_methods(), banned_names()
    local, rooms, circles = imports_inside_functions(), lines_by_room(), knots()
    rows = [
        ("rooms", len({m.room for m in modules() if "/" in m.path})),
        ("knot", f"{max(map(len, circles), default=0)} modules import each other" if circles else "no circle"),
        ("lines", sum(rooms.values())),
        ("longest file", files()[0]),
        ("files over 500 lines", sum(p.size > 500 for p in files())),
        ("function length", _spread(lengths)),
        ("functions over 60 lines", sum(p.size > 60 for p in lengths)),
        ("parameters", _spread(params)),
        ("functions with over 8 parameters", sum(p.size > 8 for p in params)),
        ("nesting", _spread(depths)),
        ("most public methods", methods[0]),
        ("classes with over 15 public methods", sum(p.size > 15 for p in methods)),
        ("names with a banned word", f"{len(banned)} of {len(names())} ({len(banned) / len(names()):.1%})"),
        ("class names that exist twice", len(duplicate_classes())),
        ("imports inside functions", f"{len(local)}, {sum(p.size == 0 for p in local)} without a reason"),
        ("comparisons with a task's name", len(task_comparisons())),
        ("first arms", len(first_arms())),
    ]
    width = max(len(name) for name, _ in rows) + 2
    table = [f"{name:<{width}}{value}" for name, value in rows]
    return "\n".join([*table, "", "lines by room", *(f"  {room:<{width - 2}}{count}" for room, count in rooms.items())])


def _spread(places: list[Place]) -> str:
    return f"p50 {percentile(places, 0.5)}, p95 {percentile(places, 0.95)}, max {places[0]}"


if __name__ == "__main__":
    print(report())
