"""The house: import rule, light rooms, one door per outside thing, names, and sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tests.console import sample
from tests.deploy.loops import LOOP, NOW_US, Weather, flight, opened, package

from loopwright import Column, Home, Table
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy import releases
from loopwright.deploy.serving.predictor import Predictor
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.verbs import VERBS, Verb

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "loopwright"

# What a prediction worker must never load.
HEAVY = {
    "alembic", "deltalake", "duckdb", "google", "grpc", "jinja2", "lightgbm", "ndonnx", "opentelemetry", "optuna", "pandas",
    "polars", "psycopg", "pyarrow", "rich", "scipy", "skl2onnx", "sklearn", "spox", "sqlalchemy", "typer", "vl_convert",
}  # fmt: skip

# What a command that only looks never loads, unless predictions were committed to Delta.
ENGINES = HEAVY - {"rich", "sqlalchemy", "typer"} | {"numpy", "onnx", "onnxruntime", "pydantic", "redis"}

# The prediction path: server -> deploy -> records.
LIGHT = (
    "loopwright",
    "loopwright.base.ids",
    "loopwright.base.clock",
    "loopwright.base.errors",
    "loopwright.base.settings",
    "loopwright.records.declarations",
    "loopwright.stores.home",
    "loopwright.records.package",
    "loopwright.stores.packages.store",
    "loopwright.graph.session",
    "loopwright.stores.online",
    "loopwright.stores.online.steps",
    "loopwright.stores.online.embedded",
    "loopwright.deploy.serving.context",
    "loopwright.records.releases",
    "loopwright.records.prediction",
    "loopwright.stores.prediction_log.segment",
    "loopwright.stores.prediction_log.writer",
    "loopwright.deploy.serving.predictor",
    "loopwright.deploy.serving.engine",
    "loopwright.deploy.serving.release_files",
    "loopwright.server.api.app",
    "loopwright.server.processes.worker",
)

# Libraries with one door: which paths may import them.
DOORS = {
    "duckdb": ("sql/engine.py",),
    "uvicorn": ("server/",),
    "starlette": ("server/", "console/"),
    "prometheus_client": ("server/",),
    "grpc": ("server/api/grpc.py",),
    "google": ("server/api/grpc_messages.py", "server/api/spans.py"),
    "opentelemetry": ("server/api/spans.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "jinja2": ("console/",),
    "optuna": ("develop/",),
    "skl2onnx": ("develop/",),
    "xgboost": (),
    "torch": ("develop/onnx/estimators/network.py",),
    "lightgbm": ("develop/",),
    "sklearn": ("develop/",),
    "ndonnx": ("develop/", "features.py"),
    "spox": ("develop/",),
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def top_level_imports(tree: ast.AST) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def test_import_rule() -> None:
    """In a process of its own: import-linter sets up logging, which switches off every logger that is there."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_prediction_path_is_light() -> None:
    """Imports each module in turn in one fresh process and names the first that drags in something heavy."""
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {HEAVY!r} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {sorted(heavy)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def run_listing_engines(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command; the last line of its standard error lists the engines that it loaded."""
    code = (
        "import sys; from loopwright.cli.main import main\ntry:\n    main(sys.argv[1:])\n"
        f"finally:\n    print(sorted({ENGINES!r} & set(sys.modules)), file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "--json"], ["history", "late-arrival"], ["drift", "late-arrival"]]
)
def test_looking_commands_load_no_engine(tmp_path: Path, arguments: list[str]) -> None:
    """Each of these libraries takes longer to load than the whole answer to make."""
    with opened(tmp_path / "home") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
    done = run_listing_engines(*arguments, "--home", str(tmp_path / "home"))
    assert (done.returncode, done.stderr) == (0, "[]\n")


LOADED_BY_VERBS: dict[str, set[str]] = {
    "contract": set(),
    "doctor": set(),
    "drift": set(),
    "history": set(),
    "leaderboard": set(),
    "lineage": {"numpy", "pyarrow"},
    "outcomes": {"deltalake", "numpy", "pyarrow"},
    "predictions": {"deltalake", "numpy", "pyarrow"},
    "profile": set(),
    "quarantine": {"deltalake", "numpy", "pyarrow"},
    "report": {"numpy", "pyarrow"},
    "status": set(),
    "trace": {"numpy", "onnxruntime", "pyarrow"},
    "verify": {"numpy", "pyarrow"},
}
"""Verbs that only look, and the engines that their modules may load before anything is looked at."""


@pytest.mark.parametrize("name", LOADED_BY_VERBS)
def test_module_of_a_looking_verb_loads_no_engine_that_it_does_not_need(name: str) -> None:
    code = f"import sys; from loopwright.verbs import verb; verb({name!r}).call; print(sorted({ENGINES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= LOADED_BY_VERBS[name]


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.name)
def test_table_names_a_function_of_the_module_of_its_verb(verb: Verb) -> None:
    """As text: the table itself, which every command reads, loads no verb."""
    assert verb.function == f"loopwright.verbs.{verb.name}:{verb.name}"
    assert callable(verb.call)


TABLES = frozenset({"pyarrow", "deltalake", "numpy"})
LOOKS_AT_TABLES: dict[tuple[str, ...], frozenset[str]] = {
    ("contract", "stock"): TABLES,
    ("lineage", "stock"): TABLES,
    ("profile", "stock"): TABLES | {"duckdb"},  # it reads every row
    ("doctor",): TABLES | {"duckdb", "onnxruntime"},
    ("--help",): frozenset(),
}
"""Commands that look at a table, and the engines that they may load for it."""


@pytest.mark.parametrize("arguments", LOOKS_AT_TABLES, ids=" ".join)
def test_commands_that_look_at_tables_load_what_they_need(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    stock = Table("stock", {"id": Column("string"), "at": Column("timestamp")}, ["id"], "at")
    with Home(Settings(home=tmp_path / "home", by="tests")) as home:
        ingest(home, stock, pa.table({"id": ["a"], "at": ["2024-01-01T00:00:00Z"]}))
    home_option = [] if arguments == ("--help",) else ["--home", str(tmp_path / "home")]
    done = run_listing_engines(*arguments, *home_option)
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert loaded <= LOOKS_AT_TABLES[arguments]


@pytest.mark.parametrize("verb", ["status", "predictions", "trace", "outcomes", "report", "verify"])
def test_commands_that_look_at_predictions_load_neither_pandas_nor_duckdb(tmp_path: Path, verb: str) -> None:
    """Arrow loads it with the first value to see whether that is a data frame, and it takes a third of such a command. Nor DuckDB, without outcomes."""
    with opened(tmp_path / "home") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        [prediction] = Predictor(package(home.packages), Weather(), home.clock).answer([flight(1, pushed_back_at=NOW_US)])
        with LogWriter(log_folder(home.path, LOOP), "predictions") as writer:
            writer.append([prediction])
        commit(home, LOOP)
    of = {"trace": [prediction.id], "status": [], "verify": []}.get(verb, [LOOP])
    done = run_listing_engines(verb, *of, "--home", str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert {"pyarrow"} <= loaded <= {"deltalake", "numpy", "onnxruntime", "pyarrow"}


def test_leaderboard_that_is_shown_loads_no_engine(tmp_path: Path) -> None:
    """Only a fleet, and other weights, need the metrics, which compute with NumPy."""
    with opened(tmp_path / "home") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        home.ledger.put(sample.leaderboard(), loop=LOOP)
    done = run_listing_engines("leaderboard", LOOP, "--home", str(tmp_path / "home"))
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "lightgbm" in done.stdout


CHECKED = """
from loopwright import Candidate, Column, Heuristic, Loop, Objective, Outcome, Scope, Table
from sklearn.linear_model import LogisticRegression

orders = Table("orders", {"order": Column("string"), "at": Column("timestamp"), "amount": Column("float")}, ["order"], "at")
returns = Table("returns", {"order": Column("string"), "at": Column("timestamp"), "returned": Column("boolean")}, ["order"], "at")

def simple():
    return LogisticRegression()

def searched(trial):
    return LogisticRegression(C=trial.suggest_float("C", 0.1, 10.0))

loop = Loop(
    name="returns",
    scope=Scope(problem="Which orders come back?", heuristic=Heuristic(lambda f: f.amount > 100),
                objectives=[Objective("catch them", "sales", "average_precision", at_least=0.2)]),
    requests=orders, outcome=Outcome(returns, "returned"), features=lambda f: {"amount": f.amount},
    candidates=[Candidate("simple", CANDIDATE)],
)
"""


@pytest.mark.parametrize(("candidate", "needed"), [("simple", set()), ("searched", {"optuna"})])
def test_check_loads_the_libraries_of_its_candidates(tmp_path: Path, candidate: str, needed: set[str]) -> None:
    """Also not those that Optuna loads where they are installed: redis, and OpenTelemetry behind it."""
    (tmp_path / "loop.py").write_text(CHECKED.replace("CANDIDATE", candidate))
    done = run_listing_engines("check", str(tmp_path), "--home", str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert loaded & {"lightgbm", "opentelemetry", "optuna", "pydantic", "redis", "skl2onnx"} == needed


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_one_door_per_library(module: Path) -> None:
    path = str(module.relative_to(SOURCE))
    used = top_level_imports(ast.parse(module.read_text()))
    assert [library for library, doors in DOORS.items() if library in used and not path.startswith(doors)] == []


OWN_BYTES = ("stores/packages/sandbox.py", "stores/packages/probe.py", "develop/mlmodel.py")
"""Where graphs of packages are made of bytes: in the confined child, by what passed it, and in MLflow's process."""


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_graphs_of_packages_come_through_their_probe(module: Path) -> None:
    """`Graph` takes the bytes that this process has built; a package's own are in its `files`, and only a `Probed` makes graphs of them."""
    if str(module.relative_to(SOURCE)) in OWN_BYTES:
        return
    for call in (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        assert name != "Probed", f"line {call.lineno}: only the probe says what was probed"
        if name in ("Graph", "InferenceSession", "load_model_from_string", "load_from_string", "ParseFromString"):
            inside = {n.attr for a in call.args for n in ast.walk(a) if isinstance(n, ast.Attribute)}
            assert "files" not in inside, f"line {call.lineno}: a package's graph, past its probe"


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_names_say_what_is_inside(module: Path) -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc"}
    assert vague.isdisjoint({module.stem, *module.relative_to(SOURCE).parts})


STARTS = {"Thread", "Timer", "ThreadPoolExecutor", "create_task", "ensure_future", "run_in_executor", "to_thread"}
"""What starts a thread or a task. `base.supervision` does it for all of us, so that none ends silently."""


def test_threads_and_tasks_start_under_supervision() -> None:
    bare = []
    for module in modules():
        if module == SOURCE / "base" / "supervision.py":
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in STARTS or ast.unparse(node.func) == "asyncio.gather":
                    bare.append(f"{module.relative_to(SOURCE)}:{node.lineno} {called}")
    assert bare == []


def test_tests_mirror_the_source() -> None:
    """tests/ROOM/test_X.py looks after src/loopwright/ROOM/X.py or the package ROOM/X."""
    strays = []
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = test.parent.relative_to(ROOT / "tests")
        if folder == Path() or folder.parts[0] in ("journeys", "examples", "benchmarks"):
            continue
        subject = SOURCE / folder / test.stem.removeprefix("test_")
        if not (subject.with_suffix(".py").is_file() or subject.is_dir() or (SOURCE / folder).is_dir()):
            strays.append(str(test.relative_to(ROOT)))
    assert strays == []


def test_architecture_page_names_files_that_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    files = [module.relative_to(ROOT).as_posix() for module in modules()]
    named = {name for name in re.findall(r"`([\w/]+\.py)`", page) if not name.startswith("tests/")}
    assert sorted(name for name in named if not any(file.endswith(f"/{name}") for file in files)) == []


@pytest.mark.parametrize("file", ["Makefile", ".ci/run", "pyproject.toml"])
def test_files_of_the_repository_that_commands_name_exist(file: str) -> None:
    named = re.findall(r"(?<![\w/.])(?:tests|src|docs|benchmarks|examples)/[\w./]+\w", (ROOT / file).read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
