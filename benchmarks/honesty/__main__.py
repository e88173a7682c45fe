"""Measure claims of benchmarks/honesty and write their rows of the table: `make honesty` measures all.

ARGS='--trials 200' for fewer trials, ARGS='drift gap' for the claims of a file or with that in their name: other rows stay as they are.
Whoever adds numbers to the product adds a file here with its CLAIMS and names it in FILES.
"""

import argparse
import importlib
import re

from benchmarks.honesty.claims import Claim, Measured, measure
from benchmarks.report import RESULTS, put, section, software, table

FILES = (
    "intervals",
    "nonnegative",
    "totals",
    "guards",
    "calibration",
    "choices",
    "decay",
    "drift",
    "leakage",
    "releases",
    "experiments",
)
TITLE = "Honesty of numbers"
HEAD = ["claim", "what is claimed", "nominal", "measured ± standard error", "trials", "definite", ""]
NOT_MET = "**not met**"


def claims(of: str = "") -> list[Claim]:
    """The claims of a file, or of all."""
    return [
        claim for name in FILES if of in ("", name) for claim in importlib.import_module(f"benchmarks.honesty.{name}").CLAIMS
    ]


def chosen(parts: list[str]) -> list[Claim]:
    """The claims of these files, or with one of these texts in their name; all without parts."""
    of_files = {claim.name for part in parts if part in FILES for claim in claims(part)}
    texts = [part for part in parts if part not in FILES]
    return [c for c in claims() if not parts or c.name in of_files or any(text in c.name for text in texts)]


def row(found: Measured) -> list[str]:
    """A claim as a row of the table."""
    claim = found.claim
    mark = "" if found.honest else NOT_MET
    nominal, right, error = (
        f"{value:.2f}" if claim.counts else f"{value:.1%}" for value in (claim.nominal, found.right, found.error)
    )
    return [claim.name, claim.what, nominal, f"{right} ± {error}", f"{found.trials:,}", f"{found.definite:.0%}", mark]


def written(text: str) -> dict[str, list[str]]:
    """The rows of a table, by claim."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("| ")
    ]
    return {cells[0]: cells for cells in rows if len(cells) == len(HEAD) and cells != HEAD and cells[0] != "---"}


def merged(rows: dict[str, list[str]]) -> str:
    """The section: rows in the order of the claims, those of claims that are gone left out, those not measured named."""
    names = [claim.name for claim in claims()]
    kept = [rows[name] for name in names if name in rows]
    missing = [name for name in names if name not in rows]
    failed = sum(NOT_MET in cells[-1] for cells in kept)
    return (
        f"{len(kept)} of {len(names)} claims were measured by simulation, {failed} not met. A claim is met where the measured share is at least\n"
        "its bound (93 % of 95 % intervals), or a mean number at most its bound, within two standard errors. *definite* is the share of trials\n"
        "in which something definite was said; where it was not (too few to tell), nothing wrong was said.\n\n"
        + table(HEAD, kept)
        + (f"\nNot measured yet: {'; '.join(missing)}.\n" if missing else "")
        + "\n"
        + software(["numpy", "scipy"])
    )


def main() -> None:
    """Measure and write, claim by claim: what is measured stays when the run is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", help="claims of this file, or with this in their name")
    parser.add_argument("--trials", type=int, help="so many trials each, instead of what each claim says")
    args = parser.parse_args()
    rows = written(section(TITLE))
    for claim in chosen(args.part):
        rows[claim.name] = row(measure(claim, args.trials))
        print(" | ".join(rows[claim.name]), flush=True)  # a script
        put(TITLE, merged(rows), RESULTS)


if __name__ == "__main__":
    main()
