"""Outcomes as they are posted, checked by the contract of the loop's outcome table."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import msgspec

from loopwright.base.errors import FieldProblem, RequestInvalid
from loopwright.base.ids import digest, is_trace_id
from loopwright.deploy.serving.decode import Decoder
from loopwright.deploy.serving.predictor import unit_of
from loopwright.records.declarations import Column, Table, duration
from loopwright.records.prediction import OutcomeRow

KNOWN_AT = "known_at"


class CheckedOutcome(NamedTuple):
    """An outcome and what is unusual about it: `out_of_range:COLUMN`, `future`."""

    row: OutcomeRow
    flags: list[str]


class OutcomeDecoder:
    """Decodes posted outcomes: the table's columns, matched by `id` (of the prediction; see `Table.prediction_fields`) or by all key columns.

    A word that is none of its column's categories, and a whole number outside of its range, are refused, as they go to quarantine
    out of a file: a label made of them would be no. Measurements outside of their range are kept and flagged.

    `known_at` says when the truth became known; left out, it is the table's own column for that, else the moment of
    receipt. The event time may be left out. A table that itself has a column `known_at` keeps it.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._names = table.prediction_fields
        self.prediction = table.prediction_field
        envelope = {**dict.fromkeys(self._names, Column("string")), KNOWN_AT: Column("timestamp")}
        self._own = [name for name in envelope if name not in table.columns]
        columns = {**{name: envelope[name] for name in self._own}, **table.columns}
        self._decode = Decoder(columns, optional={*self._own, *table.key, table.event_time, table.known})
        judged = {name: column for name, column in table.columns.items() if name not in table.key}
        self._words = {name: frozenset(c.categories) for name, c in judged.items() if c.categories is not None}
        self._ranges = {
            name: (-inf if c.minimum is None else c.minimum, inf if c.maximum is None else c.maximum)
            for name, c in judged.items()
            if c.minimum is not None or c.maximum is not None
        }
        self._delay = round(duration(table.known_after).total_seconds() * 1e6)

    def __call__(self, body: bytes, *, received_at: int, provenance: str) -> list[CheckedOutcome]:
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
            if strange := self._strange(row):
                problems += [FieldProblem(prefix + field, reason) for field, reason in strange]
                continue
            accepted.append(self._accept(row, prediction, received_at, provenance))
        if problems:
            raise RequestInvalid(problems, what="the outcome")
        return accepted

    def _strange(self, row: Mapping[str, Any]) -> list[FieldProblem]:
        """Words and whole numbers that the contract does not have."""
        found = [
            FieldProblem(
                name, f"must be one of {', '.join(map(repr, self.table.columns[name].categories or []))}, not {row[name]!r}"
            )
            for name, words in self._words.items()
            if row.get(name) is not None and row[name] not in words
        ]
        found += [
            FieldProblem(name, f"must be from {low:g} to {high:g}, not {row[name]}")
            for name, (low, high) in self._ranges.items()
            if type(row.get(name)) is int and not low <= row[name] <= high
        ]
        return found

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

    def _accept(self, row: dict[str, Any], prediction: str, received_at: int, provenance: str) -> CheckedOutcome:
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
        return CheckedOutcome(
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
        return [
            f"out_of_range:{name}"
            for name, (low, high) in self._ranges.items()
            if values.get(name) is not None and not low <= values[name] <= high
        ]
