import numpy as np
import pytest

from loopwright.base.arrays import spread_rows


@pytest.mark.parametrize(("rows", "most"), [(0, 5), (1, 5), (4, 5), (5, 5), (1000, 7)])
def test_spread_rows_are_distinct_ordered_and_reach_from_end_to_end(rows: int, most: int) -> None:
    found = spread_rows(rows, most)
    assert len(found) == min(rows, most)
    assert (np.diff(found) > 0).all()
    assert not rows or (found[0], found[-1]) == (0, rows - 1)
