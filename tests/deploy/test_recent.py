from pathlib import Path

import pytest
from tests.deploy.loops import NOW, NOW_US, Weather, flight, package

from loopwright.deploy.predict import Predictor
from loopwright.deploy.recent import Recent
from loopwright.records.clock import SimulatedClock
from loopwright.records.errors import RequestConflict
from loopwright.records.packages import Packages


def test_the_same_request_gets_the_same_answer_and_another_is_a_conflict(tmp_path: Path) -> None:
    predictor = Predictor(package(Packages(tmp_path)), Weather(), SimulatedClock(NOW))
    answers = predictor.answer([flight(i, pushed_back_at=NOW_US) for i in range(4)], ids=["a", "b", "c", "d"])
    recent = Recent(most=3)
    for i, answer in enumerate(answers):
        recent.keep(answer, asked=i)
    assert len(recent) == 3
    assert recent.find("a", 0) is None
    assert recent.find("b", 1) is answers[1]
    with pytest.raises(RequestConflict, match="id c"):
        recent.find("c", 99)
