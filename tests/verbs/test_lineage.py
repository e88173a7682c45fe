"""Lineage through its verb: a package back to its files, a file, table or column forward to features and packages."""

import io
import shutil
from collections.abc import Iterator

import pytest
from rich.console import Console
from tests.journeys import synthetic
from tests.journeys.synthetic import FILE, START

from loopwright import Home
from loopwright.base.errors import NotFound
from loopwright.cli.terminal import rendered
from loopwright.deploy.releases import serving
from loopwright.loop import load_loop
from loopwright.turn import turn
from loopwright.verbs.lineage import Node, lineage


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Two turns, the second on more of the traffic table than the first."""
    folder = tmp_path_factory.mktemp("lineage")
    loop = load_loop(FILE)
    world = synthetic.world()
    files = synthetic.write(loop, synthetic.known(loop, world, START), folder)
    with synthetic.opened(folder / "home", START) as home:
        from loopwright.data.ingest.ingestion import ingest

        for name, file in files.items():
            ingest(home, loop.tables[name], file)
        turn(home, loop)
        more = folder / "more traffic.parquet"
        shutil.copy(
            synthetic.write(loop, synthetic.known(loop, world, START + synthetic.WEEK), folder / "later")["traffic"], more
        )
        ingest(home, loop.tables["traffic"], more)
        home.clock.advance(synthetic.WEEK)  # type: ignore[attr-defined]  # a simulated clock
        turn(home, loop)
        yield home


def champion(home: Home) -> str:
    state = serving(home, "late")
    assert state is not None
    return state.champion.package


def paths(node: Node, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every path from the root, as `kind:id` with the role where there is one."""
    here = (*before, f"{node.role + ' ' if node.role else ''}{node.kind} {node.id}")
    yield here
    for child in node.children:
        yield from paths(child, here)


def text(node: Node) -> str:
    """The tree as the command line prints it."""
    out = io.StringIO()
    Console(width=200, file=out).print(rendered(node))
    return out.getvalue()


def test_a_package_leads_by_feature_to_table_columns_and_by_table_to_files(home: Home) -> None:
    digest = champion(home)
    found = {p[1:] for p in paths(lineage(home, digest[:10]))}
    assert ("feature distance", "column distance", "of table column orders.distance") in found
    by = [p[-1] for p in found if p and p[:2] == ("feature jam", "column jam") and p[-1].startswith("found by")]
    assert sorted(by) == [
        "found by table column orders.at",
        "found by table column orders.shop",
        "found by table column traffic.seen_at",
        "found by table column traffic.shop",
        "found by table column traffic.told_at",
    ]
    assert ("label label", "of table column deliveries.minutes") in found
    files = {p[-1].rpartition(":")[2] for p in found if p and p[-1].startswith("ingested file")}
    assert files >= {"orders.parquet", "deliveries.parquet", "traffic.parquet"}
    [joined] = [p[1] for p in found if len(p) == 2 and p[1].startswith("joined table table:traffic@")]
    assert joined.endswith(f"@{home.packages.manifest(digest).training.sources['traffic']}")


def test_what_lies_before_a_package_is_named_and_not_told_again(home: Home) -> None:
    newest = max((home.packages.manifest(d) for d in home.packages.list()), key=lambda m: m.created_at)
    assert newest.parent
    child = next(d for d in home.packages.list() if home.packages.manifest(d) == newest)
    parents = [n for n in lineage(home, child).children if n.role == "parent"]
    assert [(n.id, n.children) for n in parents] == [(newest.parent, [])]


