"""NumPy arrays of any shape and type, as a type, and a spread sample of their rows."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def spread_rows(rows: int, most: int) -> Array:
    """At most `most` indices, int64 [N], spread evenly over so many rows."""
    return np.unique(np.linspace(0, rows - 1, most).astype(np.int64)) if rows else np.empty(0, np.int64)
