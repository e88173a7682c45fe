"""The verb that predicts a file."""

from pathlib import Path

from loopwright.base.progress import Progress
from loopwright.bulk import predict as predict_file
from loopwright.data.ingest.opened import Reading
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
    encoding: str = "",
    sheet: str = "",
    no_header: bool = False,
    names: str = "",
    progress: Progress | None = None,
) -> Predicted:
    """Predict every row of a file by what serves the loop, log each as a request is logged, and write the answers to a file.

    A row that breaks the contract is in the answer file with the reason. The same file again logs nothing twice: it gets the answers that
    are in the log, and what was interrupted goes on.

    Args:
        loop: name of the loop.
        file: CSV, JSON Lines, Excel, Parquet or Arrow with the columns of a request; columns that the contract does not have are ignored.
        out: file to write: .csv, .jsonl or .parquet, a line for each row, in order.
        id: column of the file with an id for each row, as X-Request-Id is one; a row whose id is in the log gets that answer.
        request_id: a name for this job: under another name the same file is predicted and logged again.
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns become column_1, column_2 ...
        names: comma-separated column names, if the first line is a row of data.
    """
    known_loop(home, loop)
    reading = Reading.of(encoding, sheet, names, no_header=no_header)
    return predict_file(home, loop, file, out, id_column=id, request_id=request_id, reading=reading, progress=progress)
