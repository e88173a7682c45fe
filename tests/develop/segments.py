"""Made-up flights of many carriers, of which some are different: examples with a known truth for fleets."""

from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.develop.flights import table

from loopwright.records.declarations import Candidate


def carriers(rows: int, count: int, different: int, seed: int = 0, least: float = 1.0, *, spread: bool = False) -> pa.Table:
    """`rows` examples of `count` carriers (S000, S001 ...), the first the most frequent by a factor of 1 / `least`.

    At the first `different` ones, or at so many `spread` over all, flights are late when they leave early: there the delay
    counts the other way round.
    """
    made, rng = table(rows, seed), np.random.default_rng(seed + 1)
    share = np.linspace(1.0, least, count)
    place = rng.choice(count, rows, p=share / share.sum())
    delay = made.column("delay").to_numpy()
    odd = place % (count // different) == 0 if spread else place < different
    logit = 0.12 * np.where(odd, 15 - delay, delay - 15)
    label = rng.random(rows) < 1 / (1 + np.exp(-logit))
    carrier = pa.array([f"S{i:03d}" for i in place])
    made = made.set_column(made.column_names.index("carrier"), "carrier", carrier)
    return made.set_column(made.column_names.index("_label"), "_label", pa.array(label))


def linear() -> Any:
    """A pipeline that is fitted in milliseconds."""
    return make_pipeline(StandardScaler(), LogisticRegression())


def trees() -> lgb.LGBMClassifier:
    """A few small trees."""
    return lgb.LGBMClassifier(
        n_estimators=15, num_leaves=5, min_child_samples=10, verbose=-1, n_jobs=1, deterministic=True, force_row_wise=True
    )


LINEAR = Candidate("linear", linear)
TREES = Candidate("trees", trees, encoding="ordinal")
