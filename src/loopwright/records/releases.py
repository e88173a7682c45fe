"""The release record: which packages serve a loop, with what share, since when, by whom, why."""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from loopwright.records.entries import Record

HEURISTIC = "heuristic"
"""What a release names in place of a package to serve the loop's rule."""


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One package in service: its role and its share of the traffic. Of a `heuristic` the model is not loaded: its rule answers."""

    package: str
    role: Literal["champion", "heuristic"]
    share: float


class BadPackage(Record, frozen=True, kw_only=True):
    """A package that killed or hung workers, or whose model failed again and again: it is not released unless a person insists."""

    kind: ClassVar[str] = "bad-package"
    loop: str
    package: str
    cause: Literal["crash", "hang", "failures"]
    detail: str
    since: datetime


class ReleaseState(Record, frozen=True, kw_only=True):
    """Who serves. A change is a compare-and-swap on `generation`, in one transaction with the entry that holds this record.

    With a fleet, a row is answered by the package that `segments` names for its value (as text) of the request column
    `fleet`; null and every value that is not named there are answered by the arms. All of it is one record, so that
    going back, for one segment or for the whole fleet, is one step.
    """

    kind: ClassVar[str] = "release"
    loop: str
    generation: int
    arms: list[Arm]
    strategy: Literal["direct"]
    action: Literal["release", "rollback"]
    since: datetime
    by: str
    why: str
    fleet: str = ""
    segments: dict[str, str] = {}
    request: str = ""
    """The idempotency key of the change: the caller's, or one made for it."""
    arguments: dict[str, str | bool] = {}
    """The arguments that came with the key."""
    despite: list[str] = []
    """The checks that the package had failed, where a person released it all the same."""

    @property
    def champion(self) -> Arm:
        """The arm whose answers count: the package in service, or the heuristic alone."""
        return next(arm for arm in self.arms if arm.role in ("champion", "heuristic"))

    @property
    def keeps_rule(self) -> bool:
        """Whether a person put the heuristic into service: no turn replaces it, another release does."""
        return self.action == "release" and self.arguments.get("package") == HEURISTIC

    @property
    def packages(self) -> list[str]:
        """Every package in service, the loop's own first."""
        return list(dict.fromkeys([*(arm.package for arm in self.arms), *self.segments.values()]))

    def package_of(self, segment: str | None) -> str:
        """The package that answers the rows of a segment: its own, or the global one."""
        own = None if segment is None else self.segments.get(segment)
        return own or self.champion.package


class Unchanged(Record, frozen=True, kw_only=True):
    """A keyed request that changed nothing, because what it asked for was in service at `generation`; stored under its key."""

    kind: ClassVar[str] = "release-unchanged"
    loop: str
    request: str
    arguments: dict[str, str | bool] = {}
    generation: int
