from pathlib import Path
from threading import Barrier, Thread

from tests.console import sample
from tests.deploy.loops import LOOP, declared, opened

from loopwright.console import pages
from loopwright.verbs.loop_page import LoopPage
from loopwright.verbs.status import Status


class Counting(sample.Sample):
    def __init__(self) -> None:
        self.made: list[str] = []

    def status(self, page: int = 1) -> Status:
        self.made.append(f"status {page}")
        return super().status(page)

    def loop(self, name: str) -> LoopPage:
        self.made.append(name)
        return super().loop(name)


def test_page_is_made_once_for_all_who_ask_until_the_ledger_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        source = Counting()
        cached = pages.Cached(source, home)
        cached_for_long = 3600.0
        pages.FRESH_SECONDS, before = cached_for_long, pages.FRESH_SECONDS
        try:
            barrier, found = Barrier(20), []

            def ask() -> None:
                barrier.wait()
                found.append(cached.loop(LOOP))

            threads = [Thread(target=ask) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (len(found), source.made) == (20, [LOOP])
            cached.status(1)
            cached.status(2)
            cached.status(1)
            assert source.made == [LOOP, "status 1", "status 2"]
            home.ledger.put(declared().record("loop.py"), loop=LOOP, key=LOOP)
            cached.loop(LOOP)
            assert source.made[-1] == LOOP
            pages.FRESH_SECONDS = -1.0
            cached.loop(LOOP)
            assert source.made[-2:] == [LOOP, LOOP], "what the ledger does not know may have changed"
        finally:
            pages.FRESH_SECONDS = before


def test_pages_held_are_bounded(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        cached = pages.Cached(Counting(), home)
        for page in range(3 * pages.MAX_HELD):
            cached.status(page)
        assert len(cached._held) == pages.MAX_HELD
