"""Phases of a release's plan: stages whose rows are compared in the same way."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from loopwright.base.arrays import Array
from loopwright.deploy.strategies import rules_of
from loopwright.records.releases import ReleaseState
from loopwright.sql.engine import text


class Phase(NamedTuple):
    """Stages whose rows are judged together: the states in which they began, their ends, and where the rows of each arm are."""

    states: Sequence[ReleaseState]
    ends: Sequence[datetime]

    @property
    def start(self) -> datetime:
        """When it began."""
        return self.states[0].since

    @property
    def arms(self) -> list[str]:
        """The arms that are compared."""
        return sorted({arm for pair in self._pairs for arm in pair})

    @property
    def pair(self) -> tuple[str, str]:
        """The old and the new arm of the last stage."""
        return self._pairs[-1]

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """The old and the new arm of each stage."""
        rules = [rules_of(state.plan[state.stage]) for state in self.states]
        return [(of.old_arm([a.name for a in state.arms]), of.new_arm) for of, state in zip(rules, self.states, strict=True)]

    @property
    def due(self) -> float:
        """The share of the units of both arms that the new package is due, in the last stage."""
        shares = {arm.name: arm.share for arm in self.states[-1].arms}
        old, new = (shares.get(name, 0.0) for name in self._pairs[-1])
        return new / (old + new) if new else 0.0

    def side(self, at: Array, arm: Array) -> Array:
        """1 for a row of the new package's arm, 0 for one of the arm that it is compared with, -1 for any other [N]."""
        found = np.full(len(at), -1)
        for state, end, arms in zip(self.states, self.ends, self._pairs, strict=True):
            since, until = (np.datetime64(moment.replace(tzinfo=None), "us") for moment in (state.since, end))
            inside = (at >= since) & (at < until)
            for which, name in enumerate(arms):
                found[inside & (arm == name)] = which
        return found

    def side_sql(self) -> str:
        """`side` of a row of the log as SQL; null for -1."""
        cases = [
            f"WHEN _at >= {time_sql(state.since)} AND _at < {time_sql(end)} AND _arm = {text(name)} THEN {which}"
            for state, end, arms in zip(self.states, self.ends, self._pairs, strict=True)
            for which, name in enumerate(arms)
        ]
        return f"CASE {' '.join(cases)} END"


def phases(states: Sequence[ReleaseState], at: datetime) -> list[Phase]:
    """The states of a plan, those of one kind together."""
    ends = [*(state.since for state in states[1:]), at]
    found: list[tuple[str, list[ReleaseState], list[datetime]]] = []
    for state, end in zip(states, ends, strict=True):
        kind = rules_of(state.plan[state.stage]).new_arm
        if not found or found[-1][0] != kind:
            found.append((kind, [], []))
        found[-1][1].append(state)
        found[-1][2].append(end)
    return [Phase(of, until) for _, of, until in found]


def time_sql(moment: datetime) -> str:
    """A moment as SQL."""
    return f"TIMESTAMPTZ {text(moment.isoformat())}"
