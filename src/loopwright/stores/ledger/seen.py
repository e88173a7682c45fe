"""The newest ledger entry that a home has seen: detects that the ledger is gone, or was replaced by an older one.

After each commit the newest entry is noted in `home/ledger.json`. The note never goes back: a ledger that lacks the entry, or has
another in its place, leaves it unchanged, until an operator restores the ledger or removes the note.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from loopwright.base.files import replace_file


class SeenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The newest entry that was seen: its number, and its chain."""

    sequence: int
    chain: str


class SeenLedger:
    """The note of one home; without a `path` nothing is noted. Safe to share among threads.

    `chain_of` returns the chain of an entry by its number, None if the ledger does not have it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.chain_of: Callable[[int], str | None] = lambda _number: None
        self.stands = True
        """Whether the ledger goes on from the mark; else the mark is left alone."""
        self._local = threading.local()

    def mark(self) -> SeenEntry | None:
        """The noted entry; None without a note, or if it cannot be read."""
        if self.path is None:
            return None
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=SeenEntry)
        except (OSError, msgspec.DecodeError):
            return None

    def had_ledger(self) -> bool:
        """Whether this home had a ledger: it has the note or, from versions that made none, packages or release files."""
        if self.path is None:
            return False
        made = ("packages/" + "[0-9a-f]" * 64, "served/*.json")
        return self.path.exists() or any(True for pattern in made for _ in self.path.parent.glob(pattern))

    def behind(self) -> str:
        """Why this is not the ledger that was seen: an older one, or another. "" where it is."""
        mark = self.mark()
        chain = self.chain_of(mark.sequence) if mark is not None else ""
        if mark is None or chain == mark.chain:
            return ""
        what = "lacks entry" if chain is None else "is another than that with entry"
        return (
            f"the ledger {what} {mark.sequence:,}, which this home has seen: restore the newer one, "
            "or remove ledger.json from home to go on with this one"
        )

    def begin(self) -> None:
        """A transaction of this thread begins."""
        self._local.appended = None

    def append(self, sequence: int, chain: str) -> None:
        """An entry was written in the transaction of this thread."""
        self._local.appended = SeenEntry(sequence=sequence, chain=chain)

    def commit(self) -> None:
        """The transaction of this thread is committed."""
        mark: SeenEntry | None = getattr(self._local, "appended", None)
        if self.path is None or mark is None or not self.stands:
            return
        before = self.mark()
        if before is not None and before.sequence >= mark.sequence:
            return
        with suppress(OSError):  # a full disk: the next one notes it
            replace_file(self.path, msgspec.json.encode(mark), durable=False)
