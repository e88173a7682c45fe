"""Text of any value, for terminals, pages and notebooks."""

import math
import re
from datetime import datetime
from typing import Any

import msgspec

from loopwright.base.printable import printable
from loopwright.base.text import ABSENT, interval, moment, number
from loopwright.records.evaluation import Estimate


def word(value: Any) -> str:
    """A value in words: times to the minute in UTC, numbers short, lists and fields one after another, absent values as a dash."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, Estimate):
        return interval(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {word(v)}" for k, v in value.items()) or ABSENT
    if isinstance(value, list | tuple | set):
        return ", ".join(word(v) for v in value) or ABSENT
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{n} {word(getattr(value, n))}" for n in value.__struct_fields__)
    return printable(str(value), newlines=True)


def cell(value: Any) -> str:
    """A value of data as it is: of a request, context or outcome column, a label, a truth; numbers to six digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(item)}" for name, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def limit(value: Any) -> str:
    """An end or the middle of a column's range: a number short, a time to the day, a text cut."""
    if value is None or isinstance(value, bool):
        return ABSENT
    if isinstance(value, str):
        return value[:10] if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.+]+", value) else value[:16]
    return number(value)
