"""Notebook display of an answer (`_repr_html_`): tables of text, every value escaped, nothing loaded and no script."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loopwright.render.words import word


def text(value: Any) -> str:
    """A value in words, escaped."""
    return escape(word(value))


def heading(value: Any) -> str:
    """A heading."""
    return f"<h4>{text(value)}</h4>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; empty where it has no rows."""
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A heading and names with their values; empty without values."""
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in values.items())
    return f"{heading(title)}<table><tbody>{rows}</tbody></table>" if rows else ""


def page(file: str, otherwise: str) -> str:
    """A page of HTML in a frame of its own, which runs no script; `otherwise` as it is where the file is gone."""
    try:
        inside = Path(file).read_text(encoding="utf-8")
    except OSError:
        return f"<pre>{escape(otherwise)}</pre>"
    return f'<iframe sandbox srcdoc="{escape(inside)}" style="width: 100%; height: 45rem; border: 0"></iframe>'
