"""Independent steps: a failure is recorded, and the next steps still run."""

from collections.abc import Callable
from typing import TypeVar

from loopwright.base.errors import LedgerUnavailable, LoopwrightError, first_line
from loopwright.records.entries import Problem

T = TypeVar("T")


class Attempts:
    """The steps of one piece of work on `subject` (a loop); `failed` lists those that raised, in order.

    A ledger that does not answer is no failure of one step: LedgerUnavailable passes through. With `strict` everything does.
    """

    def __init__(self, subject: str, *, strict: bool = False) -> None:
        self._subject, self._strict = subject, strict
        self.failed: list[Problem] = []
        self.steps: list[str] = []
        self.errors: list[Exception] = []

    def run(self, step: str, call: Callable[[], T], default: T) -> T:
        """The result of `call`; `default` if it raised."""
        try:
            return call()
        except LedgerUnavailable:
            raise
        except Exception as error:
            if self._strict:
                raise
            expected = isinstance(error, LoopwrightError)
            what = str(error) if expected else f"{type(error).__name__}: {first_line(error)}"
            self.failed.append(Problem(where=f"{self._subject}: {step}", what=what))
            self.steps.append(step)
            self.errors.append(error)
            return default
