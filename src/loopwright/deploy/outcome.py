"""Outcomes as they are posted, checked by the contract of the loop's outcome table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from loopwright.deploy.decode import Decoder
from loopwright.deploy.predict import unit_of
from loopwright.records.declarations import Column, Table, duration
from loopwright.records.errors import FieldProblem, RequestInvalid
from loopwright.records.ids import digest, is_trace_id
from loopwright.records.predictions.record import OutcomeRow

KNOWN_AT = "known_at"
NAMES = ("id", "prediction", "prediction_id")
"""What the field with the prediction's id may be called: each of these that is no column of the table; the first is the one that is documented."""


class Accepted(NamedTuple):
    """An outcome and what is unusual about it: `out_of_range:COLUMN`, `new_category:COLUMN`, `future`."""

    row: OutcomeRow
    flags: list[str]


class OutcomeDecoder:
    """Decodes posted outcomes: the table's columns, matched by `id` (of the prediction; see `NAMES`) or by all key columns.

    `known_at` says when the truth became known; left out, it is the table's own column for that, else the moment of
    receipt. The event time may be left out. A table that itself has a column `known_at` keeps it.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._names = [name for name in NAMES if name not in table.columns]
        self.prediction = next(iter(self._names), "")
        envelope = {**dict.fromkeys(self._names, Column("string")), KNOWN_AT: Column("timestamp")}
        self._own = [name for name in envelope if name not in table.columns]
        columns = {**{name: envelope[name] for name in self._own}, **table.columns}
        self._decode = Decoder(columns, optional={*self._own, *table.key, table.event_time, table.known})
        self._delay = round(duration(table.known_after).total_seconds() * 1e6)

    def __call__(self, body: bytes, *, received_at: int, provenance: str) -> list[Accepted]:
        """The outcomes of a body; `received_at` in microseconds. Raises as `Decoder`."""
        rows, single = self._decode(body)
        problems: list[FieldProblem] = []
        accepted = []
        for i, row in enumerate(rows):
            prefix = "" if single else f"[{i}]."
            given = {name: row.pop(name) for name in self._names if name in row}
            prediction = next(iter(given.values()), "")
            if wrong := self._match_problem(row, given):
                problems.append(FieldProblem(prefix + wrong.field, wrong.reason))
                continue
            accepted.append(self._accept(row, prediction, received_at, provenance))
        if problems:
            raise RequestInvalid(problems, what="the outcome")
        return accepted

    def _match_problem(self, row: Mapping[str, Any], given: Mapping[str, str]) -> FieldProblem | None:
        for name, prediction in given.items():
            if not is_trace_id(prediction):
                return FieldProblem(name, "must be the 32 hexadecimal digits that came with the answer")
        if len(set(given.values())) > 1:
            return FieldProblem(" and ".join(given), "name different predictions")
        if given:
            return None
        missing = [name for name in self.table.key if name not in row]
        if not missing:
            return None
        if self.prediction:
            return FieldProblem(self.prediction, f"give the prediction's id, or the key: {', '.join(self.table.key)}")
        return FieldProblem(missing[0], "is missing")

    def _accept(self, row: dict[str, Any], prediction: str, received_at: int, provenance: str) -> Accepted:
        table = self.table
        known_at = row.pop(KNOWN_AT, None) if KNOWN_AT in self._own else None
        if known_at is None:
            known_at = row[table.known] + self._delay if row.get(table.known) is not None else received_at
        unit = unit_of(row, table.key) if all(name in row for name in table.key) else ""
        values = {name: value for name, value in row.items() if name not in table.key}
        flags = self._flags(values)
        if known_at > received_at:
            flags.append("future")
            provenance = f"{provenance}; known in the future"
        id = digest(msgspec.json.encode([prediction, unit, sorted(values.items())]))[:32]
        return Accepted(
            OutcomeRow(
                id=id,
                prediction=prediction,
                unit="" if prediction else unit,
                values=values,
                known_at=known_at,
                received_at=received_at,
                provenance=provenance,
            ),
            flags,
        )

    def _flags(self, values: Mapping[str, Any]) -> list[str]:
        flags = []
        for name, value in values.items():
            column = self.table.columns[name]
            low = -float("inf") if column.minimum is None else column.minimum
            high = float("inf") if column.maximum is None else column.maximum
            if column.type in ("float", "integer") and value is not None and not low <= value <= high:
                flags.append(f"out_of_range:{name}")
            if column.categories is not None and value is not None and value not in column.categories:
                flags.append(f"new_category:{name}")
        return flags
