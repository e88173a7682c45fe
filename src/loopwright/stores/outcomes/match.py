"""Which outcome belongs to which decision: the one rule of training examples, monitoring, accounts and `trace`.

A decision's outcome is what names its prediction; else what is stated of its unit with the event time of its request; else the first
outcome of its unit that became known after the decision and within `wait`, where that has no such request of its own.

Statements are never overwritten. Those of one outcome are what names one prediction, what is stated of one unit and event time, and what
became known of a unit, within `wait`, before it was asked again: the one that became known last counts (then the one received last),
and one without a label takes back what stood. An outcome known at the very moment of a decision belongs to an earlier one whose wait is
open, if there is one.
"""

from datetime import datetime, timedelta
from typing import Any

from loopwright.base.clock import microseconds
from loopwright.records.declarations import Outcome, duration
from loopwright.tasks.label import absent_sql

_NEWEST = "arg_max({truth: truth, known: known, received: received, place: place}, (known, received, id))"


def match(database: Any, outcome: Outcome, as_of: datetime) -> None:
    """Create the table `matched`: `row`, `truth`, `known`, `place`, `named`, `early`, `mature` of every row of the table `decided`.

    Tables: `decided` (row, id, unit, us, event), `moment` (unit, us, event: these decisions and others of their units), `statement`
    (place, prediction, unit, event, known, received, id, truth). Times are microseconds; `us` is when the decision was taken, `event`
    the event time of the request, or of the outcome. `truth`, `known` and `place` are null where nothing is known; `named` is `known` of
    a statement that names the prediction. `early`: all that is known of the unit was known before its first decision. `mature`: the
    wait is over at `as_of`; then a decision without an outcome has the label `outcome.absent`, if there is one, known since then.
    """
    us, now = duration(outcome.wait) // timedelta(microseconds=1), microseconds(as_of)
    absent = absent_sql(outcome)
    database.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE matched AS
        WITH by_id AS (
            SELECT prediction, {_NEWEST} AS newest FROM statement WHERE prediction <> '' GROUP BY prediction
        ), event AS (
            SELECT unit, event, min(known) AS first, {_NEWEST} AS newest, arg_max(id, (known, received, id)) AS id
            FROM statement WHERE prediction = '' AND unit <> '' GROUP BY unit, event, CASE WHEN event IS NULL THEN place END
        ), moments AS (
            SELECT DISTINCT unit, us FROM moment WHERE unit IN (SELECT unit FROM event)
        ), paired AS (
            SELECT event.*, asked.us AS asked, true AS is_paired
            FROM event JOIN (SELECT DISTINCT unit, us, event FROM moment) asked USING (unit, event)
        ), open AS (
            SELECT event.*, moments.us AS asked
            FROM (FROM event ANTI JOIN moment USING (unit, event)) event
            ASOF LEFT JOIN moments ON event.unit = moments.unit AND event.first > moments.us
        ), assigned AS (
            FROM paired UNION ALL BY NAME
            SELECT open.* EXCLUDE (asked), CASE WHEN first <= asked + {us} THEN asked ELSE moments.us END AS asked, false AS is_paired,
                   asked IS NULL AND moments.us IS NULL AND newest.truth IS NOT NULL AS is_early
            FROM open LEFT JOIN moments ON open.unit = moments.unit AND open.first = moments.us
        ), standing AS (
            FROM (
                SELECT unit, asked, min(first) FILTER (NOT is_paired) AS first,
                       arg_max(newest, (newest.known, newest.received, id)) AS newest
                FROM assigned WHERE asked IS NOT NULL GROUP BY unit, asked
            ) WHERE newest.truth IS NOT NULL
        ), before AS (
            SELECT unit, min(us) AS us FROM moments WHERE unit IN (SELECT unit FROM assigned WHERE is_early) GROUP BY unit
        ), later AS (
            SELECT decided.row, CASE WHEN later.first <= decided.us + {us} THEN later.newest END AS newest
            FROM decided ASOF JOIN (FROM standing WHERE first IS NOT NULL) later
              ON decided.unit = later.unit AND decided.us < later.asked
        ), every AS (
            SELECT decided.row, decided.us, by_id.newest.known AS named, coalesce(by_id.newest, own.newest, later.newest) AS newest,
                   before.us IS NOT NULL AS early
            FROM decided
            LEFT JOIN by_id ON decided.id = by_id.prediction AND by_id.newest.truth IS NOT NULL
            LEFT JOIN standing own ON decided.unit = own.unit AND decided.us = own.asked
            LEFT JOIN later ON decided.row = later.row
            LEFT JOIN before ON decided.unit = before.unit AND decided.us = before.us
        )
        SELECT row, us + {us} <= {now} AS mature, newest IS NULL AND mature AND {absent} IS NOT NULL AS nothing,
               CASE WHEN nothing THEN {absent} ELSE newest.truth END AS truth, CASE WHEN nothing THEN us + {us} ELSE newest.known END AS known,
               newest.place AS place, named, early AND newest IS NULL AND NOT nothing AS early
        FROM every
        """  # noqa: S608 - text of ours, and a whole number
    )
