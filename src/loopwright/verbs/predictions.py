"""The verb `predictions`."""

import re
from datetime import datetime

import msgspec

from loopwright.base.clock import moment_at
from loopwright.base.errors import OptionInvalid, UsageError
from loopwright.base.moment import moment_option
from loopwright.records.declarations import Loop
from loopwright.records.prediction import FLAGS
from loopwright.render.words import cell
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.search import PredictionFilter, search
from loopwright.verbs.history import releases_of
from loopwright.verbs.known_loop import known_loop

MAX_LISTED = 1000

_PLACE = re.compile(r"(\d{1,17})-([0-9a-f]{32})")


class LoggedPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the prediction log; `trace` shows the rest of it."""

    id: str
    at: datetime
    unit: str
    score: float
    label: bool | str | None
    flags: list[str]
    package: str
    arm: str
    segment: str | None
    latency_us: float

    @property
    def answer(self) -> str:
        """The answer in a word: yes or no, a class, or the number itself."""
        return cell(self.score if self.label is None else self.label)


class PredictionList(msgspec.Struct, frozen=True, kw_only=True):
    """The newest predictions that match `query`; `before` is the position where the next page begins, "" after the last."""

    loop: str
    query: dict[str, str]
    rows: list[LoggedPrediction]
    before: str


def predictions(
    home: Home,
    loop: str,
    *,
    key: str = "",
    since: str = "",
    until: str = "",
    flag: str = "",
    package: str = "",
    limit: int = 50,
    before: str = "",
) -> PredictionList:
    """Search the logged predictions of a loop, newest first, by key, time, flag and package.

    Args:
        loop: name of the loop.
        key: only this key, as sent (the values of a composite key joined by "|"; inside one it follows a backslash).
        since: only from this time on (ISO 8601, or "tuesday 09:00").
        until: only before this time.
        flag: only with this flag, or one of its kind (`out_of_range` for every column).
        package: only of this package (beginning of its digest).
        limit: maximum number, up to 1000.
        before: start of the next page: `before` of the previous answer.
    """
    declared = known_loop(home, loop)
    if not 1 <= limit <= MAX_LISTED:
        raise OptionInvalid("limit", limit, f"must be 1 to {MAX_LISTED:,}")
    kind, colon, column = flag.partition(":")
    flag = kind.strip().replace(" ", "_") + colon + column.strip()  # pages show it in words: `out of range: age`
    now = home.clock.now()
    begin = moment_option(since, now, "--since", ahead="nothing is predicted since then") if since else None
    end = moment_option(until, now, "--until") if until else None
    if begin is not None and end is not None and begin >= end:
        raise OptionInvalid("since", since, f"must be before --until {until}")
    place = _PLACE.fullmatch(before)
    if before and place is None:
        raise OptionInvalid("before", before, "must be what `before` of an answer says")
    after = None if place is None else (moment_at(int(place[1])), place[2])
    found = search(home, loop, PredictionFilter(key, begin, end, flag, package, after), limit + 1)
    if not found:  # without a result, report an invalid key, flag or package
        _check_key(declared, key)
        _check_flag(declared, flag)
        if package and not any(digest.startswith(package) for state in releases_of(home, loop) for digest in state.packages):
            home.packages.resolve(package)
    rows = [
        LoggedPrediction(**{n: r[f"_{n}"] for n in LoggedPrediction.__struct_fields__} | {"at": moment_at(r["_at"])})
        for r in found[:limit]
    ]
    last = found[limit - 1] if len(found) > limit else None
    query = {"key": key, "since": since, "until": until, "flag": flag, "package": package}
    return PredictionList(
        loop=loop,
        query={name: value for name, value in query.items() if value},
        rows=rows,
        before="" if last is None else f"{last['_at']}-{last['_id']}",
    )


def _check_key(loop: Loop, key: str) -> None:
    """Raise UsageError for a text that is no key of the loop: a column's name with it, or too few values."""
    columns = loop.requests.key
    if key and len(columns) > 1 and len(re.sub(r"\\.", "", key).split("|")) != len(columns):
        how = 'as they were sent, joined by "|", and "\\" before a "|" or "\\" inside one'
        raise UsageError(f"--key {key[:80]!r}: write the values of {', '.join(columns)} {how}")
    name = re.match(r"\w+(?=[=:]|$)", key)
    if name and (key[name.end() :].startswith("=") or name[0] in loop.requests.columns):
        there = "" if name[0] in loop.requests.columns else f"there is no column {name[0][:80]!r}; "
        raise UsageError(f"--key {key[:80]!r}: {there}write the value of {', '.join(columns)} alone, as it was sent")


def _check_flag(loop: Loop, flag: str) -> None:
    """Raise UsageError for an unknown flag, listing the known ones."""
    kind, _, name = flag.partition(":")
    if flag and kind not in FLAGS:
        raise UsageError(f"no flag {flag[:80]!r}: one of {', '.join(FLAGS)}")
    names = loop.tables if kind.endswith("_context") else loop.columns
    if name and name not in {*names, *(a.name for a in loop.aggregates)}:
        raise UsageError(f"no flag {flag[:80]!r}: {kind} is of {', '.join(names)}")
