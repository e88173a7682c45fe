"""SQL expressions that a loop declares over the rows of a table: a label, what an aggregate is of.

They are parsed before they run, and may use only syntax and functions of one row (`functions.py`): anything else, known or
unknown, is refused, and so is what closes its bracket and begins something else. So what they cost is bounded by the rows, what
they see by the row, and the same row gives the same value whenever it is asked: while training and while serving, under every
version of DuckDB.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import RETIRED, Table
from loopwright.sql.engine import sql_engine
from loopwright.sql.functions import AGGREGATE_OF_LIST, LIST_AGGREGATES, ROW_FUNCTIONS

LONGEST = 20_000
_SYNTAX = frozenset(
    (
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "OPERATOR",
        "STAR",
        "TYPE",
    )
)
"""Classes of syntax nodes that see one row."""
_BEYOND = {
    "SUBQUERY": "it has a SELECT of its own",
    "WINDOW": "it looks at other rows (OVER)",
    "PARAMETER": "it has a parameter",
}
_CLOCK = frozenset(
    (
        "current_date",
        "current_localtime",
        "current_localtimestamp",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
    )
)
"""Names that stand for the moment, without brackets or with."""


def held(what: str, field: str, sql: str, table: Table) -> str:
    """The expression, if it is one over a single row of `table` and uses no retired column.

    Raises DeclarationInvalid naming `field` of `what` where it is not.
    """
    why = _fault(sql)
    if why:
        shown = sql if len(sql) <= 200 else f"{sql[:200]}..."
        raise DeclarationInvalid(what, [(field, f"{shown!r} cannot be evaluated: {why}")])
    retired = [c for c in table.columns if table.columns[c].retired]
    if retired and (used := [c for c in columns(sql, table) if c in retired]):
        raise DeclarationInvalid(what, [(field, f"column {c!r} {RETIRED}") for c in used])
    return sql


def columns(sql: str, table: Table) -> list[str]:
    """The columns of `table` that an expression names, in the contract's order; all of them if it cannot be read."""
    parsed = _parsed(sql)
    if parsed.get("error"):
        return list(table.columns)
    named = {name.casefold() for node in _nodes(parsed) for name in _names(node)}
    return [c for c in table.columns if c.casefold() in named or "*" in named]


def _fault(sql: str) -> str:
    if len(sql) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    parsed = _parsed(sql)
    if parsed.get("error"):
        return str(parsed.get("error_message", "it is no SQL")).splitlines()[0][:200]
    chosen, around = _select(parsed)
    if len(chosen) != 1 or around != _select(_parsed("1"))[1]:
        return "it is more than one expression"
    return next((why for node in _nodes(chosen) if (why := _beyond(node))), "")


def _beyond(node: dict[str, Any]) -> str:
    """Why one node of the tree sees more than its row; empty if it does not."""
    kind = node.get("class", "CONSTANT")
    if kind not in _SYNTAX:
        return _BEYOND.get(kind, f"{kind} is not an expression over one row")
    if kind == "COLUMN_REF":
        name = node["column_names"][0].casefold()
        return f"{name} is another value at another moment" if name in _CLOCK and len(node["column_names"]) == 1 else ""
    return _beyond_function(node["function_name"].casefold(), node["arguments"]) if kind == "FUNCTION" else ""


def _beyond_function(name: str, arguments: list[Any]) -> str:
    if name not in ROW_FUNCTIONS:
        if name in _aggregates():
            return f"{name} looks at other rows"
        return f"{name} is not known to be a function of one row alone: the clock, chance, settings and other rows are out of reach"
    if name == "age" and len(arguments) == 1:
        return "age of one argument is another value at another moment: name both times"
    if name in AGGREGATE_OF_LIST:
        literals = [argument["expression"].get("literal", {}).get("text", "") for argument in arguments[1:2]]
        if not any(literal.casefold() in LIST_AGGREGATES for literal in literals):
            return f"{name} needs the name of its aggregate, one of {', '.join(sorted(LIST_AGGREGATES))}"
    return ""


@lru_cache(maxsize=1)
def _aggregates() -> frozenset[str]:
    """DuckDB's functions over many rows."""
    with sql_engine() as database:
        rows = database.execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type IN ('aggregate', 'window')"
        ).fetchall()
    return frozenset(name for (name,) in rows)


@lru_cache(maxsize=256)
def _parsed(sql: str) -> dict[str, Any]:
    """DuckDB's syntax tree of `SELECT (sql)`; nothing is run."""
    with sql_engine() as database:
        [(tree,)] = database.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({sql})"]).fetchall()
    return json.loads(tree)  # type: ignore[no-any-return]  # an object, as DuckDB writes it


def _select(parsed: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What is selected, and all else that the statements say."""
    nodes = [s["node"] for s in parsed["statements"]]
    return nodes[0].get("select_list", []), [{k: v for k, v in n.items() if k != "select_list"} for n in nodes]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def _names(node: dict[str, Any]) -> list[str]:
    if node.get("class") == "STAR":
        return ["*"]
    return node["column_names"] if node.get("class") == "COLUMN_REF" else []
