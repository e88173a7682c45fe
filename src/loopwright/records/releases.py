"""The release record: the packages that serve a loop, their shares, since when, by whom and why."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from typing import ClassVar, Literal

import msgspec

from loopwright.records.declarations.stages import AnyStage
from loopwright.records.entries import Record

HEURISTIC = "heuristic"
"""Name that a release uses instead of a package to serve the loop's rule."""


CHAMPION = "champion"
"""The name of the arm that the others are compared with, and that going back leads to."""


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One package in service under a name (in answers, log and metrics), and its share of the units.

    For an arm with `heuristic` the model is not loaded: the package's rule answers.
    """

    package: str
    share: float = 1.0
    name: str = CHAMPION
    heuristic: bool = False


class Division:
    """Divides units (keys as text) between arms: the same unit gets the same arm in every process, by a keyed hash.

    The arms divide [0, 1) in their order by their shares, and the unit falls where its BLAKE2b (RFC 7693), keyed with
    `salt`, does. An arm keeps all its units when its share grows and no other's does; arms that grow at both ends of the
    list at the cost of one between them keep theirs too. A cryptographic hash, because others correlate assignments of
    different salts (Kohavi, Longbotham, Sommerfield & Henne 2009, Controlled experiments on the web, section 4.1).
    """

    def __init__(self, arms: Sequence[Arm], salt: str) -> None:
        self._keyed = blake2b(digest_size=8, key=salt.encode()[:64])
        self._ends, end = list[bytes](), 0.0
        for arm in arms[:-1]:  # the last one has the rest: shares add up to one but for the last bit
            end += arm.share
            place = math.ceil(end * 2**53) << 11  # of the hash 53 bits count, as many as a float holds
            self._ends.append(place.to_bytes(8) if place < 2**64 else b"\xff" * 9)

    def __call__(self, units: Sequence[str]) -> list[int]:
        """The number of each unit's arm."""
        copy, ends = self._keyed.copy, self._ends
        try:
            texts = [unit.encode() for unit in units]
        except UnicodeEncodeError:
            texts = [unit.encode("utf-8", "surrogatepass") for unit in units]
        found = []
        for text in texts:
            keyed = copy()
            keyed.update(text)
            found.append(bisect_right(ends, keyed.digest()))
        return found


class BadPackage(Record, frozen=True, kw_only=True):
    """A package that killed or hung workers, whose model failed repeatedly, or that was judged worse: it is not released again without `--force`."""

    kind: ClassVar[str] = "bad-package"
    loop: str
    package: str
    cause: Literal["crash", "hang", "failures", "judged"]
    detail: str
    since: datetime


class ReleaseState(Record, frozen=True, kw_only=True):
    """The release state of a loop. A change is a compare-and-swap on `generation`, in one transaction with the entry that holds this record.

    With a fleet, a row is answered by the package that `segments` names for its value (as text) of the request column
    `fleet`; null and every value that is not named there are answered by the arms. All of it is one record, so that
    going back, for one segment or for the whole fleet, is one step.
    """

    kind: ClassVar[str] = "release"
    loop: str
    generation: int
    arms: list[Arm]
    strategy: str
    """A name in `deploy.strategies`."""
    action: Literal["release", "advance", "rollback"]
    """`advance`: the next stage of a release's plan began."""
    since: datetime
    by: str
    why: str
    fleet: str = ""
    segments: dict[str, str] = {}
    request: str = ""
    """The idempotency key of the change: the caller's, or a generated one."""
    arguments: dict[str, str | bool] = {}
    """The arguments that came with the key."""
    despite: list[str] = []
    """The failed checks of a package that a person released anyway."""
    salt: str = ""
    """The hash key of `arm_for`: new in every release, unchanged while only shares of its arms change."""
    unit: str = ""
    """The request column whose value is the unit; the key where it is empty."""
    plan: list[AnyStage] = []
    """The stages of the release; empty where it was made at once."""
    stage: int = 0
    """The place of the current stage in `plan`; its length once the release is complete."""
    begun: datetime | None = None
    """When the first stage of the plan began."""
    former: Arm | None = None
    """What a plan replaces."""
    shadow: Arm | None = None
    """The package that answers logged requests again and is seen by no client; its share is that of the keys."""

    @property
    def champion(self) -> Arm:
        """The arm that the others are compared with: the package in service, or its heuristic alone."""
        return next(arm for arm in self.arms if arm.name == CHAMPION)

    def arm_for(self, unit: str) -> Arm:
        """The arm that answers a unit (a key as text): see `Division`."""
        return self.arms[Division(self.arms, self.salt)([unit])[0]]

    @property
    def under_way(self) -> AnyStage | None:
        """The current stage of the plan; None where there is none, or the release is complete."""
        return self.plan[self.stage] if self.stage < len(self.plan) else None

    @property
    def is_divided(self) -> bool:
        """Whether several arms share the units."""
        return len(self.arms) > 1

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
    """A request with an idempotency key that changed nothing, as its target already served at `generation`; stored under its key."""

    kind: ClassVar[str] = "release-unchanged"
    loop: str
    request: str
    arguments: dict[str, str | bool] = {}
    generation: int


class Blocker(msgspec.Struct, frozen=True, kw_only=True):
    """Why a release may not begin: the `name` of what stands against it, and a sentence."""

    name: str
    detail: str


class PendingRelease(Record, frozen=True, kw_only=True):
    """A release that passed its checks and waits until it may begin; upkeep begins it then. One of a loop waits at a time.

    `made_by` made the package by hand, "" for a retraining by upkeep; `strategy` is empty where it is as declared. `generation` is the
    release that served when it was asked for: once another one serves, this one is superseded.
    """

    kind: ClassVar[str] = "pending-release"
    case: str
    """Its id."""
    loop: str
    package: str
    opened: datetime
    expires: datetime
    why: str
    by: str
    made_by: str = ""
    strategy: str = ""
    generation: int = 0
    despite: bool = False
    state: Literal["waiting", "released", "superseded", "rejected", "expired", "refused"] = "waiting"
    waits_for: list[Blocker] = []
    detail: str = ""


class Approval(Record, frozen=True, kw_only=True):
    """What one of the scope's approvers said about a pending release: the last word of each counts."""

    kind: ClassVar[str] = "approval"
    case: str
    loop: str
    package: str
    answer: Literal["approve", "reject"]
    name: str
    why: str
    at: datetime
    request: str = ""
