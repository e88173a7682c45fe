"""A lineage tree, for a terminal."""

from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.text import Text
from rich.tree import Tree

from loopwright.base.text import count as _count
from loopwright.base.text import short
from loopwright.cli.terminal.cells import ALIKE
from loopwright.render.words import word
from loopwright.verbs.lineage import Node


def lineage(value: Node) -> Tree:
    """A tree; a column's origin and how it was found are on its own line; packages with the same origins are grouped."""
    root = Tree(_node_label(value))
    _grow(root, value.children)
    return root


def _node_label(node: Node) -> Text:
    name = short(node.id) if node.kind == "package" else word(node.id).removeprefix("table:")
    if (node.kind == "file" and node.label) or name == node.kind:  # the label, or the kind, says the name
        name = ""
    ends = {c.role: [t.id for t in node.children if t.role == c.role] for c in node.children if c.kind == "table column"}
    origin = "; ".join(f"{role} {', '.join(map(word, names))}" for role, names in ends.items())
    role, said = f"{word(node.role)}: " if node.role else "", word(node.label) if node.label else ""
    parts = [
        (role, "dim"),
        (f"{node.kind} ", "cyan"),
        (f"{name} " if name else "", ""),
        (f"{said} " if said else "", "dim"),
        (origin, "green"),
    ]
    label = Text.assemble(*parts)
    label.rstrip()
    return label


def _grow(tree: Tree, nodes: Sequence[Node]) -> None:
    shown: Counter[str] = Counter()
    same: dict[tuple[str, bytes], list[Node]] = {}
    for node in (n for n in nodes if n.kind != "table column"):
        inside = msgspec.json.encode(node.children) if node.kind == "package" and node.children else node.id.encode()
        same.setdefault((f"{node.role} {node.kind}", inside), []).append(node)
    for alike in same.values():
        first = alike[0]
        shown[first.kind] += 1
        if first.kind in ("file", "package") and shown[first.kind] > ALIKE:
            continue
        branch = tree.add(_node_label(first))
        _grow(branch, first.children)
        if others := [short(n.id) for n in alike[1:]]:
            more = "" if len(others) <= ALIKE else f" and {len(others) - ALIKE:,} more"
            branch.add(Text(f"the same in {', '.join(others[:ALIKE])}{more}", style="dim"))
    for kind in ("file", "package"):
        if (more_of := shown[kind] - ALIKE) > 0:
            tree.add(Text(f"and {_count(more_of, kind)} more (--json has all)", style="dim"))
