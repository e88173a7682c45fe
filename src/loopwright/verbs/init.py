"""The verb `init`."""

from pathlib import Path
from typing import Unpack

import msgspec

from loopwright.base.progress import Progress, under_way
from loopwright.data.ingest.source_reader import FileOptions, Reading
from loopwright.data.scaffold.init import begin
from loopwright.stores.home import Home


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were written, and the next steps."""

    files: list[str]
    next_steps: list[str]
    notes: list[str] = []


def init(
    home: Home,
    directory: Path,
    *,
    from_file: Path | None = None,
    label: str = "",
    time: str = "",
    key: str = "",
    zone: str = "UTC",
    task: str = "",
    name: str = "",
    progress: Progress | None = None,
    **file_options: Unpack[FileOptions],
) -> Made:
    """Create a loop in a folder; infer its contract from a file.

    Args:
        directory: folder to create; it must not contain a loop.py.
        from_file: CSV, JSON Lines, Excel, Parquet or Arrow with one row per decision, or a folder or glob of such files.
        label: the column with the outcome: yes or no, one of several classes, or a number.
        time: the column with the decision time (default: a time without gaps, else the time of ingestion).
        key: the column that identifies a row, or several, comma-separated (default: one with unique values).
        zone: the zone of times without one, e.g. Europe/Paris.
        task: binary, multiclass or regression, if the label is ambiguous.
        name: name of the loop (default: the folder's name).
    """
    found = name or directory.absolute().name
    reading = Reading.of(**file_options)
    with under_way(progress, f"reading {from_file or directory} and drafting"):
        made = begin(
            directory, name=found, from_file=from_file, label=label, time=time, key=key, zone=zone, task=task, reading=reading
        )
    return Made(**made)
