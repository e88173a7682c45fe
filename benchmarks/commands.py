"""Processor time and peak memory of commands beside the import of the libraries that each must load. Writes a section of RESULTS.md.

    python -m benchmarks.commands               # one to two minutes; `make bench` runs it too

The loop is drafted by `init` of a file of 4,000 rows. The ratio is to a bare `python -c "import ..."` of the same libraries in the same
run: what a command cannot be quicker than without doing less.
"""

import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import machine, put, table

LIBRARIES = (
    "typer",
    "sqlalchemy",
    "pyarrow",
    "deltalake",
    "duckdb",
    "pandas",
    "ndonnx",
    "scikit-learn",
    "skl2onnx",
    "lightgbm",
    "optuna",
)
ROUNDS = 3
LEDGER = "typer, sqlalchemy"
TABLES = f"{LEDGER}, pyarrow.compute, pyarrow.parquet, deltalake"
ROWS = f"{TABLES}, pyarrow.dataset, duckdb"
MODELS = f"{ROWS}, ndonnx, sklearn.linear_model, skl2onnx, lightgbm, optuna"

COMMANDS: tuple[tuple[str, str, float], ...] = (
    ("status", LEDGER, 0.5),
    ("leaderboard churn", LEDGER, 0.5),
    ("history churn", LEDGER, 0.5),
    ("drift churn", LEDGER, 0.5),
    ("contract churn-requests", TABLES, 0.5),
    ("lineage churn", TABLES, 0.5),
    ("profile churn-requests", ROWS, 0.5),
    ("predictions churn", TABLES, 0.5),
    ("trace ID", ROWS, 0.5),
    ("quarantine churn-requests", ROWS, 0.5),
    ("outcomes churn", ROWS, 0.5),
    ("report churn", TABLES, 0.5),
    ("verify", TABLES, 0.5),
    ("ingest churn-requests more.csv --loop churn", f"{ROWS}, ndonnx", 1.5),
    ("check churn", MODELS, 2.5),
)
"""Command, the libraries that it must load, and the seconds of processor time that it may take."""


def used(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds of processor time and KiB of peak memory of a command."""
    code = (
        "import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "_, _, u = os.wait4(p.pid, 0); print(u.ru_utime + u.ru_stime, u.ru_maxrss)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE" and not k.startswith("LOOPWRIGHT_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    seconds, memory = done.stdout.split()
    return float(seconds), int(memory)


def least(command: list[str], folder: Path) -> tuple[float, int]:
    """The quietest of a few rounds, after one that warms the files; each finds rows in `more.csv` that were never ingested."""
    found = []
    for number in range(1 + ROUNDS):
        write_rows(folder / "more.csv", f"b{time.monotonic_ns()}-", number)
        found.append(used(command, folder))
    return min(found[1:])


def write_rows(file: Path, prefix: str, seed: int) -> None:
    """4,000 hourly renewals, with a label that calls and idle days explain in part."""
    draw = random.Random(seed)
    lines = ["customer,renewal_at,plan,calls,idle,churned"]
    for i in range(4000):
        calls, idle = draw.choice([0, 0, 1, 2, 5]), round(draw.expovariate(1 / 9), 1)
        churned = draw.random() < 0.1 + 0.08 * calls + 0.01 * min(idle, 20)
        at = f"2024-{1 + i // 672:02}-{1 + i % 672 // 24:02}T{i % 24:02}:00:00Z"
        lines.append(f"{prefix}{i},{at},{draw.choice(['basic', 'team'])},{calls},{idle},{churned}")
    file.write_text("\n".join(lines) + "\n")


def rows(folder: Path) -> list[list[str]]:
    """The table: each command beside its imports."""
    loopwright = [sys.executable, "-m", "loopwright"]
    write_rows(folder / "first.csv", "a", 1)
    for line in (
        "init churn --from first.csv --label churned --time renewal_at --key customer",
        "ingest churn-requests first.csv --loop churn",
        "ingest churn-outcomes first.csv --loop churn",
        "run churn",
        "predict churn first.csv --out answers.csv",
        "tend --once",
    ):
        subprocess.run(
            [*loopwright, *line.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    with (folder / "answers.csv").open(newline="") as answers:
        id = next(csv.DictReader(answers))["_id"]
    limits = {imports: least([sys.executable, "-c", f"import {imports}"], folder)[0] for _, imports, _ in COMMANDS}
    found = []
    for line, imports, most in COMMANDS:
        words = [id if word == "ID" else word for word in line.split()]
        seconds, memory = least([*loopwright, *words], folder)
        met = "met" if seconds <= most else "**not met**"
        ratio = f"{seconds / limits[imports]:.1f}"
        found.append(
            [
                f"`{line}`",
                f"{seconds:.2f} s",
                f"{limits[imports]:.2f} s",
                ratio,
                f"{memory / 1024:.0f} MiB",
                f"<= {most} s",
                met,
            ]
        )
    return found


def main() -> None:
    """Measure and write the section."""
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder))
    head = ["command", "processor time", "its imports alone", "ratio", "peak memory", "bound", ""]
    text = f"{machine(LIBRARIES)}\n{table(head, found)}\nReproduce: `make bench`.\n"
    put("Commands", text)
    print(text)


if __name__ == "__main__":
    main()
