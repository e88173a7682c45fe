"""Which comparison `leaderboard` shows."""

from pathlib import Path

import msgspec
import pytest
from tests.cli.test_terminal import text_of
from tests.console import sample
from tests.deploy.loops import LOOP, opened, package

from loopwright.base.errors import NotFound
from loopwright.deploy import releases
from loopwright.verbs.leaderboard import leaderboard


def test_leaderboard_of_a_retraining_is_shown_with_its_turn_and_the_larger_one_on_request(tmp_path: Path) -> None:
    full = sample.leaderboard()
    retrained = msgspec.structs.replace(
        full, turn="retraining", rows=[full.rows[0], full.rows[3]], verdict="lightgbm still wins"
    )
    with opened(tmp_path / "home") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        for board in (full, retrained):
            home.ledger.put(board, loop=LOOP)
        newest = leaderboard(home, LOOP)
        assert (newest.turn, len(newest.rows), newest.verdict, newest.larger) == ("retraining", 2, retrained.verdict, full.turn)
        shown = " ".join(text_of(newest).split())
        assert "turn retraining, as of" in shown
        assert f"turn {full.turn} compared more candidates: see --turn" in shown
        older = leaderboard(home, LOOP, turn=full.turn[:8])
        assert (older.turn, len(older.rows), older.larger) == (full.turn, 4, "")
        with pytest.raises(NotFound, match="no turn with a leaderboard 'nothing' - nearest: retraining"):
            leaderboard(home, LOOP, turn="nothing")
