"""Outcomes as they are posted, checked by the contract of the loop's outcome table."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

from loopwright.base.errors import FieldProblem, RequestInvalid
from loopwright.deploy.serving.decode import Decoder, parse
from loopwright.records.declarations import Table
from loopwright.records.prediction import OutcomeRow
from loopwright.stores.outcomes.contract import OutcomeContract


class CheckedOutcome(NamedTuple):
    """An outcome and its flags: `out_of_range:COLUMN`, `future`, `id_is_a_column` (it looks like a prediction's)."""

    row: OutcomeRow
    flags: list[str]


class OutcomeDecoder:
    """Decodes posted outcomes by their contract (see `OutcomeContract`).

    A word that is not a category of its column, and an integer out of range, are refused, like rows of a file that go to quarantine:
    they would silently make a negative label. Measurements out of range are kept and flagged.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._contract = OutcomeContract(table)
        self._decode = Decoder({**self._contract.own, **table.columns}, optional=self._contract.optional)
        judged = {name: column for name, column in table.columns.items() if name not in table.key}
        self._words = {name: frozenset(c.categories) for name, c in judged.items() if c.categories is not None}
        self._ranges = {
            name: (-inf if c.minimum is None else c.minimum, inf if c.maximum is None else c.maximum)
            for name, c in judged.items()
            if c.minimum is not None or c.maximum is not None
        }

    def __call__(self, body: bytes, *, received_at: int, provenance: str) -> list[CheckedOutcome]:
        """The outcomes of a body; `received_at` in microseconds. Raises as `Decoder`."""
        try:
            rows, single = self._decode(body)
        except RequestInvalid as error:
            raise RequestInvalid(self._hinted(error.problems, body), what="the outcome") from error
        problems: list[FieldProblem] = []
        accepted = []
        for i, row in enumerate(rows):
            prefix = "" if single else f"[{i}]."
            wrong = self._contract.problem(row)
            if found := [wrong] if wrong else self._strange(row):
                problems += [FieldProblem(prefix + field, reason) for field, reason in found]
                continue
            outcome = self._contract.row(row, received_at=received_at, provenance=provenance, place=i)
            accepted.append(CheckedOutcome(outcome, self._flags(row, outcome)))
        if problems:
            raise RequestInvalid(problems, what="the outcome")
        return accepted

    def _hinted(self, problems: list[FieldProblem], body: bytes) -> list[FieldProblem]:
        """The problems; where a prediction's id seems to be in a column of the table, with the field that it belongs into."""
        sent = parse(body)
        first = next((row for row in (sent if isinstance(sent, list) else [sent]) if isinstance(row, dict)), {})
        field, reason = problems[0]
        return [FieldProblem(field, reason + self._contract.hint(first.get("id"))), *problems[1:]]

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

    def _flags(self, row: Mapping[str, Any], outcome: OutcomeRow) -> list[str]:
        flags = [
            f"out_of_range:{name}"
            for name, (low, high) in self._ranges.items()
            if row.get(name) is not None and not low <= row[name] <= high
        ]
        flags += ["future"] if outcome.known_at > outcome.received_at else []
        named = any(name in row for name in self._contract.fields)
        return flags + (["id_is_a_column"] if not named and self._contract.hint(row.get("id")) else [])
