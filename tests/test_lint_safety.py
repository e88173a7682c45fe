"""What may not stand in the source: unpickling, evaluation, shells, clocks of one's own, and second doors to SQL and Delta."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "loopwright"

# Modules that load code from data, or that are a second door. Value: the paths that may import them all the same.
GUARDED_IMPORTS: dict[str, tuple[str, ...]] = {
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
    "yaml": ("data/ingest/odcs.py",),  # safe_load alone, without aliases: data contracts are written in YAML
    "tarfile": (),
    "shutil.unpack_archive": (),
    "zipfile": ("data/",),  # a .zip with one CSV file is a source for ingestion; it is read, never unpacked
    "runpy": (),
    "sqlite3": ("stores/ledger/", "stores/online/embedded.py", "verbs/doctor.py"),  # doctor tells the library's version
    "sqlalchemy": ("stores/ledger/", "data/ingest/query.py"),  # a query is a source of rows
    "psycopg": ("stores/ledger/",),
    "alembic": ("stores/ledger/",),
    "deltalake": ("stores/lake/",),
}

# Calls by their full dotted name, and the paths that may make them.
GUARDED_CALLS: dict[str, tuple[str, ...]] = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "os.system": (),
    "os.popen": (),
    "torch.load": (),
    "numpy.load": (),
    "np.load": (),
    "tempfile.mktemp": (),
    "importlib.util.spec_from_file_location": ("loop.py", "verbs/demo.py"),  # the user's own files, in the user's own process
    "shutil.unpack_archive": (),
    "subprocess.getoutput": (),
    "subprocess.getstatusoutput": (),
    "asyncio.create_subprocess_shell": (),
    "datetime.now": ("base/clock.py",),
    "datetime.utcnow": (),
    "datetime.today": (),
    "datetime.datetime.now": ("base/clock.py",),
    "datetime.datetime.utcnow": (),
    "date.today": (),
    "datetime.date.today": (),
    "time.time": ("base/clock.py",),
    "time.time_ns": ("base/clock.py",),
}


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source: str, path: str) -> list[str]:
    """Every breach in `source`, the text of the module at `path` (below src/loopwright), as `path:line: what`."""
    found: list[str] = []
    tree = ast.parse(source)
    # `from time import time as t` makes `t()` mean `time.time()`.
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    names |= {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        for name in imported(node):
            for guarded, allowed in GUARDED_IMPORTS.items():
                if (name == guarded or name.startswith(guarded + ".")) and not path.startswith(allowed or "\0"):
                    found.append(f"{path}:{getattr(node, 'lineno', 0)}: imports {guarded}")
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            first, _, rest = called.partition(".")
            full = ".".join(filter(None, [names.get(first, first), rest]))
            for name in {called, full}:
                if name in GUARDED_CALLS and not path.startswith(GUARDED_CALLS[name] or "\0"):
                    found.append(f"{path}:{node.lineno}: calls {name}()")
                    break
            found += [
                f"{path}:{node.lineno}: {keyword.arg}= is not False"
                for keyword in node.keywords
                if keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) != "False"
            ]
    return found


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_source_is_there() -> None:
    assert len(modules()) > 15


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_is_safe(module: Path) -> None:
    assert violations(module.read_text(), str(module.relative_to(SOURCE))) == []


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import pickle", "develop/train.py"),
        ("from joblib import load", "develop/train.py"),
        ("def f():\n    import yaml", "stores/packages/store.py"),
        ("from torch import load as fetch\nfetch('x')", "develop/train.py"),
        ("import torch\ntorch.load('x')", "develop/train.py"),
        ("import numpy as np\nnp.load('x')", "develop/train.py"),
        ("import numpy as n\nn.load('x')", "develop/train.py"),
        ("eval('1')", "cli/main.py"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "server/processes/supervisor.py"),
        ("import os\nos.system('ls')", "server/processes/supervisor.py"),
        ("from datetime import datetime, UTC\ndatetime.now(UTC)", "deploy/serving/predictor.py"),
        ("import datetime as d\nd.datetime.now()", "deploy/serving/predictor.py"),
        ("from time import time\ntime()", "deploy/serving/predictor.py"),
        ("import time\ntime.time()", "tend.py"),
        ("import sqlalchemy as sa", "monitor/windows.py"),
        ("from deltalake import DeltaTable", "data/ingest/ingestion.py"),
        ("import sqlite3", "deploy/serving/engine.py"),
        ("import zipfile", "stores/packages/store.py"),
        ("import importlib.util\nimportlib.util.spec_from_file_location('x', 'y')", "deploy/serving/engine.py"),
    ],
)
def test_a_breach_is_found(source: str, path: str) -> None:
    assert violations(source, path) != []


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("from datetime import UTC, datetime\ndatetime.now(UTC)", "base/clock.py"),
        ("import re\nre.compile('x')", "develop/train.py"),
        ("import sqlite3", "stores/online/embedded.py"),
        ("model.eval()", "develop/train.py"),
        ("import subprocess\nsubprocess.run(['ls'], shell=False)", "deploy/probe.py"),
    ],
)
def test_what_is_lawful_passes(source: str, path: str) -> None:
    assert violations(source, path) == []
