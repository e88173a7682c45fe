"""NumPy arrays of any shape and type, as a type."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
