"""Each test measures in a process of its own: other threads of this one allocate and free as they like."""

import ctypes
import subprocess
import sys

import pytest

LIBRARY = """
import ctypes
from loopwright.base.heap import allocated, give_back
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for size in (50_000, 5_000_000):  # in the heap, and beside it
    before = allocated()
    block = library.malloc(ctypes.c_size_t(size))
    assert size <= allocated() - before < size + 20_000
    library.free(block)
    give_back()
    assert abs(allocated() - before) < 20_000
"""

INTERPRETER = """
from loopwright.base.heap import allocated
before = allocated()
made = [str(i) for i in range(10_000)]
assert allocated() - before >= 88 * len(made)
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
def test_what_a_library_allocates_counts_until_it_is_freed() -> None:
    run(LIBRARY)


def test_the_interpreters_own_blocks_count() -> None:
    run(INTERPRETER)
