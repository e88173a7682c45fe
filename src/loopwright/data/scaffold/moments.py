"""Features that a draft derives from times: hour and weekday of the decision, and hours until planned times."""

import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Table


def calendar(name: str, requests: Table, frame: pa.Table) -> dict[str, str]:
    """Hour and weekday of the time `name` ("": none) as features, in its zone, where the rows [N] have several values of them."""
    if not name:
        return {}
    zone = requests.columns[name].zone or "UTC"
    local = frame[name].cast(pa.timestamp("us", tz=zone))
    days = (pc.max(local).as_py() - pc.min(local).as_py()).days
    taken = {n.lower(): n for n in requests.columns}
    parts = (("hour", pc.hour(local), 2), ("weekday", pc.day_of_week(local), 14))
    return {
        part if part not in taken else f"{name}_{part}": f'local_time(f.{name}, "{zone}").{part}'
        for part, values, least in parts
        if days >= least and pc.count_distinct(values).as_py() > 1 and not _same(frame, taken.get(part), values)
    }


def _same(frame: pa.Table, column: str | None, values: pa.ChunkedArray) -> bool:
    """Whether a column of the file is equivalent to `values` [N], perhaps in words: a one-to-one mapping of values."""
    if column is None or column not in frame.column_names:
        return False
    both = pa.table({"a": frame[column], "b": values})
    return len({both.group_by(by).aggregate([]).num_rows for by in (["a"], ["b"], ["a", "b"])}) == 1


def hours_until(event_time: str, name: str, median: float) -> str:
    """A feature: hours from the decision to a later time, the median if that is missing."""
    passed = f"seconds_between(f.{event_time}, f.{name}) / 3600"
    return f'"hours_until_{name}": nde.fill_null({passed}, {float(f"{median:.4g}")!r}),'
