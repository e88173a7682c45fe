"""The pages over the made-up year and over a real, empty home; and the pages in a real browser."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.test_terminal import CASE
from tests.console import sample
from tests.console.browser import browser, served
from tests.deploy.loops import LOOP, opened
from tests.waiting import PATIENCE_SECONDS

from loopwright.base.errors import Damaged, LedgerUnavailable
from loopwright.base.settings import Settings
from loopwright.console.app import PAGES, routes, routes_over
from loopwright.console.pages import home_page
from loopwright.records.evaluation import FleetBoard, SegmentModel
from loopwright.stores.home import Home
from loopwright.verbs.loop_page import LoopPage
from loopwright.verbs.loop_status import FleetStatus
from loopwright.verbs.predictions import PredictionList
from loopwright.verbs.status import Status
from loopwright.verbs.trace import Trace

EVIL = "<script>alert('x')</script>"


class Evil(sample.Sample):
    def status(self, page: int = 1) -> Status:
        whole = super().status()
        return msgspec.structs.replace(whole, loops=[msgspec.structs.replace(whole.loops[0], problem=EVIL)])

    def loop(self, name: str) -> LoopPage:
        page = sample.loop_page()
        alert = msgspec.structs.replace(page.alerts[0], title=EVIL)
        status = msgspec.structs.replace(page.status, problem=EVIL, open_alerts=[alert])
        return msgspec.structs.replace(page, status=status, profiles=[sample.profile(EVIL)])

    def trace(self, id: str) -> Trace:
        return sample.trace(carrier=EVIL, outcome=False)


class Flagged(sample.Sample):
    """Predictions with long flags."""

    def predictions(self, loop: str, query: Mapping[str, Any]) -> PredictionList:
        found = super().predictions(loop, query)
        flags = ["out_of_range:a_column_with_quite_a_long_name_of_forty", "new_category:" + "x" * 60, "degraded"]
        return msgspec.structs.replace(found, rows=[msgspec.structs.replace(r, flags=flags) for r in found.rows])


class Divided(sample.Sample):
    """A loop with a fleet: of 70 segments one is answered by its own package, and one never got one."""

    def loop(self, name: str) -> LoopPage:
        page = sample.loop_page()
        own = "5e" * 32
        models = [
            SegmentModel(
                turn="t",
                segment=f"S{i:02}",
                package="" if i == 1 else f"{i:02}" * 32,
                rows=5000 - i,
                judged=600,
                own=sample.NOTHING if i == 1 else sample.estimate(0.9, 0.02),
                whole=sample.NOTHING if i == 1 else sample.estimate(0.8, 0.02),
                difference=sample.NOTHING if i == 1 else sample.estimate(0.1, 0.02),
                why="only one kind of outcome" if i == 1 else "",
            )
            for i in range(70)
        ]
        fleet = FleetBoard(
            by="carrier",
            metric="average_precision",
            as_of=sample.START,
            segments=models,
            serving={"S69": own},
            gain=sample.estimate(0.01, 0.005),
            rest=40,
            verdict="1 of 70 segments is surely better",
        )
        serving = FleetStatus(by="carrier", serving={"S69": own}, judged=69, verdict=fleet.verdict)
        last = msgspec.structs.replace(page.releases[-1], fleet="carrier", segments={"S69": own})
        assert page.leaderboard is not None
        return msgspec.structs.replace(
            page,
            status=msgspec.structs.replace(page.status, fleet=serving),
            leaderboard=msgspec.structs.replace(page.leaderboard, fleet=fleet),
            releases=[*page.releases[:-1], last],
        )


class Broken(sample.Sample):
    def status(self, page: int = 1) -> Status:
        raise LedgerUnavailable("postgresql://user@secret-host/ledger does not answer")

    def loop(self, name: str) -> LoopPage:
        raise Damaged("/secret/path is damaged")


class Bare(sample.Sample):
    """A loop that was only declared: nothing trained, served, watched or accounted for."""

    def loop(self, name: str) -> LoopPage:
        page = sample.loop_page()
        status = msgspec.structs.replace(
            page.status,
            serving="",
            candidate="",
            since=None,
            packages_served=[],
            retrainings=[],
            open_alerts=[],
            last_prediction=None,
        )
        return LoopPage(
            status=status,
            objectives=page.objectives,
            leaderboard=None,
            releases=[],
            windows=[],
            quality=[],
            values=[],
            alerts=[],
        )

    def trace(self, id: str) -> Trace:
        bare = sample.trace(outcome=False)
        return msgspec.structs.replace(
            bare, context={}, context_age_s=None, features={}, heuristic=None, flags=[], files=[], release=None, commit=""
        )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served([*routes_over(sample.Sample())]) as found:
        yield found


def get(url: str) -> tuple[int, Any, bytes]:
    try:
        reply: HTTPResponse
        with urllib.request.urlopen(url, timeout=600) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


URLS = ["/", f"/loops/{sample.LOOP}", f"/predictions/{sample.ID}"]
LISTED = f"/loops/{sample.LOOP}/predictions"


@pytest.mark.parametrize("url", [*URLS, LISTED])
def test_a_page_and_its_json(address: str, url: str) -> None:
    status, headers, body = get(address + url)
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert b"<script>" not in body
    assert b"style=" not in body
    status, headers, body = get(address + (url if url != "/" else "/index") + ".json")
    assert status == 200
    assert headers["content-type"] == "application/json"
    values: dict[str, msgspec.Struct] = {"/": home_page(sample.Sample()), URLS[1]: sample.loop_page(), URLS[2]: sample.trace()}
    values[LISTED] = sample.Sample().predictions(sample.LOOP, {})
    assert body == msgspec.json.encode(values[url])


def test_pages_show_what_matters(address: str) -> None:
    home, loop, trace = (get(address + url)[2].decode() for url in URLS)
    for stage in ("scope", "data", "develop", "deploy", "monitor", "business"):
        assert f'href="/loops/late-arrival#{stage}"' in home
        assert f'id="{stage}"' in loop
    for word in ("DataOps", "ML engineering", "MLOps", "data science", "release engineering"):
        assert word in home
    for text in (
        sample.leaderboard().verdict,
        "wind_speed has drifted",
        "d04417fbd044",
        "charts/drift.svg",
        "earned over the heuristic",
    ):
        assert text in loop
    for text in (
        "17.3",
        "departures.parquet",
        "1d1d1d1d1d1d1d1d",
        "What each contributed to the log-odds, on top of -1.21",
        "1.734",
        "true positive",
        "+120 USD",
        "first release",
        "9fe09ee1b2c3",
        "missing",
    ):
        assert text in trace
    assert trace.index("What each contributed") < trace.index("Recomputed by")  # one-hot features are a long list


def test_leaderboard_marks_who_won_and_serves_and_shows_what_is_behind_the_numbers(address: str) -> None:
    page = re.sub(r"\s+", " ", get(address + URLS[1])[2].decode())
    assert "Behind the numbers: what moves" in page
    assert "<h3>lightgbm</h3>" in page
    assert "<dt>dep_delay</dt><dd>71%</dd>" in page
    assert '<tr><td class="head">yes</td><td class="n">810</td><td class="n">1,670</td></tr>' in page
    assert '<tr class="winner"><td class="n">0.35' in page
    assert page.count("Behind the numbers") == 1
    assert "scores are calibrated by sigmoid (log loss 0.4210 to 0.3950), and acted on from 0.350" in page
    assert '<tr><td>0.010 to 0.200</td><td class="n">0.080</td>' in page
    assert "charts/reliability.svg" in page


def test_release_that_waits_is_shown_with_what_it_waits_for_and_the_checks_of_its_gate() -> None:
    class Waiting(sample.Sample):
        def loop(self, name: str) -> LoopPage:
            return msgspec.structs.replace(sample.loop_page(), case=CASE)

    with served([*routes_over(Waiting())]) as address:
        shown = get(address + URLS[1])[2].decode()
    assert "waits</strong> since" in shown
    assert "better at night" in shown
    assert "waits for 1 approval of bo" in shown
    assert "cy: approve" in shown
    assert "5 golden answers right" in shown


def test_verdict_and_missing_money_are_told_once(address: str) -> None:
    """The header of a stage says it: the text below it does not repeat it, unless the table is of an earlier turn."""
    page = sample.loop_page()
    assert page.leaderboard is not None
    verdict, worthless = page.leaderboard.verdict, "nothing measured yet; no value table is declared, so nobody knows"
    details = {"develop": f"{verdict}; more", "business": worthless}
    stages = [msgspec.structs.replace(s, detail=details.get(s.stage, s.detail)) for s in page.status.stages]
    status = msgspec.structs.replace(page.status, stages=stages)
    once = msgspec.structs.replace(page, status=status, values=[], valued=False)

    class Once(sample.Sample):
        def loop(self, name: str) -> LoopPage:
            return once

    with served([*routes_over(Once())]) as one:
        shown = get(one + URLS[1])[2].decode()
    assert (shown.count(verdict), shown.lower().count("no value table is declared")) == (1, 1)
    assert "value per prediction" not in shown
    earlier = get(address + URLS[1])[2].decode()
    assert f"All candidates, as of {page.leaderboard.as_of:%Y-%m-%d}: {verdict}" in earlier


def test_releases_before_the_newest_are_folded(address: str) -> None:
    page = " ".join(get(address + URLS[1])[2].decode().split())
    newest, _, rest = page.partition('<section class="card" id="deploy">')[2].partition("<details>")
    assert newest.count("<li") == 1
    assert f"<summary> {len(sample.releases()) - 1} earlier change" in f"<summary> {rest.partition('<summary>')[2]}"


def test_a_fleet_is_shown_by_segment() -> None:
    with served([*routes_over(Divided())]) as address:
        page = get(f"{address}/loops/{sample.LOOP}")[2].decode()
    assert "Fleet by carrier: 70 segments, 1 answered by a package of their own" in page
    assert "with 1 package of segments serves since then" in " ".join(page.split())
    shown = re.findall(r'class="head">(S\d\d)<', page)
    assert shown == ["S69", *(f"S{i:02}" for i in range(49))]
    assert "the global package: only one kind of outcome" in page
    assert "5e5e5e5e5e5e" in page
    assert "leaderboard late-arrival --json" in page
    assert "nan" not in page


def test_charts_are_served_for_each_screen(address: str) -> None:
    wide = get(f"{address}/loops/{sample.LOOP}/charts/quality.svg")
    narrow = get(f"{address}/loops/{sample.LOOP}/charts/quality.svg?size=narrow&theme=dark")
    assert wide[0] == narrow[0] == 200
    assert wide[1]["content-type"] == "image/svg+xml"
    assert wide[2] != narrow[2]


@pytest.mark.parametrize(
    "path",
    [
        "/loops/nope",
        "/loops/..%2f..",
        "/loops/%00",
        "/loops/" + "a" * 10_000,
        "/loops/LATE",
        "/predictions/nope",
        "/predictions/" + "0" * 32,
        "/predictions?id=<b>",
        "/predictions",
        "/loops/late-arrival/charts/nope.svg",
        "/loops/nope/charts/quality.svg",
        "/static/../app.py",
        "/static/app.py",
    ],
)
def test_what_is_not_there_is_404(address: str, path: str) -> None:
    status, _, body = get(address + path)
    assert status == 404
    assert b"<b>" not in body
    assert b"Traceback" not in body


def test_not_found_has_a_page_and_a_document(address: str) -> None:
    _, headers, body = get(address + "/loops/nope")
    assert b"late-arrival" in body, "the nearest name helps"
    assert "default-src 'self'" in headers["content-security-policy"]
    status, _, body = get(address + "/loops/nope.json")
    assert status == 404
    assert json.loads(body)["error"]["code"] == "loop_not_found"


@pytest.mark.parametrize(
    "query",
    [
        *(f"/index.json?page={page}" for page in ("-1", "0", "1000000000", "x", "", "1.5", "%C2%B2")),
        *(f"{LISTED}.json?limit={limit}" for limit in ("-1", "0", "1000000000")),
        f"{LISTED}.json?offset=-1",
        f"{URLS[1]}.json?limit=1",
        f"{URLS[2]}.json?page=2",
    ],
)
def test_parameter_of_a_page_that_cannot_be_is_refused_by_name(address: str, query: str) -> None:
    status, _, body = get(address + query)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (422, "request_invalid")
    assert [f["field"] for f in error["fields"]] == [query.partition("?")[2].partition("=")[0]]


@pytest.mark.parametrize("query", ["size=huge", "theme=x", "width=1"])
def test_parameter_of_a_chart_that_cannot_be_is_refused_by_name(address: str, query: str) -> None:
    status, _, body = get(f"{address}{URLS[1]}/charts/quality.svg?{query}")
    assert (status, query.partition("=")[0].encode() in body) == (422, True)


def test_the_form_leads_to_the_prediction(address: str) -> None:
    status, _, body = get(f"{address}/predictions?id=%20{sample.ID.upper()}")
    assert status == 200
    assert sample.ID.encode() in body


def test_predictions_are_searched_by_a_form_that_keeps_its_query(address: str) -> None:
    _, _, body = get(f"{address}{LISTED}?key=%3Cb%3E&flag=degraded")
    page = body.decode()
    assert 'name="key" value="&lt;b&gt;"' in page
    assert f'href="/predictions/{sample.ID}"' in page
    assert f'href="?key=%3Cb%3E&amp;flag=degraded&amp;before=1-{sample.ID}"' in page
    _, _, document = get(f"{address}{LISTED}.json?key=UA")
    assert msgspec.json.decode(document)["query"] == {"key": "UA"}


def test_search_for_no_moment_is_422(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home, served([*routes(home)]) as address:
        status, _, body = get(f"{address}/loops/{LOOP}/predictions?since=soon")
        assert (status, b"is not a time" in body, b"Cannot be asked" in body) == (422, True, True)
        assert get(f"{address}/loops/nope/predictions")[0] == 404


def test_only_reading() -> None:
    assert all(route.methods == {"GET", "HEAD"} for route in routes_over(sample.Sample()))


def test_data_does_not_become_markup() -> None:
    with served([*routes_over(Evil())]) as address:
        for url in URLS:
            _, _, body = get(address + url)
            assert EVIL.encode() not in body
            assert b"&lt;script&gt;" in body


def test_what_is_internal_stays_inside() -> None:
    with served([*routes_over(Broken())]) as address:
        for url, expected in (("/", 503), (URLS[1], 500), ("/index.json", 503)):
            status, _, body = get(address + url)
            assert status == expected
            assert b"secret" not in body


def test_a_loop_that_has_not_turned_yet_says_so() -> None:
    with served([*routes_over(Bare())]) as address:
        status, _, body = get(address + URLS[1])
        assert status == 200
        for text in (
            b"no data is not the same as all is well",
            b"Nobody has served yet",
            b"No leaderboard yet",
            b"No outcome has been",
        ):
            assert text in body
        status, _, body = get(address + URLS[2])
        assert status == 200
        assert b"Pending" in body


def test_an_empty_home(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path / "home")) as home, served([*routes(home)]) as address:
        status, _, body = get(address + "/")
        assert status == 200
        assert b"loopwright demo" in body
        assert json.loads(get(address + "/index.json")[2])["loops"] == []
        assert get(address + "/loops/nope")[0] == 404
        assert get(f"{address}/predictions/{sample.ID}")[0] == 404


def test_in_a_browser_nothing_is_refused_or_too_wide(address: str) -> None:
    said: list[str] = []
    with browser() as chromium:
        for width, theme in ((1280, "light"), (390, "dark")):
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]  # a literal
            page = context.new_page()
            page.set_default_timeout(1000 * PATIENCE_SECONDS)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("requestfailed", lambda request: said.append(request.url))
            for url in [*URLS, LISTED]:
                page.goto(address + url, wait_until="networkidle")
                assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
                    url,
                    width,
                )
                assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), (url, width)
            context.close()
    assert said == []


def test_on_a_phone_flags_are_whole_and_the_page_of_a_loop_is_short(address: str) -> None:
    """A long flag wraps inside its cell, and nothing of a page stands outside of the screen."""
    outside = """[...document.querySelectorAll('main td, main .tag')].filter(e => {
        const r = e.getBoundingClientRect(); return r.width && (r.right > innerWidth || e.scrollWidth > e.clientWidth + 1 && e.tagName == 'TD')
    }).map(e => e.textContent)"""
    with browser() as chromium, served([*routes_over(Flagged())]) as flagged:
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        page.goto(flagged + LISTED, wait_until="networkidle")
        assert page.evaluate(outside) == []
        assert page.get_by_text("out of range: a_column_with_quite_a_long_name_of_forty").count() > 0
        page.goto(address + URLS[1], wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollHeight") < 5000
        assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


def test_the_guide_names_every_page() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "console.md").read_text()
    for path, _ in PAGES:
        assert f"`{path}`" in guide
