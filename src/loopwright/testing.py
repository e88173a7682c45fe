"""For a user's own tests: the feature values of a row, in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwright.develop.feature_values import FeatureValues, row_values
from loopwright.develop.features import trace
from loopwright.loop import load_loop
from loopwright.records.declarations import Loop


def features_of(loop: Loop | str | Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Feature -> value for one row of request and context columns, computed by the loop's own features function.

    Values are those that the function returns: null is None, NaN is NaN. Missing columns are null where the contract
    allows it (context columns always), and may be omitted where no feature uses them.

        from loopwright.testing import features_of

        def test_speed():
            assert features_of("loops/arrivals", {"distance": 60.0, "minutes": 120.0})["speed"] == 0.5

    Args:
        loop: a Loop, or the path of a loop file or of its folder.
        row: values as one writes them: moments as datetime or ISO 8601 text, arrays as nested lists or NumPy arrays.

    Raises DeclarationInvalid for features that cannot be traced, and for a row with unknown, missing or wrong columns, naming each.
    """
    declared = loop if isinstance(loop, Loop) else load_loop(loop)
    values = FeatureValues(trace(declared.features, declared.columns))
    return values.of_rows([row_values(declared.columns, row, values.graph.columns)])[0]
