"""The leaderboard: measured candidates, weighted by the stakeholders' objectives; and the ladder, climbed only on evidence.

Score. Each objective gives a desirability in [0, 1] (after Derringer & Suich 1980): 0.5 exactly at its target, rising to
1 at the best possible value and falling to 0 away from it, so that a small difference stays a small difference whatever
its unit. A candidate's score is the mean of its desirabilities weighted by the objectives' weights. NaN gives 0.

Winner. The ladder is climbed from the heuristic upwards. A candidate of a higher rung takes over only if it pays: its
paired difference to the best so far in the primary metric (that of the weightiest objective that is computed from rows)
has a 95 % interval entirely on the better side, and the chance that any comparison of the whole climb looks like that where no candidate
is better is at most 5 % (`metrics.Contest.adjusted`); it does not surely lose money (the same for money per prediction, also against
the heuristic, where a value table is declared), and its weighted score is not lower. So ties go to the simpler candidate.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.text import interval, money, number, spaced
from loopwright.records.declarations import Objective, Task
from loopwright.records.evaluation import (
    LEAK_SUSPECTED,
    Comparison,
    Estimate,
    Evaluation,
    Leaderboard,
    LeaderboardRow,
    Suspect,
    moved,
)
from loopwright.tasks import metrics
from loopwright.tasks.metrics import FAMILY_WISE, Contest

MAX_NAMED = 10
"""Maximum number of suspects named in a verdict; the leaderboard's record has all."""


def primary_metric(objectives: Sequence[Objective], task: Task = "binary") -> str:
    """The metric of the objective with the highest weight that is computed from rows and is not a gap; else the task's own."""
    usable = [o for o in objectives if metrics.of_rows(o.metric) and o.metric.partition(":")[0] not in metrics.GAPS]
    return max(usable, key=lambda o: o.weight).metric if usable else metrics.primary(task)


def desirability(objective: Objective, value: float) -> float:
    """How far a measured value satisfies an objective, in [0, 1]; 0.5 at the target, monotone, NaN gives 0."""
    if math.isnan(value):
        return 0.0
    if objective.at_least is not None:
        target = objective.at_least
        best = metrics.metric(objective.metric).best
        if value < target:
            return 0.5 * max(value, 0.0) / target if target > 0 else 0.5 / (1 + target - value)
        if best is not None and best > target:
            return 0.5 + 0.5 * min(1.0, (value - target) / (best - target))
        return 1 - 0.5 * target / value if target > 0 else 1 - 0.5 / (1 + value - target)
    target = objective.at_most or 0.0
    if value <= target:
        return 1 - 0.5 * max(value, 0.0) / target if target > 0 else 1 - 0.5 / (1 + target - value)
    return 0.5 * target / value if target > 0 else 0.5 / (1 + value - target)


def weighted(measures: Mapping[str, float], objectives: Sequence[Objective], weights: Mapping[str, float]) -> float:
    """The weighted mean of desirabilities; 0 when all weights are 0."""
    total = sum(weights.get(o.name, o.weight) for o in objectives)
    gained = sum(weights.get(o.name, o.weight) * desirability(o, measures.get(o.metric, math.nan)) for o in objectives)
    return gained / total if total else 0.0


def rank(rows: Sequence[LeaderboardRow], objectives: Sequence[Objective], weights: Mapping[str, float]) -> list[LeaderboardRow]:
    """Rows with score, met objectives and rank filled in, best first; the simpler and then the quicker wins a tie."""
    scored = [
        msgspec.structs.replace(
            row,
            score=weighted(row.measures, objectives, weights),
            met={o.name: o.met(row.measures.get(o.metric, math.nan)) for o in objectives},
        )
        for row in rows
    ]
    scored.sort(key=lambda r: (-round(r.score, 9), r.phase, r.measures.get("latency_p50_us", math.inf)))
    return [msgspec.structs.replace(row, rank=i + 1) for i, row in enumerate(scored)]


