"""The verb that predicts a file."""

from pathlib import Path

from loopwright.records.home import Home
from loopwright.records.predictions.bulk import Predicted
from loopwright.records.progress import Progress
from loopwright.verbs.look import known_loop


def predict(
    home: Home, loop: str, file: Path, *, out: Path, id: str = "", request_id: str = "", progress: Progress | None = None
) -> Predicted:
    """Predict every row of a file by what serves the loop, log each as a request is logged, and write the answers to a file.

    A row that breaks the contract is in the answer file with the reason. The same file again logs nothing twice: it gets the answers that
    are in the log, and what was interrupted goes on.

    Args:
        loop: name of the loop.
        file: CSV, JSON Lines, Parquet or Arrow with the columns of a request; columns that the contract does not have are ignored.
        out: file to write: .csv, .jsonl or .parquet, a line for each row, in order.
        id: column of the file with an id for each row, as X-Request-Id is one; a row whose id is in the log gets that answer.
        request_id: a name for this job: under another name the same file is predicted and logged anew.
    """
    from loopwright.bulk import predict as predict_file  # here: commands that look must not load an engine

    known_loop(home, loop)
    return predict_file(home, loop, file, out, id_column=id, request_id=request_id, progress=progress)
