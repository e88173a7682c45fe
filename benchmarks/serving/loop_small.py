"""The same loop with a small model, 50 trees: the one of which `benchmarks.serving.many` makes thousands."""

import lightgbm as lgb
import msgspec
from benchmarks.serving.columns import MODEL
from benchmarks.serving.loop import loop as of_200

from loopwright import Candidate


def small() -> lgb.LGBMClassifier:
    """50 trees of 31 leaves."""
    return lgb.LGBMClassifier(**MODEL | {"n_estimators": 50})


loop = msgspec.structs.replace(of_200, name="small", candidates=[Candidate("lightgbm", small, phase=3, encoding="ordinal")])
