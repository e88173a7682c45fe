import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from tests.deploy.loops import LOOP, NOW_US
from tests.waiting import PATIENCE_SECONDS

from loopwright.base.errors import Overloaded, RequestConflict
from loopwright.deploy.serving import idempotency
from loopwright.deploy.serving.idempotency import Claim, EarlierAnswer, IdempotencyStore
from loopwright.records.prediction import Prediction

ROOT = Path(__file__).parents[3]
A, B = b"a" * 16, b"b" * 16


def answer(number: int, size: int = 0) -> Prediction:
    return Prediction(
        id=f"{number:032x}",
        at=NOW_US + number,
        package="c" * 64,
        arm="champion",
        probability=1.0,
        request={"flight": f"UA{number}", "note": "x" * size},
        context={"wind": 1.5},
        context_age_s=3.5,
        score=0.25,
        label=True,
        flags=["degraded"],
        latency_us=1.0,
        unit=f"UA{number}",
        values=[0.1, 0.2],
    )


def given(found: Claim | EarlierAnswer) -> EarlierAnswer:
    assert isinstance(found, EarlierAnswer)
    return found


def mine(found: Claim | EarlierAnswer) -> Claim:
    assert isinstance(found, Claim)
    return found


def put(table: IdempotencyStore, id: str, asked: bytes, answers: list[Prediction], loop: str = LOOP) -> None:
    claim = mine(table.claim(loop, id, asked))
    table.keep(claim, answers)
    table.logged(claim)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "requests"


def test_the_same_request_gets_the_same_answer_and_another_is_a_conflict(path: Path) -> None:
    first, second = IdempotencyStore(path), IdempotencyStore(path)
    put(first, "x", A, [answer(1), answer(2)])
    assert given(first.claim(LOOP, "x", A)) == EarlierAnswer([answer(1), answer(2)], True, True)
    assert given(second.claim(LOOP, "x", A)) == EarlierAnswer([answer(1), answer(2)], True, False)
    with pytest.raises(RequestConflict, match="id x"):
        second.claim(LOOP, "x", B)
    assert isinstance(second.claim("another-loop", "x", B), Claim)
    first.close()
    second.close()
    assert given(IdempotencyStore(path).claim(LOOP, "x", A)).answers == [answer(1), answer(2)]  # whoever comes later


def test_what_was_not_answered_is_free_again(path: Path) -> None:
    table = IdempotencyStore(path)
    table.leave(mine(table.claim(LOOP, "x", A)))
    assert isinstance(table.claim(LOOP, "x", B), Claim)


def test_who_is_second_waits_for_the_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = IdempotencyStore(path), IdempotencyStore(path)
    claim = mine(first.claim(LOOP, "x", A))
    with pytest.raises(Overloaded, match="is being answered"):
        second.claim(LOOP, "x", A)
    with pytest.raises(RequestConflict):
        second.claim(LOOP, "x", B)

    monkeypatch.setattr(idempotency, "PATIENCE_SECONDS", PATIENCE_SECONDS)

    def soon() -> None:
        time.sleep(0.01)
        first.keep(claim, [answer(1)])
        first.logged(claim)

    thread = threading.Thread(target=soon)
    thread.start()
    assert given(second.claim(LOOP, "x", A)).answers == [answer(1)]
    thread.join()


DIES = """
import os, sys
from pathlib import Path
from loopwright.deploy.serving.idempotency import IdempotencyStore
from tests.deploy.serving.test_idempotency import A, answer
table = IdempotencyStore(Path(sys.argv[1]))
claim = table.claim("late-arrival", "x", A)
if sys.argv[2] == "kept":
    table.keep(claim, [answer(1)])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("state", ["claimed", "kept"])
def test_a_worker_that_died_over_it_holds_nothing_up(path: Path, state: str) -> None:
    assert subprocess.run([sys.executable, "-c", DIES, str(path), state], cwd=ROOT).returncode == -9
    found = IdempotencyStore(path).claim(LOOP, "x", A)
    if state == "kept":
        assert given(found) == EarlierAnswer([answer(1)], False, False)  # perhaps not in the log
    else:
        assert isinstance(found, Claim)


def test_only_what_this_process_answered_of_a_loop_is_forgotten(path: Path) -> None:
    first, second = IdempotencyStore(path), IdempotencyStore(path)
    put(first, "x", A, [answer(1)])
    put(second, "y", A, [answer(2)])
    put(first, "z", A, [answer(3)], "another-loop")
    first.forget(LOOP)
    assert isinstance(first.claim(LOOP, "x", A), Claim)
    assert given(first.claim(LOOP, "y", A)).answers == [answer(2)]
    assert given(first.claim("another-loop", "z", A)).answers == [answer(3)]


def test_the_oldest_are_forgotten_and_the_file_does_not_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "RING", 64 * 1024)
    table = IdempotencyStore(path)
    for i in range(8000):
        put(table, str(i), A, [answer(i)])
        if i == 100:
            size = path.stat().st_size
    assert path.stat().st_size == size
    assert given(table.claim(LOOP, "7999", A)).answers == [answer(7999)]
    assert isinstance(table.claim(LOOP, "0", A), Claim)
    kept = 0
    for i in range(7000, 8000):
        found = table.claim(LOOP, str(i), A)
        if isinstance(found, EarlierAnswer):
            assert found.answers == [answer(i)]
            kept += 1
        else:
            table.leave(found)
    assert kept > 900


def test_large_answers_are_packed_and_those_beyond_a_ring_are_not_kept(path: Path) -> None:
    table = IdempotencyStore(path)
    many = [answer(i, 100) for i in range(10_000)]
    put(table, "many", A, many)
    assert given(table.claim(LOOP, "many", A)).answers == many
    noise = random.Random(1).randbytes(idempotency.RING).hex()
    put(table, "noise", A, [msgspec.structs.replace(answer(1), request={"note": noise})])
    assert isinstance(table.claim(LOOP, "noise", A), Claim)


def test_damage_is_never_given_as_an_answer(path: Path) -> None:
    table = IdempotencyStore(path)
    put(table, "x", A, [answer(1)])
    place = path.read_bytes().index(b"UA1")
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"UB2")
    assert isinstance(table.claim(LOOP, "x", A), Claim)
    path.write_bytes(b"of another version")
    fresh = IdempotencyStore(path)
    put(fresh, "x", A, [answer(2)])
    assert given(fresh.claim(LOOP, "x", A)).answers == [answer(2)]


def test_without_a_file_it_remembers_for_itself(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    table = IdempotencyStore(tmp_path / "run" / "requests")
    put(table, "x", A, [answer(1)])
    assert given(table.claim(LOOP, "x", A)).answers == [answer(1)]
    table.close()


def test_many_at_once_answer_each_request_once(path: Path) -> None:
    """Eight threads over four tables ask for the same twenty requests: each is claimed once."""
    tables = [IdempotencyStore(path) for _ in range(4)]
    claimed: list[str] = []

    def ask(number: int) -> None:
        table, rng = tables[number % 4], random.Random(number)
        for i in rng.sample(range(20), 20):
            found = table.claim(LOOP, str(i), A)
            if isinstance(found, Claim):
                claimed.append(str(i))
                table.keep(found, [answer(i)])
                table.logged(found)
            else:
                assert found.answers == [answer(i)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(map(str, range(20)))
