"""Documents are tested objects: examples run, links lead somewhere, reference pages say what the code says."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from tests.waiting import PATIENCE_SECONDS, until

from loopwright.base.clock import RealClock
from loopwright.base.settings import SETTINGS, Settings
from loopwright.cli.main import build, table
from loopwright.records.examples import Examples
from loopwright.records.prediction import FLAGS
from loopwright.records.releases import ReleaseState
from loopwright.records.turns import Step
from loopwright.records.windows import Window
from loopwright.stores.home import Home

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRACED = "0af7651916cd43dd8448eb211c80319c"  # the prediction of the first hour
WALK = ROOT / "docs" / "first-hour.md"  # its console blocks are typed in, one after the other


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    return [(language, text) for language, text in BLOCK.findall(page.read_text()) if language in languages]


pages = pytest.mark.parametrize("page", PAGES, ids=named)


def test_reference_pages_are_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_commands_named_exist(page: Path) -> None:
    known = {verb.name for verb in table()}
    said = re.findall(r"(?:`|\$ |^    )loopwright(?: --?[\w-]+(?: [A-Z]+)?)* ([a-z]+)\b", page.read_text(), re.MULTILINE)
    assert set(said) <= known


@pages
def test_commands_have_the_arguments_and_options_that_pages_use(page: Path) -> None:
    """Those of the first hour are run (below); all others are read as the command line reads them."""
    for line in loopwright_lines(page):
        words = shlex.split(line)[1:]
        app: Any = build(table(), words)
        group = app.make_context("loopwright", list(words))
        name, command, rest = app.resolve_command(group, group._protected_args + group.args)
        command.make_context(name, rest, parent=group)


def loopwright_lines(page: Path) -> list[str]:
    """The commands in the blocks and indented lines of a page, without their comments."""
    text = re.sub(r"\\\n", " ", page.read_text())
    code = [block for _, block in BLOCK.findall(text)] + re.findall(r"^ {4}loopwright .*$", text, re.MULTILINE)
    found = re.findall(r"^(?: {4}|\$ )?(?:[A-Z_]+=\S+ )*(loopwright [a-z].*)$", "\n".join(code), re.MULTILINE)
    return [re.split(r"  #|\s{3,}", line)[0] for line in found]


@pages
def test_settings_named_exist(page: Path) -> None:
    known = {setting.env for setting in SETTINGS} | {"LOOPWRIGHT_FAILPOINTS", "LOOPWRIGHT_SOAK_SECONDS"}  # for tests only
    settings = set(re.findall(r"\bLOOPWRIGHT_[A-Z_]*[A-Z]\b", page.read_text())) if page.name != "CHANGELOG.md" else set()
    assert settings <= known


GUIDES = [p for p in PAGES if p.is_relative_to(ROOT / "docs") and p.parent.name != "decisions" and p.name != "index.md"]


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_guide_is_in_the_index(page: Path) -> None:
    assert f"({page.relative_to(ROOT / 'docs').as_posix()})" in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=named)
def test_decisions_are_listed_and_short(page: Path) -> None:
    assert f"({page.name})" in (page.parent / "README.md").read_text()
    assert len(page.read_text().splitlines()) <= 60


@pytest.mark.parametrize("page", [p for p in PAGES if p != WALK and blocks(p, "python")], ids=named)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    """All Python blocks of a page are one program, run in an empty folder with a home of its own."""
    program = tmp_path / "blocks.py"
    program.write_text("\n\n".join(text for _, text in blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def environment(folder: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LOOPWRIGHT_")}
    return {
        **clean,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
        "LOOPWRIGHT_HOME": str(folder / ".loopwright"),
        "LOOPWRIGHT_PORT": "0",
        "LOOPWRIGHT_CONTROL_PORT": "0",
    }


def test_readme_commands_are_those_of_the_first_hour() -> None:
    said = [line for _, text in blocks(ROOT / "README.md", "console") for line in commands(text)]
    walked = [line for _, text in blocks(WALK, "console") for line in commands(text)]
    assert [line for line in said if line not in walked] == ["make demo"]


def test_the_loop_of_the_readme_is_sound(tmp_path: Path) -> None:
    [(_, text)] = blocks(ROOT / "README.md", "python")
    (tmp_path / "loop.py").write_text(text)
    typed("loopwright check .", tmp_path, environment(tmp_path))


@pytest.mark.parametrize("ended", [None, timedelta(days=30)], ids=["as-it-stands", "data-ended-a-month-ago"])
def test_first_hour_runs_as_typed(tmp_path: Path, ended: timedelta | None) -> None:
    """Python blocks are run and lines that begin with `$ ` are typed, in order, in one folder; each must succeed.

    `loopwright serve` goes to the background until the end; its ports are those it chose. The page's file ends years ago, or is
    moved so that it ended a while ago.
    Where it stands as it is, the commands of all other pages that need no more than this home are typed after it.
    """
    first = "datetime(2024, 1, 1, tzinfo=UTC)"
    env = environment(tmp_path)
    server: subprocess.Popen[bytes] | None = None
    address = "localhost:8321"
    try:
        for i, (language, text) in enumerate(blocks(WALK, "python", "console")):
            if language == "python":
                if ended is not None:
                    assert text.count(first) == 1
                    text = text.replace(first, repr_of(datetime.now(UTC) - ended - timedelta(hours=8000)))
                (tmp_path / f"block{i}.py").write_text(text)
                typed(f"{sys.executable} -W error block{i}.py", tmp_path, env)
                continue
            for line in commands(text):
                if line.startswith("loopwright serve"):
                    with (tmp_path / "serve.log").open("wb") as log:
                        server = subprocess.Popen(
                            ["/bin/bash", "-c", f"exec {line}"], cwd=tmp_path, env=env, stdout=log, stderr=log
                        )
                    address = where(tmp_path, server)
                else:
                    typed(moved(line, ended).replace("localhost:8321", address), tmp_path, env)
    finally:
        if server is not None:
            server.terminate()
            server.wait(PATIENCE_SECONDS)
    with Home(Settings(home=tmp_path / ".loopwright", by="tests"), RealClock()) as home:
        turns = [e.record for e in home.ledger.find(Step, loop="churn", newest=False) if e.record.state == "done"]
        assert home.ledger.find(Examples, loop="churn", limit=1)[0].record.excluded == {"outcome pending": 1}
        package = home.ledger.find(ReleaseState, loop="churn", limit=1)[0].record.champion.package
    data, develop, deploy = ([s.summary for s in turns if s.stage == stage] for stage in ("data", "develop", "deploy"))
    assert [text.partition(" examples")[0] for text in data] == ["8,000"] * 3, "the wait of the one that was served is not over"
    assert all(text.startswith("nothing changed") for text in develop[1:])
    assert all(text.endswith("serves already") for text in deploy[1:])
    with Home(
        Settings(home=tmp_path / "replayed", by="tests"), RealClock()
    ) as home:  # where the page has drift and a retraining
        states = [e.record.state for e in home.ledger.find(Window, loop="churn", newest=False)]
        assert states[0] == "ok"
        assert "drift" in states
        assert [e.record.generation for e in home.ledger.find(ReleaseState, loop="churn", newest=False)] == [1, 2, 3]
    if ended is None:
        for line in shown():
            if line not in loopwright_lines(WALK):
                typed(line.replace("3fa91c", package[:12]), tmp_path, env)


OF_THE_DEMO = {
    "late-arrival": "churn", "examples/flights": "churn", "departures.parquet": "customers.csv", "departures.csv": "customers.csv",
    "landings.parquet": "customers.csv", "table:weather": "table:churn-requests", "weather.wind_speed": "churn-requests.support_calls",
    "weather.parquet": "customers.csv", "departures ": "churn-requests ", "departures$": "churn-requests", "orders": "churn-requests",
    "UA1545": "c00001", "catch late flights": "find them", "ID$": TRACED, "013c2f5e8b0011aa22bb33cc44dd55ee": TRACED,
}  # fmt: skip
"""What pages call by the demo's names, as the first hour calls it."""

