"""Detection of numeric identifiers: a customer, an account, a place. Their size means nothing, so a model would memorise them.

A column is judged by its name and by its values. Names of identifiers are `customer_no`, `accountNumber`, `zip`, not those of
counts (`week_no`) or measurements (`heat_index`). Values of identifiers are whole numbers, many of them; whatever the name, also
values that repeat often, are spread evenly over their range, and each determine the value of another column that is not a monotone
function of their size: an account's branch, a postcode's town.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MANY, CERTAINLY_MANY, LARGE = 50, 100, 10_000
"""Numbers called like names are names from more than MANY different ones on; others from CERTAINLY_MANY, the largest at least LARGE."""

ROWS, COLUMNS = 50_000, 60
_UNEVEN, _ONE_VALUE, _CHANGES, _ORDERED = 0.15, 0.9, 0.2, 0.9

_ROW = re.compile(r"(^|_)(id|ids|key|uuid|guid|index|number|no|nr)$|^column_1$|^unnamed_0$", re.IGNORECASE)
_THINGS = (
    "account|client|customer|device|employee|invoice|member|merchant|order|passport|patient|policy|supplier|user|vehicle|vendor"
)
_NAME = re.compile(
    rf"(^|_)(id|ids|key|uuid|guid)$|_(no|nr|number)$|(^|_)({_THINGS})(id|no|nr|number|key|code)?$"
    r"|(^|_)(zip|zip_?code|post_?code|postal(_?code)?|plz|phone|telephone|mobile|fax|iban|bic|isbn|ean|upc|sku|barcode|ssn|vin)$"
)
_COUNTED = re.compile(
    r"(^|_)(attempt|chapter|day|episode|floor|grade|hour|lap|level|minute|month|page|quarter|round|stage|step|trial|version|visit|week|year)"
    r"_(no|nr|number)$"
)


def is_id(name: str) -> bool:
    """Whether a column's name looks like a row identifier."""
    return bool(_ROW.search(name))


def identifies(name: str, frame: pa.Table) -> str:
    """Why the numbers of a column of a table [N] name something and are no quantity; "" where they are one, or may be."""
    numbers = _whole(frame[name])
    if numbers is None:
        return ""
    distinct = np.unique(numbers)
    written = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    if _NAME.search(written) and not _COUNTED.search(written) and len(distinct) > MANY:
        return f"{len(distinct):,} different whole numbers, called like names of something"
    if len(distinct) < CERTAINLY_MANY or distinct[-1] < LARGE or len(numbers) < 2 * len(distinct) or not _even(distinct):
        return ""
    fixed = _fixed(name, frame.slice(0, ROWS))
    return f"{len(distinct):,} different whole numbers, each always with the same {fixed}" if fixed else ""


def _whole(values: pa.ChunkedArray) -> "np.ndarray[tuple[int], np.dtype[np.float64]] | None":
    """The non-negative integers of a column, without nulls; None if it holds other values."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return None
    numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
    whole = len(numbers) > 0 and np.isfinite(numbers).all() and numbers.min() >= 0 and (numbers == np.floor(numbers)).all()
    return numbers if whole else None


def _even(distinct: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> bool:
    """Whether numbers in order are spread evenly between the least and the largest (Kolmogorov's distance); amounts are not."""
    place = (distinct - distinct[0]) / (distinct[-1] - distinct[0])
    return bool(np.abs(place - np.linspace(0, 1, len(distinct))).max() <= _UNEVEN)


def _fixed(name: str, frame: pa.Table) -> str:
    """The first other column whose value each number determines, and that is not monotone in it; "" if there is none."""
    count = pc.count_distinct(frame[name]).as_py()
    others: list[str] = [n for n in frame.column_names if n != name and not pa.types.is_nested(frame[n].type)][:COLUMNS]
    seen = frame.group_by(name).aggregate([(n, "count_distinct") for n in others])
    for other in [n for n in others if pc.max(seen[f"{n}_count_distinct"]).as_py() == 1]:
        codes = pc.fill_null(frame[other].combine_chunks().dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        sizes = np.unique(codes, return_counts=True)[1]
        if len(sizes) < 2 or len(sizes) > count / 2 or sizes.max() > _ONE_VALUE * len(codes):
            continue
        first = np.unique(frame[name].cast(pa.float64(), safe=False).to_numpy(), return_index=True)[1]
        along = codes[first]
        if (np.diff(along) != 0).mean() >= _CHANGES and not _ordered(frame[other], first):
            return other
    return ""


def _ordered(values: pa.ChunkedArray, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> bool:
    """Whether the values of these rows [M] are numbers that grow, or fall, along them."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return False
    numbers = pc.fill_null(values.take(pa.array(rows)).cast(pa.float64(), safe=False), 0.0).to_numpy()
    ranks = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
    return abs(float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])) >= _ORDERED