def compared(metric: str, rows: Sequence[LeaderboardRow], quality: Contest, worth: Contest | None) -> list[Comparison]:
    """Every pair of candidates, the one of the lower phase as incumbent; those between phases share one chance of error."""
    pairs = [(new, old) if rows[new].phase >= rows[old].phase else (old, new) for new in range(len(rows)) for old in range(new)]
    between = [(new, old) for new, old in pairs if rows[new].phase > rows[old].phase]
    adjusted = dict(zip(between, quality.adjusted(between), strict=True))
    differences = quality.differences(pairs)
    money_differences = [None] * len(pairs) if worth is None else worth.differences(pairs)
    latency = [row.measures["latency_p50_us"] for row in rows]
    return [
        Comparison(
            challenger=rows[new].candidate,
            incumbent=rows[old].candidate,
            metric=metric,
            difference=difference,
            latency_difference_us=latency[new] - latency[old],
            money=earned,
            adjusted_p=adjusted.get((new, old)),
        )
        for (new, old), difference, earned in zip(pairs, differences, money_differences, strict=True)
    ]


def shrink(evaluations: Sequence[Evaluation], contests: Mapping[str, Contest]) -> list[Evaluation]:
    """Correct the candidates' figures for selection: the best of several similar candidates looks better than it is.

    `contests` are by metric, the primary one first.
    """
    among = next(iter(contests.values())).confidence_set()
    shrunk: list[dict[str, Estimate]] = [{} for _ in evaluations]
    for name, contest in contests.items():
        for i, by in zip(among, contest.winners_curse(among), strict=True):
            shrunk[i] |= {name: moved(evaluations[i].metrics[name], by)} if by else {}
    return [msgspec.structs.replace(each, shrunk=shrunk[i], may_be_best=i in among) for i, each in enumerate(evaluations)]


def pays(comparison: Comparison) -> bool:
    """Whether the challenger is better: its interval says so by itself, and the comparisons of the climb do together."""
    return _better(comparison) and (comparison.adjusted_p is None or comparison.adjusted_p <= FAMILY_WISE)


def _better(comparison: Comparison) -> bool:
    """Whether the interval of the difference is entirely on the challenger's better side, and there is enough to tell."""
    if comparison.difference.too_few:
        return False
    low, high = comparison.difference.low, comparison.difference.high
    return low > 0 if metrics.metric(comparison.metric).higher else high < 0


def losing(step: Comparison, rows: Sequence[LeaderboardRow], comparisons: Sequence[Comparison]) -> Comparison | None:
    """The comparison, with the incumbent or with the heuristic, in which the challenger surely makes less money."""
    against = (step.incumbent, min(rows, key=lambda r: r.phase).candidate)
    found = (c for c in comparisons if c.challenger == step.challenger and c.incumbent in against)
    return next((c for c in found if c.money is not None and c.money.high < 0 and not c.money.too_few), None)


def climb(rows: Sequence[LeaderboardRow], comparisons: Sequence[Comparison]) -> tuple[LeaderboardRow, list[Comparison]]:
    """The winner, and the comparison that decided at each rung, from the heuristic upwards. See the module."""
    ladder = sorted(rows, key=lambda r: r.phase)
    known = {(c.challenger, c.incumbent): c for c in comparisons}
    best, steps = ladder[0], []
    for row in ladder[1:]:
        comparison = known.get((row.candidate, best.candidate))
        if comparison is None:
            continue
        steps.append(comparison)
        if pays(comparison) and losing(comparison, rows, comparisons) is None and row.score >= best.score - 1e-12:
            best = row
    return best, steps


