"""Monitoring and retraining intervals of a drafted loop, from the rate of rows in its file."""

from typing import NamedTuple

import pyarrow as pa

WINDOWS = (1, 7, 30, 90, 180)
ENOUGH_ROWS, MIN_ROWS, MAX_MINIMUM = 150, 10, 500
"""Lengths of a monitoring window in days; the rows that it should hold, and the range of `minimum_rows`."""
_DAY_US, _UNITS = 86_400_000_000, (("day", 1), ("week", 7), ("year", 365))


class Pace(NamedTuple):
    """Monitoring and retraining intervals of a loop, the length of a window (0s: unknown), and the assumption behind them."""

    assumed: str
    every: str
    monitor: str
    retrain: str


def pace(moments: pa.ChunkedArray | None, columns: int) -> Pace:
    """Propose window, trigger and cooldown for a loop of so many features, from the moments [N] of the decisions (None: unknown).

    A window is the shortest of WINDOWS that holds enough rows to judge drift, at the rate of the newer half of the file; its
    `minimum_rows` is half of what it should hold. The longest time between retrainings is 1.5 times the file's span.
    """
    drifted = min(2, 1 + columns // 2)
    if moments is None:
        assumed = "The file does not say how many rows come when: a window of a week with 100 rows is assumed. Correct it."
        return Pace(assumed, "0s", 'every="7d", minimum_rows=100', f'every="90d", drift={drifted}, decay=0.1, cooldown="14d"')
    at = moments.cast(pa.int64()).drop_null().to_numpy()
    span = max(int(at.max() - at.min()), 1) / _DAY_US
    newer = int((at > at.max() - span * _DAY_US / 2).sum())
    a_day = newer / (span / 2)
    days = next((d for d in WINDOWS if a_day * d >= ENOUGH_ROWS), WINDOWS[-1])
    least = max(MIN_ROWS, min(MAX_MINIMUM, int(a_day * days / 2)))
    again = max(3 * days, min(90, int(span / 2)))
    return Pace(
        f"By the newer half of the file {_rate(a_day)} come: a window of {days}d holds about {a_day * days:,.0f} rows.",
        f"{days}d",
        f'every="{days}d", minimum_rows={least}',
        f'every="{again}d", drift={drifted}, decay=0.1, cooldown="{2 * days}d"',
    )


def _rate(a_day: float) -> str:
    return next(
        (f"{a_day * days:,.0f} rows a {unit}" for unit, days in _UNITS if a_day * days >= 5), f"{a_day * 365:,.1f} rows a year"
    )
