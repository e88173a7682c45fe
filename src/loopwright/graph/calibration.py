"""The arithmetic of a calibration: in NumPy, and in the graph that serves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from loopwright.records.package import Calibration

SMALLEST = 1e-6
"""Scores nearer to 0 or 1 count as this near in the log odds of a calibration."""

TIE_BREAK = 1e-3
"""Share of the score itself in an isotonic calibration: scores that share a step stay in order, and none becomes 0 or 1."""


def calibrated(calibration: Calibration, score: Any, xp: Any = np, interpolate: Callable[..., Any] = np.interp) -> Any:
    """Calibrated scores [N], float64: an array of NumPy, or of the graph (`xp` is ndonnx then, with its `interpolate`)."""
    if not calibration.method:
        return score
    inside = xp.clip(score, SMALLEST, 1.0 - SMALLEST)
    if calibration.points:
        xs, ys = np.array(calibration.points, dtype=np.float64).T
        line = interpolate(xp.clip(score, float(xs[0]), float(xs[-1])), xs, ys)
        return line * (1.0 - TIE_BREAK) + inside * TIE_BREAK
    a, b, c = calibration.coefficients
    return 1.0 / (1.0 + xp.exp(-(xp.log(inside) * a - xp.log(1.0 - inside) * b + c)))
