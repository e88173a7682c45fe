"""The traffic of the arms of a phase, counted in the log: how many rows, and which share of them was degraded, slow, flagged."""

from datetime import datetime
from typing import NamedTuple

from loopwright.deploy.phases import Phase, time_sql
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.read import between
from loopwright.stores.prediction_log.scan import UnitSample, committed
from loopwright.tasks.metrics.sequence import UnitSums

FALL_BACK = ("degraded", "query_of_death")
STRANGE = ("out_of_range", "new_category")

_NOTHING = UnitSums(0, 0, 0, 0, 0, 0)


class ArmRows(NamedTuple):
    """Rows of an arm in a phase, in its current stage, and those whose wait for an outcome is over."""

    rows: int = 0
    in_stage: int = 0
    waited: int = 0


class Sides(NamedTuple):
    """The same of the old package's arm and of the new one's."""

    old: ArmRows
    new: ArmRows

    def most(self, name: str) -> int:
        """Rows of both arms."""
        return int(getattr(self.old, name) + getattr(self.new, name))


def hits_sql(slow_us: float) -> dict[str, str]:
    """Which rows count in each share, as SQL; `slow_us` is the longest time that is not slow."""
    return {"degraded_share": _flagged(FALL_BACK), "slow_share": f"_latency_us > {slow_us}", "flagged_share": _flagged(STRANGE)}


def _flagged(kinds: tuple[str, ...]) -> str:
    lines = rf"(^|\n)({'|'.join(kinds)})(:|\n|$)"
    return f"len(_flags) > 0 AND regexp_matches(array_to_string(_flags, chr(10)), '{lines}')"


def arm_rows(home: Home, loop: str, phase: Phase, waited: datetime) -> Sides:
    """Count the rows of both arms; the wait is over for those before `waited`."""
    where, stage = between(phase.start, phase.ends[-1], phase.arms), time_sql(phase.states[-1].since)
    with committed(home, loop, columns=["_at", "_arm"], where=where) as (database, names):
        found = database.sql(
            f"""SELECT {phase.side_sql()} AS side, count(*), count(*) FILTER (_at >= {stage}), count(*) FILTER (_at < {time_sql(waited)})
                FROM log WHERE side IS NOT NULL GROUP BY side"""  # noqa: S608 - moments and names of arms, as text
        ).fetchall() if names else []  # fmt: skip
    rows = {side: ArmRows(*counts) for side, *counts in found}
    return Sides(rows.get(0, ArmRows()), rows.get(1, ArmRows()))


def shares(home: Home, loop: str, phase: Phase, sample: UnitSample, slow_us: float) -> dict[str, tuple[UnitSums, UnitSums]]:
    """The sums of each share over the units of a sample, of the old package's arm and of the new one's."""
    hits = hits_sql(slow_us)
    columns = ["_arm", "_flags", "_latency_us", *sample.columns]
    with committed(home, loop, columns=columns, where=between(phase.start, phase.ends[-1], phase.arms)) as (database, names):
        if not names:
            return dict.fromkeys(hits, (_NOTHING, _NOTHING))
        each = ", ".join(f"count_if({sql})::DOUBLE AS {name}" for name, sql in hits.items())
        sums = ", ".join(f"sum({name}), sum(rows * rows), sum({name} * rows), sum({name} * {name})" for name in hits)
        found = database.sql(
            f"""WITH unit AS (
                    SELECT {phase.side_sql()} AS side, {sample.hash_sql(names)} AS unit, count(*)::DOUBLE AS rows, {each}
                    FROM log WHERE {sample.where_sql(names)} AND side IS NOT NULL GROUP BY side, unit
                )
                SELECT side, sum(rows), count(*), {sums} FROM unit GROUP BY side"""  # noqa: S608 - SQL of ours
        ).fetchall()
    of = {side: (rows, units, numbers) for side, rows, units, *numbers in found}
    sides = []
    for which in (0, 1):
        rows, units, numbers = of.get(which, (0, 0, [0] * 4 * len(hits)))
        sides.append([UnitSums(rows, units, *numbers[4 * i : 4 * i + 4]) for i in range(len(hits))])
    return dict(zip(hits, zip(*sides, strict=True), strict=True))


def shown_by(home: Home, loop: str, phase: Phase, hit_sql: str, most: int) -> list[str]:
    """Ids of rows of the new package's arm that count in a share."""
    columns = ["_id", "_at", "_arm", "_flags", "_latency_us"]
    with committed(home, loop, columns=columns, where=between(phase.start, phase.ends[-1], phase.arms)) as (database, _):
        found = database.sql(
            f"SELECT _id FROM log WHERE ({phase.side_sql()}) = 1 AND {hit_sql} LIMIT {most}"  # noqa: S608 - SQL of ours
        ).fetchall()
    return [id for (id,) in found]
