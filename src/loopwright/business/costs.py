"""What the loop costs in compute, in USD: the machine time of its predictions and of its turns.

This is the marginal cost: seconds really worked, at the scope's price of a machine hour. A machine that waits for requests
costs the same hour; spread over more predictions or more loops that part goes away, so it is not counted here.
"""

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.turns import Step
from loopwright.stores.home import Home


def compute_cost(seconds: float, usd_per_hour: float) -> float:
    """USD of `seconds` of machine time."""
    return seconds / 3600 * usd_per_hour


def serving_seconds(predictions: pa.Table) -> float:
    """Machine time of the logged predictions [N rows with `_latency_us`], in seconds."""
    return float(pc.sum(predictions["_latency_us"]).as_py() or 0.0) / 1e6


def turn_seconds(home: Home, loop: str, *, start: datetime, end: datetime) -> float:
    """Machine time of the steps of turns that ended in [start, end), in seconds."""
    steps = home.ledger.find(Step, loop=loop, since=start, until=end)
    return sum(e.record.seconds for e in steps if e.record.state != "running" and e.at < end)
