"""Number and newest time of a loop's predictions, without loading Arrow or Delta for a loop whose log is not in Delta yet."""

from datetime import UTC, datetime
from pathlib import Path

from loopwright.base.ids import check_name
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.segment import log_folder, segments_in, table_name

KIND = "predictions"


def summary(home: Home, loop: str) -> tuple[int, datetime | None]:
    """Number of a loop's logged predictions, and the time of the newest."""
    root, table = home.settings.lake_root, table_name(KIND, check_name(loop, "loop"))
    if "://" in root or (Path(root) / table / "_delta_log").exists():
        from loopwright.stores.prediction_log import read  # here: it loads Arrow

        return read.summary(home, loop)
    moments: dict[str, int] = {}
    for segment in segments_in(log_folder(home.path, loop) / KIND, KIND):
        for record in () if segment.foreign else segment.records:
            moments.setdefault(record.id, record.at)
    return len(moments), datetime.fromtimestamp(max(moments.values()) / 1e6, UTC) if moments else None
