"""Lineage: a package back to its files, column by column; a file, table or column forward to its uses.

Everything is read from the ledger and the packages' manifests; no user code runs, and no file outside home is read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

import msgspec

from loopwright.base.errors import NotFound, PackageNotFound, RecordNotFound
from loopwright.base.ids import is_trace_id
from loopwright.base.text import count, moment
from loopwright.records.entries import Entry
from loopwright.records.examples import Examples
from loopwright.records.ingestions import Ingested
from loopwright.records.package import Lineage, Manifest, Origin
from loopwright.records.releases import ReleaseState
from loopwright.stores.contracts import Contract
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import find


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a lineage tree: an entry, a package, a table version or a file, and its sources (`role`)."""

    id: str
    kind: str
    label: str
    role: str
    children: list["Node"]


DEPTH = 8

OF, BY = "of", "found by"

_SHA256 = re.compile(r"[0-9a-f]{8,64}(:|$)")

Touches = Callable[[str], bool]


def lineage(home: Home, id: str) -> Node:
    """Trace the inputs and uses of something, down to single columns, as a tree.

    Args:
        id: a package (or the beginning of its digest), a prediction's id, a feature, a table, a column as TABLE.COLUMN,
            a file (the name it was ingested under, or its SHA-256), or the id of a ledger entry; `feature:NAME` and `table:NAME`
            if a name is both.
    """
    kind, _, name = id.partition(":")
    if kind in _KINDS and name and (found := _KINDS[kind](home, name)) is not None:
        return found
    for look in (_prediction, _package, _column, _table, _file, _linked, _feature):
        if (found := look(home, id)) is not None:
            return found
    names = sorted(_names(home))
    columns = [name for name in names if id and name.endswith(f".{id}")]
    raise NotFound(
        "package, prediction, table, column, feature, file or record",
        id,
        near=columns[:3] or get_close_matches(id[:200], names, 3, 0.6),
        next_step="write a column as TABLE.COLUMN; `loopwright leaderboard LOOP` lists packages, `loopwright check LOOP` tables",
    )


def _names(home: Home) -> set[str]:
    """The names of tables, their columns, and features, in the form of queries."""
    tables = {e.key: e.record.table for e in home.ledger.find(Contract, newest=False)}
    columns = {f"{name}.{column}" for name, table in tables.items() for column in table.columns}
    return {*tables, *columns, *(feature for made in _made(home) for feature in made.manifest.lineage.features)}


def _prediction(home: Home, id: str) -> Node | None:
    if not is_trace_id(id) or (found := find(home, id)) is None:
        return None
    _, prediction = found
    package = _tree(home, prediction.package, "answered by", DEPTH)
    return Node(id=id, kind="prediction", label=f"score {prediction.score:.4f}", role="", children=[package])


def _package(home: Home, id: str) -> Node | None:
    try:
        return _tree(home, home.packages.resolve(id), "", DEPTH)
    except PackageNotFound:
        return None


def _linked(home: Home, id: str) -> Node | None:
    """Anything that the ledger has an entry or a link of."""
    if not home.ledger.links(id) and not home.ledger.links(id, direction="down"):
        try:
            home.ledger.get(id)
        except RecordNotFound:
            return None
    return _tree(home, id, "", DEPTH)


def _tree(home: Home, id: str, role: str, depth: int) -> Node:
    """The sources of `id` by the ledger's links; for a package first the columns that its features are computed from."""
    kind, label, made = _label(home, id)
    sources = {link.source: link.role for link in home.ledger.links(id, direction="up", depth=1)} if depth else {}
    if id.startswith("table:") and any(s.startswith("file:") for s in sources):  # then the ingestions between add nothing
        sources = {s: r for s, r in sources.items() if s.startswith("file:")}
    children = list(_computed(made)) if made is not None and depth else []
    # The previous package, and the global model of a segment's package, have lineages of their own: one look-up away.
    children += [_tree(home, s, r, 0 if r in ("parent", "fleet of") else depth - 1) for s, r in sorted(sources.items())]
    return Node(id=id, kind=kind, label=label, role=role, children=children)


