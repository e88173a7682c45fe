"""loopwright takes a machine-learning system through its whole production life, again and again.

    scope -> data -> develop -> deploy -> monitor -> business -> scope ...

The public names below are needed by loop files and by clients of a server. They are loaded on first use: importing loopwright
loads nothing, and switches the telemetry of dependencies off.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loopwright.base import telemetry

telemetry.switch_off()  # here, since it must precede every import of onnxruntime

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loopwright.base.errors import LoopwrightError
    from loopwright.client import Client
    from loopwright.develop.onnx.estimators.network import TorchClassifier, TorchRegressor
    from loopwright.loop import load_loop
    from loopwright.records.declarations import (
        AB,
        Aggregate,
        Budget,
        Canary,
        Candidate,
        Column,
        Context,
        Fleet,
        Full,
        GroupSplit,
        Guard,
        Heuristic,
        Loop,
        Monitor,
        Objective,
        Outcome,
        Release,
        Retrain,
        Sampling,
        Scope,
        Shadow,
        Slice,
        StratifiedSplit,
        Table,
        TimeSplit,
        Value,
    )
    from loopwright.stores.home import Home

__all__ = [
    "AB", "Aggregate", "Budget", "Canary", "Candidate", "Client", "Column", "Context", "Fleet", "Full", "GroupSplit", "Guard", "Heuristic", "Home",
    "Loop", "LoopwrightError", "Monitor", "Objective", "Outcome", "Release", "Retrain", "Sampling", "Scope", "Shadow", "Slice",
    "StratifiedSplit", "Table", "TimeSplit", "TorchClassifier", "TorchRegressor", "Value", "load_loop",
]  # fmt: skip

_ELSEWHERE = {
    "Client": "loopwright.client",
    "Home": "loopwright.stores.home",
    "LoopwrightError": "loopwright.base.errors",
    "TorchClassifier": "loopwright.develop.onnx.estimators.network",
    "TorchRegressor": "loopwright.develop.onnx.estimators.network",
    "load_loop": "loopwright.loop",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'loopwright' has no attribute {name!r}")
    value = getattr(import_module(_ELSEWHERE.get(name, "loopwright.records.declarations")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
