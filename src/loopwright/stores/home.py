"""Home: the settings, the clock, and the stores that hang on them; opened once, handed to every verb."""

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from loopwright.base.clock import Clock, RealClock
from loopwright.base.errors import Unavailable
from loopwright.base.settings import Settings, load_settings

if TYPE_CHECKING:
    from loopwright.stores.lake.tables import Lake
    from loopwright.stores.ledger.store import Ledger
    from loopwright.stores.online import Online
    from loopwright.stores.openlineage import OpenLineage
    from loopwright.stores.packages.store import Packages


PRIVATE_FOLDER, SHARED_FOLDER = 0o700, 0o770


class Home:
    """The folder of one installation. The stores open on first use, so that a worker loads only those that it needs."""

    def __init__(
        self,
        settings: Settings | None = None,
        clock: Clock | None = None,
        *,
        ledger_patience: float | None = None,
        on_made: Callable[[Path], None] | None = None,
    ) -> None:
        self.settings = settings or load_settings()
        self.clock: Clock = clock or RealClock()
        self.path = self.settings.home.absolute()
        self._ledger_patience = ledger_patience
        """Seconds for which a writer waits for its turn in the ledger, where not as long as the ledger waits by itself."""
        self._on_made = on_made

    @cached_property
    def by(self) -> str:
        """The name under which changes are recorded."""
        return self.settings.by or _user()

    @cached_property
    def ledger(self) -> "Ledger":
        """The ledger, with its schema migrated."""
        from loopwright.stores.ledger.store import Ledger  # here, and so below: a store is loaded where it is opened

        if self.settings.ledger_file is not None:
            self.make()
        seen, patience = self.path / "ledger.json", self._ledger_patience
        return Ledger(self.settings.ledger_url, clock=self.clock, by=self.by, seen=seen, patience=patience)

    @cached_property
    def lake(self) -> "Lake":
        """The Delta tables."""
        from loopwright.stores.lake.tables import Lake  # as above

        return Lake(self.settings.lake_root)

    @cached_property
    def packages(self) -> "Packages":
        """The packages."""
        from loopwright.stores.packages.store import Packages  # as above

        return Packages(self.path / "packages")

    @cached_property
    def online(self) -> "Online":
        """The online store of context for serving."""
        from loopwright.stores.online import open_online  # as above

        return open_online(self.settings.online, self.path / "online")

    @cached_property
    def openlineage(self) -> "OpenLineage":
        """The receiver of OpenLineage events: runs with their inputs and outputs."""
        from loopwright.stores.openlineage import of_settings  # as above

        return of_settings(self.settings, self.clock)

    def acting_as(self, by: str) -> "Home":
        """This home, acting under another name: the same stores, which are closed where they were opened."""
        return _Acting(self, by)

    @property
    def exists(self) -> bool:
        """Whether there is anything to look at: the folder, or a ledger elsewhere."""
        file = self.settings.ledger_file
        return self.path.is_dir() or file is None or file.is_file()

    def make(self) -> None:
        """Make the folder if it is not there, for its owner alone: predictions are personal data. Raises Unavailable."""
        if not self.path.is_dir():
            with _writing(self.path):
                self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            if self._on_made is not None:
                self._on_made(self.path)

    @contextmanager
    def private_files(self) -> Iterator[None]:
        """Files that this process and its children make inside are their owner's alone, or the group's where home is shared with it."""
        before = os.umask(0o007 if self._shared else 0o077)
        try:
            yield
        finally:
            os.umask(before)

    def folder(self, name: str) -> Path:
        """A folder of home, made if it is not there."""
        self.make()
        path = self.path / name
        with _writing(self.path):
            path.mkdir(mode=SHARED_FOLDER if self._shared else PRIVATE_FOLDER, parents=True, exist_ok=True)
        return path

    @property
    def _shared(self) -> bool:
        """Whether home is shared with its group."""
        return self.path.is_dir() and bool(self.path.stat().st_mode & 0o020)

    def close(self) -> None:
        """Close the open stores."""
        for name in ("ledger", "online"):
            store: Any = self.__dict__.pop(name, None)
            if store is not None:
                store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Acting(Home):
    """A home for one caller, over the stores of another."""

    def __init__(self, home: Home, by: str) -> None:
        self._home, self.by = home, by
        self.settings, self.clock, self.path = home.settings, home.clock, home.path

    @cached_property
    def ledger(self) -> "Ledger":
        view = copy(self._home.ledger)  # the connections are shared
        view.by = self.by
        return view

    @property
    def lake(self) -> "Lake":
        return self._home.lake

    @property
    def packages(self) -> "Packages":
        return self._home.packages

    @property
    def online(self) -> "Online":
        return self._home.online

    @property
    def openlineage(self) -> "OpenLineage":
        return self._home.openlineage

    def close(self) -> None:
        """No-op: the open stores belong to the other home."""


def _user() -> str:
    """The name of the user, or `uid N` if the system has none (an arbitrary user id in a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return f"uid {os.getuid()}"


@contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"home {str(home)!r} cannot be written: {error.strerror or error} (LOOPWRIGHT_HOME)") from error
