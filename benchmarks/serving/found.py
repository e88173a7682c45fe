"""What was measured: numbers by what and by whom, in the order of the rounds."""

import statistics
from typing import Any


class Found:
    """All that a run measures, who failed and was left out, and who failed once, with the reasons."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[str, str] = {}
        self.stumbled: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}

    def note(self, what: str, name: str, value: float) -> None:
        """One measurement."""
        self.numbers.setdefault(what, {}).setdefault(name, []).append(value)

    def has(self, what: str, name: str) -> bool:
        """Whether it was measured at all."""
        return bool(self.numbers.get(what, {}).get(name))

    def last(self, what: str, name: str) -> float:
        """The newest measurement; NaN where there is none."""
        return self.numbers[what][name][-1] if self.has(what, name) else float("nan")

    def median(self, what: str, name: str) -> float:
        """Over the rounds; NaN where there is none."""
        return statistics.median(self.numbers[what][name]) if self.has(what, name) else float("nan")

    def raw(self) -> dict[str, Any]:
        """For a file."""
        return {"numbers": self.numbers, "failed": self.failed, "stumbled": self.stumbled, "versions": self.versions}
