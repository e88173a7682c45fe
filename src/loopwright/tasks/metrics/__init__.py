"""Metrics of every task, with bootstrap intervals. One implementation, used by development, gates, monitoring and reports.

table      every metric: its tasks, its direction, what it says
answered   what was answered on rows: score, label, values; and what it is worth
detail     which labels are taken for which; what other thresholds bring
rows       the metrics themselves, by task, under weights
bootstrap  one value, intervals, paired differences
"""

from loopwright.tasks.metrics.answered import Answered, aligned, answered, kinds, money
from loopwright.tasks.metrics.bootstrap import compute, differences, intervals
from loopwright.tasks.metrics.detail import confusion, trade
from loopwright.tasks.metrics.rows import GAP_ROWS, Slices
from loopwright.tasks.metrics.table import (
    GAPS,
    MEASURES,
    METRICS,
    Metric,
    gap,
    known,
    measured,
    metric,
    of_rows,
    primary,
    problem,
    rate_of,
    summary,
    watched,
)

__all__ = [
    "GAPS",
    "GAP_ROWS",
    "MEASURES",
    "METRICS",
    "Answered",
    "Metric",
    "Slices",
    "aligned",
    "answered",
    "compute",
    "confusion",
    "differences",
    "gap",
    "intervals",
    "kinds",
    "known",
    "measured",
    "metric",
    "money",
    "of_rows",
    "primary",
    "problem",
    "rate_of",
    "summary",
    "trade",
    "watched",
]
