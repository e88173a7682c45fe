"""Metrics of every task, with intervals. One implementation, used by development, gates, monitoring and reports.

table      every metric by name; how each is computed is in the file of its task
answered   what was answered on rows: score, label, values; and what it is worth
detail     which labels are taken for which; what other thresholds bring
choice     many models on the same rows: which of them are surely better, and what the best of them will be elsewhere
estimate   one value, intervals, paired differences; `resample` and `nonnegative` make the intervals
"""

from loopwright.tasks.metrics.answered import aligned as aligned
from loopwright.tasks.metrics.answered import answered as answered
from loopwright.tasks.metrics.answered import kinds as kinds
from loopwright.tasks.metrics.answered import money as money
from loopwright.tasks.metrics.choice import FAMILY_WISE as FAMILY_WISE
from loopwright.tasks.metrics.choice import Contest as Contest
from loopwright.tasks.metrics.choice import contest as contest
from loopwright.tasks.metrics.choice import pooled as pooled
from loopwright.tasks.metrics.detail import confusion as confusion
from loopwright.tasks.metrics.detail import reliability as reliability
from loopwright.tasks.metrics.detail import trade as trade
from loopwright.tasks.metrics.estimate import compute as compute
from loopwright.tasks.metrics.estimate import differences as differences
from loopwright.tasks.metrics.estimate import intervals as intervals
from loopwright.tasks.metrics.estimate import total as total
from loopwright.tasks.metrics.registry import GAPS as GAPS
from loopwright.tasks.metrics.registry import MEASURES as MEASURES
from loopwright.tasks.metrics.registry import METRICS as METRICS
from loopwright.tasks.metrics.registry import adjusts as adjusts
from loopwright.tasks.metrics.registry import decay as decay
from loopwright.tasks.metrics.registry import gap as gap
from loopwright.tasks.metrics.registry import known as known
from loopwright.tasks.metrics.registry import measured as measured
from loopwright.tasks.metrics.registry import metric as metric
from loopwright.tasks.metrics.registry import moves_with_labels as moves_with_labels
from loopwright.tasks.metrics.registry import of_rows as of_rows
from loopwright.tasks.metrics.registry import primary as primary
from loopwright.tasks.metrics.registry import problem as problem
from loopwright.tasks.metrics.registry import summary as summary
from loopwright.tasks.metrics.registry import unattainable as unattainable
from loopwright.tasks.metrics.registry import watched as watched
from loopwright.tasks.statistic import Slices as Slices
from loopwright.tasks.statistic import small_groups as small_groups
from loopwright.tasks.task import Answered as Answered
from loopwright.tasks.task import Metric as Metric
