r"""Text of unknown origin (file names, names in loop files, cells, errors of libraries) as text that a terminal or page may show.

A terminal obeys control characters: an escape sequence in a file name recolours, retitles or overwrites what is printed, and the
marks that reverse or hide text make one name look like another. They are shown as Python would write them: `\x1b`, `\u202e`.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

_SPACE = "Zs"
_WORD = r"[^\x00-\u024f\u2000-\u206f\ufeff\ufff0-\uffff\U000e0000-\U0010ffff]"
_JOINERS = re.compile(f"((?<={_WORD})[\u200c\u200d](?={_WORD}))")
"""Joiners between letters of scripts that write words with them (Persian, Hindi) or parts of an emoji; elsewhere they only hide."""


class _Escapes(dict[int, str]):
    """A table for `str.translate`: printable characters and spaces stay; others are escaped."""

    def __init__(self, escape: Callable[[str], str], *, unchanged: str = "") -> None:
        super().__init__((ord(c), c) for c in unchanged)
        self._escape = escape

    def __missing__(self, code: int) -> str:
        c = chr(code)
        return c if c.isprintable() or unicodedata.category(c) == _SPACE else self._escape(c)


def _python(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


_LINE = _Escapes(_python)
_LINES = _Escapes(_python, unchanged="\n\t")
_JSON = _Escapes(lambda c: json.dumps(c)[1:-1], unchanged="\n\t\r")


def printable(text: str, *, newlines: bool = False) -> str:
    """The text with control, formatting and unassigned characters and lone surrogates escaped; it stays one line.

    Joiners within words and emoji stay.

    Args:
        newlines: leave line feeds and tabs as they are: for whole messages, not for a name or a cell.
    """
    return text if text.isprintable() else _translated(text, _LINES if newlines else _LINE)


def printable_json(document: str) -> str:
    r"""The same JSON value in a text without such characters: within strings they become `\u009b`."""
    return document if document.isprintable() else _translated(document, _JSON)


def encoded(value: Any) -> bytes:
    r"""A value as JSON, for any text: lone surrogates, as in a file name that is not UTF-8, become `\\udcff`."""
    try:
        return msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:
        return msgspec.json.encode(_without_surrogates(msgspec.to_builtins(value, str_keys=True, enc_hook=str)))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list | tuple) else value


def _translated(text: str, table: _Escapes) -> str:
    parts = _JOINERS.split(text)  # every second one is a joiner
    parts[::2] = [part.translate(table) for part in parts[::2]]
    return "".join(parts)


def url_without_secrets(url: str) -> str:
    """The scheme, host and port of a URL: user, password, path and query may be secrets. A text that is no URL stays as it is."""
    try:
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "a URL that cannot be read"
    if "://" not in url:
        return url
    return place + ("/…" if parts.path.strip("/") or parts.query or parts.fragment else "")
