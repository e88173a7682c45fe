"""SQL expressions that a loop declares over the rows of a table: a label, the argument of an aggregate.

They are parsed before they run, and may use only syntax and functions of one row (`functions.py`): anything else, known or
unknown, is refused, and so is SQL that closes the surrounding bracket. So their cost is bounded by the rows, they
see only their row, and the same row always gives the same value: while training and while serving, under every
version of DuckDB.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import RETIRED, Table
from loopwright.sql.engine import sql_engine, sql_error
from loopwright.sql.functions import AGGREGATE_OF_LIST, LIST_AGGREGATES, ROW_FUNCTIONS

LONGEST = 20_000
_SYNTAX = frozenset((
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA", "OPERATOR",
    "STAR", "TYPE",
))  # fmt: skip
"""Classes of syntax nodes that see one row."""
_BEYOND = {
    "SUBQUERY": "it has a SELECT of its own",
    "WINDOW": "it looks at other rows (OVER)",
    "PARAMETER": "it has a parameter",
}
_CLOCK = frozenset((
    "current_date", "current_localtime", "current_localtimestamp", "current_time", "current_timestamp", "localtime", "localtimestamp",
))  # fmt: skip
"""Names that return the current time, with or without brackets."""
_FINITE = """list_transform([_x], lambda _y:
    CASE WHEN typeof(_y) NOT IN ('DOUBLE', 'FLOAT') OR isfinite(TRY_CAST(_y AS DOUBLE)) THEN _y END)[1]"""
"""`_x`, or null if it is a number that is not finite; of any type, and evaluated once."""
_NOT_ZERO = "nullif(_x, 0)"
_DIVISIONS = frozenset(("%", "//", "mod", "divide"))
"""Divisions of whole numbers that fail where the divisor is 0."""
_AS_IT_IS = frozenset(("isfinite", "isinf", "isnan", "+", "-", "*"))
"""Functions whose arguments need no guard: tests for non-finite numbers, and arithmetic that propagates them."""


def row_sql(what: str, field: str, sql: str, table: Table) -> str:
    """The expression as it is run: with non-finite numbers, and results of a division by 0, replaced by null.

    Infinity and NaN are larger than every number to DuckDB: `v / 0 > 0.5` would be true. `isnan`, `isinf` and `isfinite` see them.
    Raises DeclarationInvalid naming `field` of `what` where it is not an expression over one row of `table`, or uses a retired column.
    """
    why = _fault(sql)
    if why:
        shown = sql if len(sql) <= 200 else f"{sql[:200]}..."
        raise DeclarationInvalid(what, [(field, f"{shown!r} cannot be evaluated: {why}")])
    retired = [c for c in table.columns if table.columns[c].retired]
    if retired and (used := [c for c in columns(sql, table) if c in retired]):
        raise DeclarationInvalid(what, [(field, f"column {c!r} {RETIRED}") for c in used])
    floats = frozenset(name.casefold() for name, column in table.columns.items() if column.type == "float")
    try:
        return _guarded_sql(sql, floats)
    except (sql_error(), RecursionError) as error:
        raise DeclarationInvalid(what, [(field, f"{sql[:200]!r} cannot be evaluated: it is nested too deeply")]) from error


@lru_cache(maxsize=256)
def _guarded_sql(sql: str, floats: frozenset[str]) -> str:
    [statement] = _parsed(sql)["statements"]
    node = {**statement["node"], "select_list": _guarded(statement["node"]["select_list"], floats)}
    tree = {**_parsed(sql), "statements": [{**statement, "node": node}]}
    with sql_engine() as database:
        [(text,)] = database.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)]).fetchall()
    return str(text).removeprefix("SELECT ")


def _guarded(tree: Any, floats: frozenset[str], *, bare: bool = False) -> Any:
    """The tree with a guard around each node, but for a `bare` one itself, that may be a number that is not finite."""
    if isinstance(tree, list):
        return [_guarded(child, floats) for child in tree]
    if not isinstance(tree, dict):
        return tree
    kind, name = tree.get("class"), str(tree.get("function_name", "")).casefold()
    inside = {key: child if key == "lhs" else _guarded(child, floats) for key, child in tree.items() if key != "arguments"}
    if "arguments" in tree:
        found = [
            _guarded(argument["expression"], floats, bare=name in _AS_IT_IS or (name == "/" and i == 0))
            for i, argument in enumerate(tree["arguments"])
        ]
        if name in _DIVISIONS:
            found[-1] = _filled(_select(_parsed(_NOT_ZERO))[0][0], found[-1])
        inside["arguments"] = [{**a, "expression": node} for a, node in zip(tree["arguments"], found, strict=True)]
    may_be = (
        (kind == "COLUMN_REF" and tree["column_names"][-1].casefold() in floats)
        or (kind == "CAST" and str(tree["type_expr"].get("type_name")).startswith(("DOUBLE", "FLOAT", "REAL")))
        or (kind == "FUNCTION" and name in _number_functions())
    )
    return _filled(_select(_parsed(_FINITE))[0][0], inside) if may_be and not bare else inside


def _filled(template: Any, node: dict[str, Any]) -> Any:
    """The expression of a template (or a part of it) with `node` in place of the column `_x`."""
    if isinstance(template, list):
        return [_filled(child, node) for child in template]
    if not isinstance(template, dict):
        return template
    return node if template.get("column_names") == ["_x"] else {key: _filled(child, node) for key, child in template.items()}


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


def _aggregates() -> frozenset[str]:
    """DuckDB's functions over many rows."""
    return _functions("function_type IN ('aggregate', 'window')")


def _number_functions() -> frozenset[str]:
    """Functions that may return a non-finite number, including macros."""
    return AGGREGATE_OF_LIST | _functions("return_type IN ('DOUBLE', 'FLOAT') OR function_type = 'macro'")


@lru_cache(maxsize=2)
def _functions(where: str) -> frozenset[str]:
    with sql_engine() as database:
        rows = database.execute(f"SELECT function_name FROM duckdb_functions() WHERE {where}").fetchall()  # noqa: S608 - text of ours
    return frozenset(name for (name,) in rows)


@lru_cache(maxsize=256)
def _parsed(sql: str) -> dict[str, Any]:
    """DuckDB's syntax tree of `SELECT (sql)`; nothing is run."""
    with sql_engine() as database:
        [(tree,)] = database.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({sql})"]).fetchall()
    return json.loads(tree)  # type: ignore[no-any-return]  # an object, as DuckDB writes it


def _select(parsed: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The select list, and all other parts of the statements."""
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
