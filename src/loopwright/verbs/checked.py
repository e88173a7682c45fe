"""The answer of `check` and `doctor`: what was looked at, and whether it is well."""

from typing import Any

import msgspec

from loopwright.records.declarations import Column


class CheckItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at: whether it is well, and what was seen or what to do. A warning is a doubt: well, if it is meant so.

    `checked` is false where it could not be looked at: then nothing is known, and it is neither well nor doubtful.
    """

    name: str
    ok: bool
    detail: str
    warning: bool = False
    checked: bool = True


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row in, features out: the columns that features use, and the features as the user's function gives them."""

    source: str
    columns: dict[str, Any]
    features: dict[str, Any]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `check` and `doctor`: `ok` only if every item is."""

    what: str
    ok: bool
    items: list[CheckItem]
    columns: dict[str, Column] = {}
    features: list[str] = []
    sample: list[SampleRow] = []
