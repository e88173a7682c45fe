"""What a notebook shows of an answer (`_repr_html_`): tables of text, every value escaped, nothing loaded and no script."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

NEVER = "–"


def text(value: Any) -> str:
    """A value in words, escaped: times in UTC to the minute, numbers to four digits, absent values as a dash."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NEVER
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or NEVER
    return escape(str(value))


def heading(value: Any) -> str:
    """A heading."""
    return f"<h4>{text(value)}</h4>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; empty where it has no rows."""
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A heading and names with their values; empty where there are none."""
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in values.items())
    return f"{heading(title)}<table><tbody>{rows}</tbody></table>" if rows else ""


def page(file: str, otherwise: str) -> str:
    """A page of HTML in a frame of its own, which runs no script; `otherwise` as it is where the file is gone."""
    try:
        inside = Path(file).read_text(encoding="utf-8")
    except OSError:
        return f"<pre>{escape(otherwise)}</pre>"
    return f'<iframe sandbox srcdoc="{escape(inside)}" style="width: 100%; height: 45rem; border: 0"></iframe>'