NOT_TYPED = (
    "serve",
    "loopwright approve",
    "loopwright experiment",
    "loopwright reject",
    "demo",
    "init",
    "replay",
    "watermark",
    "bad.csv --mend",
    "flights-data",
    "--as-of",
    "tuesday",
    "-2024.csv",
)
"""Parts of commands that the first hour types itself, that need the demo's history, or files that no page makes."""


def shown() -> list[str]:
    """The commands of README and pages, in order, each once, that can be typed where the first hour ended."""
    found = dict.fromkeys(
        line for page in PAGES if page not in (WALK, ROOT / "CHANGELOG.md") for line in loopwright_lines(page)
    )
    found = {line: None for line in found if not any(part in line for part in NOT_TYPED)}
    for old, new in OF_THE_DEMO.items():
        found = {re.sub(old, new, line): None for line in found}
    return list(found)


def moved(line: str, ended: timedelta | None) -> str:
    """A command with its days moved as the page's file is."""
    if ended is None:
        return line
    by = datetime.now(UTC) - ended - timedelta(hours=8000) - datetime(2024, 1, 1, tzinfo=UTC)
    return re.sub(r"2024-\d\d-\d\d", lambda day: (datetime.fromisoformat(day[0]) + by).date().isoformat(), line)


def repr_of(moment: datetime) -> str:
    """A moment as code of the page."""
    return f"datetime.fromisoformat({moment.replace(microsecond=0).isoformat()!r})"