def test_a_column_leads_forward_to_features_and_packages(home: Home) -> None:
    node = lineage(home, "traffic.jam")
    packages = [n for n in node.children if n.kind == "package"]
    every = home.packages.list()
    assert {n.id for n in packages} == {d for d in every if home.packages.manifest(d).candidate != "heuristic"}
    assert packages[0].id == champion(home)
    assert packages[0].label.startswith("serves, late, ")
    assert [(f.kind, f.id) for f in packages[0].children] == [("feature", "jam")]
    assert [n.id for n in node.children if n.kind == "table"] == ["table:traffic"]
    label = lineage(home, "column:deliveries.minutes").children[1]
    assert [(c.kind, c.id) for c in label.children] == [("label", "label")]
    key = next(n for n in lineage(home, "orders.shop").children if n.kind == "package")
    assert {c.id for c in key.children if c.kind == "feature"} == {"shop", "jam"}, "as a value, and as the key of the join"


def test_a_heuristic_uses_no_feature(home: Home) -> None:
    made = {home.packages.manifest(d).candidate: home.packages.manifest(d).lineage for d in home.packages.list()}
    assert made["heuristic"].features == {}
    assert made["heuristic"].heuristic


def test_a_file_leads_to_the_packages_trained_on_it_and_to_no_others(home: Home) -> None:
    def trained_on(name: str) -> set[str]:
        return {p[2].removeprefix("used by package ") for p in paths(lineage(home, name)) if len(p) > 2}

    every = set(home.packages.list())
    later = trained_on("more traffic.parquet")
    assert trained_on("traffic.parquet") == every
    assert later
    assert later < every
    versions = {home.packages.manifest(d).training.sources["traffic"] for d in later}
    assert versions == {max(home.packages.manifest(d).training.sources["traffic"] for d in every)}
    [digest] = {n.id.split(":")[1] for n in [lineage(home, "some/folder/more traffic.parquet")]}
    assert lineage(home, digest[:12]) == lineage(home, digest) == lineage(home, "more traffic.parquet")


def test_a_table_and_one_version_of_it(home: Home) -> None:
    whole = lineage(home, "table:traffic")
    assert [n.id.rpartition(":")[2] for n in whole.children if n.kind == "file"] == ["traffic.parquet", "more traffic.parquet"]
    assert {n.id for n in whole.children if n.kind == "package"} == set(home.packages.list())
    versions = sorted({home.packages.manifest(d).training.sources["traffic"] for d in home.packages.list()})
    first = lineage(home, f"table:traffic@{versions[0]}")
    assert [n.id.rpartition(":")[2] for n in first.children if n.kind == "file"] == ["traffic.parquet"]
    assert {n.id for n in first.children if n.kind == "package"} < set(home.packages.list())


def test_a_feature_leads_to_its_files(home: Home) -> None:
    found = set(paths(lineage(home, "feature:jam")))
    assert lineage(home, "jam") == lineage(home, "feature:jam")
    of_champion = [p for p in found if len(p) > 3 and champion(home) in p[1]]
    assert {p[3].rpartition(":")[2] for p in of_champion if p[3].startswith("ingested file")} >= {
        "orders.parquet",
        "traffic.parquet",
    }
    assert not any("deliveries" in step for p in of_champion for step in p)


def test_the_tree_says_once_what_several_packages_share(home: Home) -> None:
    said = text(lineage(home, "traffic.jam"))
    assert "column jam of traffic.jam" in said
    assert said.count("feature jam") < len(home.packages.list())
    assert "the same in " in said
    assert "found by traffic.shop, traffic.seen_at, traffic.told_at, orders.shop, orders.at" in text(
        lineage(home, champion(home))
    )


@pytest.mark.parametrize(
    "name", ["nope", "table:nope", "orders.nope", "nope.csv", "feature:nope", "0" * 32, "", "table:", "../../etc"]
)
def test_what_is_not_there_is_said(home: Home, name: str) -> None:
    with pytest.raises(NotFound, match="no package, prediction, table"):
        lineage(home, name)


def test_lineage_of_a_bare_column_name_suggests_table_and_column(home: Home) -> None:
    """`came_at` is no feature, but a column."""
    with pytest.raises(NotFound, match=r"nearest: deliveries\.came_at"):
        lineage(home, "came_at")
