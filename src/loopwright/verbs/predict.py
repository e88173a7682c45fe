"""The verb that predicts a file."""

from pathlib import Path
from typing import Unpack

from loopwright.base.progress import Progress
from loopwright.bulk import predict as predict_file
from loopwright.data.ingest.source_reader import FileOptions, Reading
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.bulk import Predicted
from loopwright.verbs.known_loop import known_loop


def predict(
    home: Home,
    loop: str,
    file: Path,
    *,
    out: Path,
    id: str = "",
    request_id: str = "",
    progress: Progress | None = None,
    **file_options: Unpack[FileOptions],
) -> Predicted:
    """Predict every row of a file with the serving package, log each prediction like a request, and write the answers to a file.

    The output lists a row that breaks the contract with the reason. The same file again logs nothing twice: it returns the logged
    answers, and an interrupted job continues.

    Args:
        loop: name of the loop.
        file: CSV, JSON Lines, Excel, Parquet or Arrow with the columns of a request; columns that the contract does not have are ignored.
        out: output file: .csv, .jsonl or .parquet, one line per row, in order.
        id: column with an id per row, like X-Request-Id; a row with a logged id gets the logged answer.
        request_id: a name for this job: under another name the same file is predicted and logged again.
    """
    known_loop(home, loop)
    reading = Reading.of(**file_options)
    return predict_file(home, loop, file, out, id_column=id, request_id=request_id, reading=reading, progress=progress)
