"""Programs that some tests need beside Python: a database, a browser."""

import os
from typing import TypeVar

import pytest

Found = TypeVar("Found")


def needed(found: Found | None, what: str, package: str) -> Found:
    """What was found. Without it the test is skipped, or fails if TESTS_REQUIRE_SERVICES=1 says that it must be there."""
    if found is None:
        refuse = pytest.fail if os.environ.get("TESTS_REQUIRE_SERVICES") == "1" else pytest.skip
        refuse(f"{what} is missing: apt-get install {package}")
    return found