def commands(text: str) -> Iterator[str]:
    """What is typed in a console block: lines after `$ `, with their continuation lines."""
    for match in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE):
        yield match[1]


def typed(line: str, folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(["/bin/bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def where(folder: Path, server: subprocess.Popen[bytes]) -> str:
    """Waits until the server says where it is."""
    file = folder / ".loopwright" / "serve.json"
    until(lambda: file.is_file() or server.poll() is not None)
    assert server.poll() is None, (folder / "serve.log").read_text()[-3000:]
    return str(msgspec.json.decode(file.read_bytes())["data"]).removeprefix("http://")


def test_every_guarantee_names_its_check() -> None:
    """Each promise has a row, numbered without a gap; what a row names as its check exists, or it says `not yet`."""
    text = (ROOT / "docs" / "reference" / "guarantees.md").read_text()
    promises = dict(re.findall(r"^\| (S\d+) \|(.*)\|$", text, re.MULTILINE))
    assert sorted(promises, key=lambda s: int(s[1:])) == [f"S{i}" for i in range(1, len(promises) + 1)]
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| # ", "| --- "))]
    assert [row for row in set(rows) if rows.count(row) > 1 and row.strip() not in ("promise", "rule")] == []
    assert [p for p, row in promises.items() if "`tests/" not in row and "not yet" not in row] == []
    missing = [
        f"{file}::{test}"
        for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
        if not (ROOT / file).is_file() or f"def {test}" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_the_guide_to_serving_names_every_flag() -> None:
    """The marks that the prediction path puts on answers, out of its source."""
    source = "".join(
        (ROOT / "src/loopwright/deploy/serving" / f"{name}.py").read_text()
        for name in ("predictor", "context", "segment_router", "engine")
    )
    flags = set(re.findall(r'"((?:missing|stale|late|out_of|new)_[a-z]+|degraded|query_of_death|undelivered)[:"]', source))
    flags |= {f"{kind}_context" for kind in re.findall(r'"(missing|stale|late)"', source)}
    [row] = re.findall(r"^\| `flags` \|(.*)$", (ROOT / "docs/guides/serving.md").read_text(), re.MULTILINE)
    assert flags == {flag.partition(":")[0] for flag in re.findall(r"`([^`]+)`", row)}
    assert flags == set(FLAGS)


PRODUCT_WORDS = (
    "loop turn scope objective table contract example context outcome proxy slice candidate package release arm champion shadow canary "
    "prediction drift decay guard value ledger lake"
)


def test_glossary_maps_every_product_word() -> None:
    """Each word has one row that says what the field calls it, what it means, and where to read on."""
    rows = re.findall(
        r"^\| ([a-z, ]+) \| ([^|]+) \| ([^|]+) \| .*\]\(.*\|$", (ROOT / "docs/reference/glossary.md").read_text(), re.MULTILINE
    )
    words = [word for row in rows for word in row[0].split(", ")]
    assert [word for word in words if words.count(word) > 1] == []
    assert [word for word in PRODUCT_WORDS.split() if word not in words] == []
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    [listed] = re.findall(r"\*(loop, turn, .*?)\*", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert listed.replace(",", "").split() == PRODUCT_WORDS.split()


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=named)
def test_pictures_are_readable_on_a_phone_and_in_the_dark(picture: Path) -> None:
    """At 390 pixels a picture of 420 is scaled by 0.93, so 13 px stay 12."""
    text = picture.read_text()
    drawing = ET.fromstring(text)
    assert int(drawing.attrib["width"]) <= 420
    assert drawing.attrib["viewBox"] == f"0 0 {drawing.attrib['width']} {drawing.attrib['height']}"
    assert len(drawing.attrib["aria-label"]) > 20
    assert min(map(int, re.findall(r"font-size: (\d+)px", text))) >= 13
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|href=|url\(|@import", text)
    assert any(f"{picture.name})" in page.read_text() for page in PAGES)


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    """What stands in backticks in the first column is a part of a message, a flag or a state in the source."""
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # literals that go on in the next line
    seen = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/guides/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [part for cell in seen for part in re.findall(r"`([^`]+)`", cell)]
    elsewhere = {"libgomp.so.1", "Retry-After", "flags"}  # the system loader's, a header, a field
    assert len(quoted) > 25
    assert [part for part in quoted if part not in source and part not in elsewhere] == []


def test_the_changelog_knows_this_version() -> None:
    import loopwright

    assert f"## [{loopwright.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