def _computed(made: Lineage) -> Iterator[Node]:
    def node(kind: str, name: str, columns: Iterable[str]) -> Node:
        return Node(id=name, kind=kind, label="", role="", children=[_origin(c, made.columns) for c in columns])

    yield from (node("feature", name, columns) for name, columns in made.features.items())
    if made.heuristic:
        yield node("heuristic", "heuristic", made.heuristic)
    yield from (node("slice", name, columns) for name, columns in made.slices.items())
    for name, origin in made.labels.items():
        yield Node(id=name, kind="label", label=origin.how, role="", children=_table_columns(origin))


def _origin(column: str, origins: Mapping[str, Origin]) -> Node:
    origin = origins.get(column, Origin())
    return Node(id=column, kind="column", label=origin.how, role="", children=_table_columns(origin))


def _table_columns(origin: Origin) -> list[Node]:
    found = [(OF, name) for name in origin.of] + [(BY, name) for name in origin.by]
    return [Node(id=name, kind="table column", label="", role=role, children=[]) for role, name in found]


def _label(home: Home, id: str) -> tuple[str, str, Lineage | None]:
    if id.startswith("file:"):
        _, sha256, name = id.split(":", 2)
        return "file", f"{name} (sha256 {sha256[:12]})", None
    if id.startswith("table:"):
        return "table", "", None
    try:
        manifest = home.packages.manifest(id)
        return "package", _package_label(manifest), manifest.lineage
    except PackageNotFound:
        pass
    try:
        entry = home.ledger.get(id)
        return entry.kind, f"{entry.key or entry.loop} {entry.at:%Y-%m-%d %H:%M}", None
    except RecordNotFound:
        return "artefact", id, None


def _package_label(manifest: Manifest) -> str:
    commit = manifest.commit[:12] or "unknown"
    segment = f" for {manifest.segment.column} {manifest.segment.value}" if manifest.segment is not None else ""
    return f"{manifest.candidate}{segment}, trained until {manifest.training.last:%Y-%m-%d}, commit {commit}"


def _feature(home: Home, name: str) -> Node | None:
    """A feature of every package that has it: its columns, the table versions they were read at, the files of those."""
    packages = [made for made in _made(home) if name in made.manifest.lineage.features]
    if not packages:
        return None
    children = []
    for made in packages:
        manifest = made.manifest
        columns = [_origin(c, manifest.lineage.columns) for c in manifest.lineage.features[name]]
        named = {t.id.rpartition(".")[0]: None for c in columns for t in c.children}
        versions = [f"table:{t}@{v}" for t, v in manifest.training.sources.items() if t in named]
        reads = [_tree(home, version, "read from", DEPTH) for version in versions]
        children.append(made.node("in", [*columns, *reads]))
    return Node(id=name, kind="feature", label="", role="", children=children)


def _table(home: Home, id: str) -> Node | None:
    name, _, version = id.partition("@")
    there = name in home.lake.names()
    ingested = _ingested(home, table=name)
    if not (there or ingested or _declared(home, name)) or (version and not version.isdecimal()):
        return None
    kept = [e for e in ingested if not version or e.record.version <= int(version)]
    packages = [
        made.node("used by", _touched(made, lambda column: column.rpartition(".")[0] == name))
        for made in _made(home)
        if (read := made.manifest.training.sources.get(name)) is not None and (not version or read == int(version))
    ]
    rows = f"{count(home.lake.count(name), 'row')}, version {home.lake.version(name)}" if there else "no rows"
    return Node(id=f"table:{id}", kind="table", label=rows, role="", children=[*map(_file_node, kept), *packages])


def _column(home: Home, id: str) -> Node | None:
    table, _, column = id.rpartition(".")
    if not table:
        return None
    packages = [made.node("used by", touched) for made in _made(home) if (touched := _touched(made, id.__eq__))]
    known = _declared(home, table)
    if not packages and column not in known:
        return None
    source = [Node(id=f"table:{table}", kind="table", label="", role="of", children=_files_of(home, table))]
    return Node(id=id, kind="table column", label=known.get(column, ""), role="", children=[*source, *packages])


