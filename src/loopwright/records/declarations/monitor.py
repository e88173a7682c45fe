"""Stage monitor: windows, thresholds, and when to retrain."""

from loopwright.records.declarations.declaration import Declaration


class Monitor(Declaration, frozen=True, kw_only=True):
    """What is monitored.

    Attributes:
        every: Length of a window.
        false_alarms_per_year: How many alarms of drift a year without drift may give, over all columns and windows together; single windows
            may spend a tenth of that on decay as well.
        psi: Population stability index of a column from which it has drifted, where no training history tells what is usual.
        jensen_shannon: Jensen-Shannon distance that it must reach as well.
        minimum_rows: Minimum rows of a window; with fewer its state is "no data".

    Example:
        Monitor(every="1d", minimum_rows=200)
    """

    every: str = "7d"
    false_alarms_per_year: float = 1.0
    psi: float = 0.25
    jensen_shannon: float = 0.1
    minimum_rows: int = 500


class Retrain(Declaration, frozen=True, kw_only=True):
    """When to retrain: the first of `every`, `drift` and `decay` that applies, at most once per `cooldown`.

    Attributes:
        every: Age of the serving package from which it is retrained; None: not by age.
        drift: Number of drifted columns from which to retrain; None: not by drift.
        decay: By which share of the package's own evaluation `decay_metric` may get worse (0.05: a ROC AUC of 0.80 falls to 0.76, a
            mean absolute error of 30 rises to 31.5), surely in one window or over all windows since the release; None: not by decay.
        decay_metric: Metric of decay; empty: that of the task (ROC AUC, balanced accuracy, mean absolute error, Poisson deviance, NDCG
            of the first 10). A metric of yes and no that moves with the base rate is measured at that of the evaluation.
        cooldown: Least time between two retrainings.
        window: Length of the training history; None: all.

    Example:
        Retrain(every="30d", decay=0.05, cooldown="7d")
    """

    every: str | None = None
    drift: int | None = None
    decay: float | None = None
    decay_metric: str = ""
    cooldown: str = "7d"
    window: str | None = None
