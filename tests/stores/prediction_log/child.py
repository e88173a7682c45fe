"""A process of its own for the crash tests: appends to a log, or commits one. Says on standard output what it answered."""

import sys
from pathlib import Path

from tests.stores.prediction_log.samples import prediction

from loopwright.base import failpoints
from loopwright.base.settings import Settings
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter


def append(home: Path, batches: int) -> None:
    """Append batches of 1 to 3 records in small segments; print their ids once they are logged, as an answer would go out."""
    writer = LogWriter(log_folder(home, "loop"), "predictions", segment_bytes=1500)
    number = 0
    for batch in range(batches):
        records = [prediction(number + i) for i in range(batch % 3 + 1)]
        number += len(records)
        writer.append(records)
        sys.stdout.write("".join(f"{record.id}\n" for record in records))
        sys.stdout.flush()
        failpoints.hit("log.answered")
    writer.close()


def commit(home: Path) -> None:
    """Commit the loop's log."""
    from loopwright.stores.prediction_log.commit import commit as committed

    with Home(Settings(home=home)) as opened:
        committed(opened, "loop")


if __name__ == "__main__":
    if sys.argv[1] == "append":
        append(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        commit(Path(sys.argv[2]))
