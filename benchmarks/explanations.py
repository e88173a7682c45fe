"""Explanations beside shap and LightGBM's own, in turns, one thread each. Writes a section of RESULTS.md.

python -m benchmarks.explanations            # ten seconds
"""

import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import shap
from benchmarks.report import machine, put, table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from loopwright.base.arrays import Array
from loopwright.develop.fit import predict
from loopwright.develop.onnx.explanation import explanation
from loopwright.develop.output import Goal
from loopwright.graph.contributions import decode

FEATURES, TREES, LEAVES = 15, 200, 31
TARGET_MS = 3.0
ROUNDS = {1: 31, 32: 15, 1000: 5}
"""How often each is measured, by rows of a batch; the least counts, since the others only say who else was busy."""


def main() -> None:
    """Fit, explain, compare, write."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
    matrix[:, 10:] = rng.integers(0, 20, (20_000, 5))
    truth = matrix[:, 0] + matrix[:, 1] * matrix[:, 2] + (matrix[:, 10] % 3 == 0) + rng.normal(size=20_000) > 0
    estimator = lgb.LGBMClassifier(n_estimators=TREES, num_leaves=LEAVES, verbose=-1, n_jobs=1).fit(matrix, truth)
    names = [f"f{i}" for i in range(FEATURES)]
    answers = {"features": matrix[:50], "score": predict(estimator, matrix[:50], Goal()).score}
    files = explanation(estimator, Goal(), names, matrix, np.arange(len(matrix)), answers)
    data = files.files["explanation.msgpack"]
    started = time.perf_counter()
    decode(data)
    first = time.perf_counter() - started
    tracemalloc.start()
    explainer = decode(data)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    by_shap = shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent")
    own = explainer.contributions
    ways: dict[str, Callable[[Array], Any]] = {
        "loopwright (NumPy)": own,
        "LightGBM `pred_contrib` (C++)": lambda x: estimator.booster_.predict(x, pred_contrib=True, num_threads=1),
        "shap `TreeExplainer`": by_shap.shap_values,
    }
    apart = np.abs(own(matrix[:500])[:, 0] - np.asarray(by_shap.shap_values(matrix[:500]))).max()
    found = {rows: _least(ways, matrix[:rows], rounds) for rows, rounds in ROUNDS.items()}
    one = found[1]["loopwright (NumPy)"]
    lines = [
        [way, *(f"{found[rows][way] * 1e3:.2f} ({found[rows][way] / found[rows][next(iter(ways))]:.1f})" for rows in ROUNDS)]
        for way in ways
    ]
    text = (
        f"{machine(['lightgbm', 'shap', 'numpy'])}\nLightGBM with {TREES} trees of {LEAVES} leaves over {FEATURES} features; one thread; computing time, in turns, the least of "
        f"each. The largest difference to shap is {apart:.1g}. The file has {len(data) / 1e3:.0f} KB; made ready when first asked for it\n"
        f"holds {held / 2**20:.1f} MiB, after {first * 1e3:.0f} ms.\n\n"
        f"Target: at most {TARGET_MS:g} ms for one row: {one * 1e3:.2f} ms, {'met' if one * 1e3 <= TARGET_MS else '**not met**'}.\n\n"
        + table(["ms a row (times ours)", *(f"batch of {rows:,}" for rows in ROUNDS)], lines)
    )
    put("Explanations", text)
    print(text)


def _least(ways: dict[str, Callable[[Array], Any]], rows: Array, rounds: int) -> dict[str, float]:
    """Seconds of computing a row of each way, the least of some rounds in turns."""
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, explain in ways.items():
            started = time.process_time()
            explain(rows)
            found[name] = min(found[name], (time.process_time() - started) / len(rows))
    return found


if __name__ == "__main__":
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        main()