def _file(home: Home, id: str) -> Node | None:
    """A file by the name it was ingested under or its digest: each content that ever came under it."""
    digest, name = id.partition(":")[0] if _SHA256.match(id) else None, id.rpartition("/")[2]
    every = _made(home)
    nodes = [
        _file_forward(home, e, every)
        for e in _ingested(home)
        if (digest and e.record.digest.startswith(digest)) or name == e.record.source.rpartition("/")[2]
    ]
    return nodes[0] if len(nodes) == 1 else Node(id=name, kind="files", label="", role="", children=nodes) if nodes else None


def _file_forward(home: Home, entry: Entry[Ingested], every: list["_Made"]) -> Node:
    done = entry.record
    trained = {e.record.digest for e in home.ledger.find(Examples) for s in e.record.sources if done.digest in s.files.values()}
    packages = [
        made.node("used by", _touched(made, lambda column: column.rpartition(".")[0] == done.table))
        for made in every
        if made.manifest.training.examples in trained
    ]
    into = Node(
        id=f"table:{done.table}@{done.version}",
        kind="table",
        label=count(done.good, "row"),
        role="ingested into",
        children=packages,
    )
    node = _file_node(entry)
    return Node(id=node.id, kind="file", label=node.label, role="", children=[into])


def _touched(made: "_Made", touches: Touches) -> list[Node]:
    """Features, heuristic, slices and labels that table columns reach: with the columns of the contract in between."""
    return [kept for node in _computed(made.manifest.lineage) if (kept := _only(node, touches)) is not None]


def _only(node: Node, touches: Touches) -> Node | None:
    """A node reduced to the relevant table columns and their paths; None without any."""
    if node.kind == "table column":
        return node if touches(node.id) else None
    children = [kept for c in node.children if (kept := _only(c, touches)) is not None]
    return msgspec.structs.replace(node, children=children) if children else None


class _Made(NamedTuple):
    """A package, and whether it serves."""

    digest: str
    manifest: Manifest
    serves: bool

    def node(self, role: str, children: list[Node]) -> Node:
        """The package as a node, with the steps between it and the queried item."""
        label = f"{'serves, ' if self.serves else ''}{self.manifest.loop}, {_package_label(self.manifest)}"
        return Node(id=self.digest, kind="package", label=label, role=role, children=children)


def _made(home: Home) -> list[_Made]:
    """Every package: those that serve, then the others, newest first."""
    newest = {e.loop: e.record for e in home.ledger.find(ReleaseState, newest=False)}
    serving = {package for state in newest.values() for package in state.packages}
    found = [_Made(digest, home.packages.manifest(digest), digest in serving) for digest in home.packages.list()]
    return sorted(found, key=lambda made: (made.serves, made.manifest.created_at, made.digest), reverse=True)


def _ingested(home: Home, table: str | None = None) -> list[Entry[Ingested]]:
    return home.ledger.find(Ingested, key=table, newest=False)


def _file_node(entry: Entry[Ingested]) -> Node:
    done = entry.record
    label = f"{done.source} (sha256 {done.digest[:12]}), {count(done.good, 'row')} {moment(entry.at)} by {entry.by}"
    return Node(id=done.file, kind="file", label=label, role="ingested", children=[])


def _files_of(home: Home, table: str) -> list[Node]:
    return [_file_node(e) for e in _ingested(home, table=table)]


def _declared(home: Home, table: str) -> dict[str, str]:
    """Columns of a table's newest contract with their type."""
    entry = home.ledger.latest(Contract, key=table)
    return {name: column.type for name, column in entry.record.table.columns.items()} if entry else {}


_KINDS: dict[str, Callable[[Home, str], Node | None]] = {
    "feature": _feature,
    "table": _table,
    "column": _column,
    "file": _file,
    "package": _package,
}
