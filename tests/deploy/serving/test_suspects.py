from pathlib import Path

import pytest

from loopwright.deploy.serving.suspects import STRIKES, Suspects, encoded, fingerprint, fingerprints


@pytest.fixture
def suspects(tmp_path: Path) -> Suspects:
    return Suspects.fresh(tmp_path / "inputs")


def test_strikes_are_seen_by_who_maps_the_same_file(suspects: Suspects, tmp_path: Path) -> None:
    worker = Suspects(tmp_path / "inputs")
    one, other = fingerprint(b"a" * 64, b"1"), fingerprint(b"a" * 64, b"2")
    assert not worker
    assert [suspects.strike(one), suspects.strike(one)] == [1, STRIKES]
    assert worker
    assert (worker.strikes(one), worker.strikes(other)) == (STRIKES, 0)
    assert fingerprint(b"b" * 64, b"1") != one  # of another package it is another input
    worker.close()


def test_a_suspect_that_is_answered_alone_is_acquitted_and_a_query_of_death_is_not(suspects: Suspects) -> None:
    suspects.strike(b"suspect!")
    suspects.acquit(b"suspect!")
    assert suspects.strikes(b"suspect!") == 0
    for _ in range(STRIKES):
        suspects.strike(b"deadly!!")
    suspects.acquit(b"deadly!!")
    suspects.acquit(b"nobody!!")
    assert suspects.strikes(b"deadly!!") == STRIKES


def test_of_too_many_suspects_those_with_fewer_strikes_go(suspects: Suspects) -> None:
    deadly = fingerprint(b"a" * 64, b"deadly")
    for _ in range(STRIKES):
        suspects.strike(deadly)
    for i in range(20_000):
        suspects.strike(fingerprint(b"a" * 64, b"%d" % i))
    assert suspects.strikes(deadly) == STRIKES
    assert suspects.strikes(fingerprint(b"a" * 64, b"19999")) == 1


def test_values_that_are_no_plain_data_have_no_fingerprints() -> None:
    assert len(fingerprints(b"a" * 64, encoded([("x", 1), ("x", None)]))) == 2
    for strange in (2**70, "\ud800", object()):
        assert fingerprints(b"a" * 64, encoded([("x", strange)])) == ()
