"""The first turns of a loop drafted by `init`: a file whose newest part has one label only, and that ended long before going live."""

import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.journeys import synthetic

from loopwright.records.turns import Step
from loopwright.verbs.check import check
from loopwright.verbs.ingest import ingest
from loopwright.verbs.init import init
from loopwright.verbs.run import run

ROWS, HOUR, BEGIN = 1500, timedelta(hours=1), datetime(2024, 1, 1, tzinfo=UTC)


def written(file: Path) -> None:
    """Decisions every four hours; of the newest 300 every one came out positive."""
    draw = random.Random(3)
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["case", "decided_at", "priors", "age", "again"])
        for i in range(ROWS):
            priors = draw.choice([0, 0, 1, 2, 3, 5])
            again = i >= ROWS - 300 or draw.random() < 0.15 + 0.12 * priors
            rows.writerow([f"k{i:05}", (BEGIN + 4 * i * HOUR).isoformat(), priors, draw.randrange(18, 70), again])


def test_draft_whose_newest_part_has_one_label_is_trained_and_retrained_a_month_after_its_data_end(tmp_path: Path) -> None:
    written(tmp_path / "cases.csv")
    ended = BEGIN + 4 * ROWS * HOUR
    with synthetic.opened(tmp_path / "home", ended + timedelta(days=30)) as home:
        file, folder = str(tmp_path / "cases.csv"), tmp_path / "cases"
        init(home, folder, from_file=tmp_path / "cases.csv", label="again", time="decided_at", key="case")
        for table in ("cases-requests", "cases-outcomes"):
            ingest(home, table, [file], loop=str(folder))
        split = next(item for item in check(home, str(folder)).items if item.name == "split")
        assert (split.ok, split.warning) == (True, True)
        assert "294 examples, 294 of them positive: validation reaches back to" in split.detail
        first = run(home, str(folder), until="develop")
        late = (ended + timedelta(days=20)).isoformat()
        (tmp_path / "late.csv").write_text(f"case,decided_at,priors,age,again\nl1,{late},2,30,True\n")
        for table in ("cases-requests", "cases-outcomes"):
            ingest(home, table, [str(tmp_path / "late.csv")], loop=str(folder))
        again = run(home, str(folder), until="develop", refit=True, cause="schedule", fresh=True)
        assert again.winner != first.winner
        summaries = [
            e.record.summary
            for e in home.ledger.find(Step, newest=False)
            if (e.record.stage, e.record.state) == ("develop", "done")
        ]
    assert ["validation reaches back to" in summary for summary in summaries] == [True, True]
