"""Measure every claim of benchmarks/honesty and write the table: `make honesty` (ARGS='--trials 200' for less, ARGS='gap' for a part).

Whoever adds numbers to the product adds a file here with its CLAIMS and names it in FILES.
"""

import argparse
import importlib

from benchmarks.honesty.claims import Claim, measure
from benchmarks.report import machine, put, table

FILES = ("intervals", "nonnegative", "totals", "guards", "calibration", "choices", "decay", "drift", "releases")


def claims() -> list[Claim]:
    """All claims, file by file."""
    return [claim for name in FILES for claim in importlib.import_module(f"benchmarks.honesty.{name}").CLAIMS]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="measure only claims whose name has this in it; nothing is written")
    parser.add_argument("--trials", type=int, help="so many trials each, instead of what each claim says")
    args = parser.parse_args()
    rows, failed = [], 0
    for claim in claims():
        if args.part not in claim.name:
            continue
        found = measure(claim, args.trials)
        failed += not found.honest
        mark = "" if found.honest else "**not met**"
        right = f"{found.right:.1%} ± {found.error:.1%}"
        rows.append([claim.name, claim.what, f"{claim.nominal:.1%}", right, f"{found.definite:.0%}", mark])
        print(" | ".join(rows[-1]), flush=True)  # a script
    if not args.part:
        head = ["claim", "what is claimed", "nominal", "measured ± standard error", "definite", ""]
        text = (
            f"{len(rows)} claims by simulation, {failed} not met. A claim is met where the measured share is at least its bound (93 % of\n"
            "95 % intervals) within two standard errors. *definite* is the share of trials in which something definite was said; where it was\n"
            "not (too few to tell), nothing wrong was said.\n\n"
        )
        put("Honesty of numbers", text + table(head, rows) + "\n" + machine(["numpy", "scipy"]))


if __name__ == "__main__":
    main()
