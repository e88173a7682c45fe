"""The answer of `check` and `doctor`: checks and their results."""

from typing import Any

import msgspec

from loopwright.records.declarations import Column


class CheckItem(msgspec.Struct, frozen=True, kw_only=True):
    """One check: whether it passed, and its finding or the next step. A warning passes, but should be reviewed.

    `checked` is false if the check could not run: then it neither passed nor failed.
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
