"""What an outcome may say and how it is logged: the same whether it is posted or comes in a file."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from loopwright.base.errors import FieldProblem
from loopwright.base.ids import digest, is_trace_id
from loopwright.records.declarations import Column, Table, duration
from loopwright.records.prediction import OutcomeRow, unit_text

KNOWN_AT = "known_at"
CONTENT, UNSTATED = 20, "0" * 12
"""So many digits of an outcome's id are of what it says; the others of the `known_at` that was stated, zeros where none was."""

NOT_AN_ID = "must be the 32 hexadecimal digits that came with the answer"


class OutcomeContract:
    """The outcomes of a table: its columns, matched by a prediction's id (see `Table.prediction_fields`) or by all key columns.

    `own` are the columns that the table does not have: the names of the prediction, and `known_at`, which says when the truth became
    known; left out, it is the table's own column for that, else the moment of receipt. `optional` may be left out: these, the key (of
    an outcome that names its prediction), the event time and when it became known. A table that itself has a column `known_at` keeps it.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.fields = table.prediction_fields
        own = {**dict.fromkeys(self.fields, Column("string")), KNOWN_AT: Column("timestamp")}
        self.own = {name: column for name, column in own.items() if name not in table.columns}
        self.optional = frozenset({*self.own, *table.key, table.event_time, table.known})
        self._delay = duration(table.known_after) // timedelta(microseconds=1)

    def problem(self, row: Mapping[str, Any]) -> FieldProblem | None:
        """Why a row names neither a prediction nor a complete key."""
        ids = {name: row[name] for name in self.fields if name in row}
        for name, id in ids.items():
            if not is_trace_id(id):
                return FieldProblem(name, NOT_AN_ID)
        if other := next((name for name in ids if ids[name] != next(iter(ids.values()))), ""):
            return FieldProblem(other, f"names another prediction than {next(iter(ids))}")
        if ids or all(row.get(name) not in (None, "") for name in self.table.key):
            return None
        why = f"give the prediction's id, or the key: {', '.join(self.table.key)}"
        return FieldProblem(self.fields[0], why + self.hint(row.get("id")))

    def hint(self, id: Any) -> str:
        """Hint at the field for the prediction id; empty unless the id was apparently sent as the table's own column `id`."""
        if "id" in self.own or not (isinstance(id, str) and is_trace_id(id)):
            return ""
        return f"; `id` is a column of the table: name the prediction in the field `{self.fields[0]}`"

    def row(self, row: Mapping[str, Any], *, received_at: int, provenance: str, place: int = 0) -> OutcomeRow:
        """A row without problems as it is logged; the same outcome has the same `id`, whichever way it comes. Times in microseconds.

        `place` is that of the row in its file or body: of two that contradict each other the later one is received later.
        """
        table = self.table
        prediction = next((row[name] for name in self.fields if name in row), "")
        unit = "" if prediction else unit_text([row[name] for name in table.key])
        values = {name: value for name, value in row.items() if name not in self.own and name not in table.key}
        stated = known_at = row.get(KNOWN_AT) if KNOWN_AT in self.own else None
        if known_at is None:
            known_at = row[table.known] + self._delay if row.get(table.known) is not None else received_at
        content = digest(msgspec.json.encode([prediction, unit, sorted(values.items())]))[:CONTENT]
        return OutcomeRow(
            id=content + (UNSTATED if stated is None else digest(str(stated).encode())[: len(UNSTATED)]),
            prediction=prediction,
            unit=unit,
            values=values,
            known_at=known_at,
            received_at=received_at + place,
            provenance=f"{provenance}; known in the future" if known_at > received_at else provenance,
        )