def verdict(rows: Sequence[LeaderboardRow], comparisons: Sequence[Comparison], left_out: Mapping[str, str] = {}) -> str:
    """The ladder in a sentence: gain and cost of each rung over the best below it; and the candidates left out, with the reason."""
    winner, steps = climb(rows, comparisons)
    by_name = {row.candidate: row for row in rows}
    parts = []
    for c in steps:
        d = c.difference
        name = spaced(c.metric)
        better = (d.low, d.high) if metrics.metric(c.metric).higher else (-d.high, -d.low)
        gain = interval(Estimate(abs(d.value), *better, d.n))
        if math.isnan(d.value):
            parts.append(f"{c.challenger} is not known to pay: no outcome tells its {name} from that of {c.incumbent}")
        elif _better(c) and not pays(c):
            parts.append(
                f"{c.challenger} does not pay: it beats {c.incumbent} by {gain} {name}, but among so many comparisons "
                f"one looks like that by chance in {c.adjusted_p:.0%}"
            )
        elif not pays(c):
            parts.append(f"{c.challenger} does not pay ({interval(d, sign=True)} {name} against {c.incumbent})")
        elif (loss := losing(c, rows, comparisons)) is not None and loss.money is not None:
            m = loss.money
            parts.append(
                f"{c.challenger} does not pay: it beats {c.incumbent} by {gain} {name}, but makes less money than "
                f"{loss.incumbent} ({money(m, sign=True)} a prediction)"
            )
        elif by_name[c.challenger].score < by_name[c.incumbent].score - 1e-12:
            parts.append(f"{c.challenger} beats {c.incumbent} by {gain} {name}, but the objectives as weighted like it less")
        else:
            more = c.latency_difference_us
            cost = (
                f"costs {more:.0f} µs more"
                if more >= 0.5
                else f"costs {-more:.0f} µs less"
                if more <= -0.5
                else "costs no time"
            )
            parts.append(f"{c.challenger} beats {c.incumbent} by {gain} {name} and {cost}")
    parts += [f"{name} is left out ({why})" for name, why in left_out.items()]
    unmet = [name for name, met in winner.met.items() if not met]
    end = f"{winner.candidate} wins" + (f", short of: {', '.join(unmet)}" if unmet else "")
    beaten = {winner.candidate, *(c.incumbent for c in comparisons if c.challenger == winner.candidate and pays(c))}
    return "; ".join(
        [*parts, end, *_reserves(winner, [r.candidate for r in rows if r.may_be_best and r.candidate not in beaten])]
    )


def _reserves(winner: LeaderboardRow, others: Sequence[str]) -> list[str]:
    """Which candidates may be as good, and how much of the winner's figures is luck."""
    parts = [f"it cannot be told from {' and '.join(others)}"] if winner.may_be_best and others else []
    return parts + [
        f"expect {number(shrunk.value)} {spaced(name)} of it rather than {number(winner.measures[name])}: the best of several looks better than it is"
        for name, shrunk in winner.shrunk.items()
        if number(shrunk.value) != number(winner.measures[name])
    ]


def doubt(winner: str, perfect: str, suspects: Sequence[Suspect]) -> str:
    """Start of the verdict when features leak the label or the winner is practically perfect; "" when all is plausible."""
    used = [f"{s.what} {s.why}" for s in suspects if s.used]
    unused = [f"{s.what} {s.why}" for s in suspects if not s.used]
    parts = [f"{winner}'s {perfect}"] if perfect else []
    parts += [*used[:MAX_NAMED], *([f"and {len(used) - MAX_NAMED} more"] if used[MAX_NAMED:] else [])]
    text = f"{LEAK_SUSPECTED}: {'; '.join(parts)}. " if parts else ""
    return text + (f"No feature uses what tells the label: {'; '.join(unused[:MAX_NAMED])}. " if unused else "")


def parse_weights(text: str, objectives: Sequence[Objective]) -> dict[str, float]:
    """Weights by objective from `name=number,name=number`; others keep their weights. Raises DeclarationInvalid."""
    weights = {o.name: o.weight for o in objectives}
    problems = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, number = (p.strip() for p in part.rpartition("="))
        if name not in weights:
            problems.append((part[:80], f"no objective {name[:80]!r}; there is {', '.join(weights)}"))
            continue
        try:
            weights[name] = float(number)
        except ValueError:
            problems.append((part[:80], f"{number!r} is not a number: write {name}=2"))
            continue
        if not 0 <= weights[name] < math.inf:
            problems.append((part[:80], "a weight is 0 or more"))
    if problems:
        raise DeclarationInvalid("weights", problems)
    return weights


def reweigh(board: Leaderboard, objectives: Sequence[Objective], weights: Mapping[str, float]) -> Leaderboard:
    """The same measurements with other weights: new ranks, winner and verdict."""
    rows = rank(board.rows, objectives, weights)
    return msgspec.structs.replace(
        board,
        rows=rows,
        weights=dict(weights),
        winner=climb(rows, board.comparisons)[0].package,
        verdict=board.doubt + verdict(rows, board.comparisons, board.left_out),
    )
