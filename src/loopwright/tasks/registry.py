"""Every task by name."""

from loopwright.records.declarations import Task
from loopwright.tasks.anomaly import ANOMALY
from loopwright.tasks.binary import BINARY
from loopwright.tasks.count import COUNT
from loopwright.tasks.multiclass import MULTICLASS
from loopwright.tasks.ranking import RANKING
from loopwright.tasks.regression import REGRESSION
from loopwright.tasks.task import TaskType

TASKS: dict[Task, TaskType] = {task.name: task for task in (BINARY, MULTICLASS, REGRESSION, RANKING, ANOMALY, COUNT)}
