"""The release record: which packages serve a loop, with what share, since when, by whom, why."""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from loopwright.records.ledger.record import Record


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One package in service: its role and its share of the traffic."""

    package: str
    role: Literal["champion"]
    share: float


class ReleaseState(Record, frozen=True, kw_only=True):
    """Who serves. A change is a compare-and-swap on `generation`, in one transaction with the entry that holds this record."""

    kind: ClassVar[str] = "release"
    loop: str
    generation: int
    arms: list[Arm]
    strategy: Literal["direct"]
    action: Literal["release", "rollback"]
    since: datetime
    by: str
    why: str
