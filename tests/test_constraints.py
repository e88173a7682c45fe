"""constraints.txt: the exact versions that `make demo`, `make test` and CI install, today and in a year."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==([0-9][0-9a-z.]*)(?: ; (.+))?")
REQUIREMENTS = [
    requirement
    for text in (*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra))
    if (requirement := Requirement(text)).name not in ("loopwright", "ray", "torch", "onnxscript")  # not installed by the suite
]


def _version(name: str) -> str:
    pins = [match for line in LINES if (match := PIN.fullmatch(line)) and match[1] == name]
    return next((match[2] for match in pins if not match[3] or Marker(match[3]).evaluate()), "")


def test_constraints_hold_only_names_and_exact_versions() -> None:
    assert [line for line in LINES if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_constraints_pin_each_dependency_inside_its_bounds(requirement: Requirement) -> None:
    version = _version(requirement.name.lower())
    assert version, f"{requirement.name} is not in constraints.txt: run `make pins`"
    assert requirement.specifier.contains(version, prereleases=True)


@pytest.mark.parametrize("tool", ["hatchling", "editables", "uv"])
def test_constraints_pin_what_builds_and_installs_the_package(tool: str) -> None:
    assert _version(tool)


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_installation_commands_use_the_constraints(file: str) -> None:
    """Each line that installs something names the constraints file, or the resolution that it tries instead."""
    for line in (ROOT / file).read_text().splitlines():
        if re.search(r"pip install\b", line):
            assert re.search(r"(?i)constraint|--resolution", line), line
