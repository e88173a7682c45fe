"""Allocated memory of this process: measures the size of a package when it is built and when it is loaded."""

import ctypes
import sys
from functools import cache
from typing import Any

_BLOCK = 88
"""Average bytes of a block of the interpreter, for the objects of a package."""


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc: `uordblks` are bytes allocated in the heaps, `hblkhd` bytes in mmapped blocks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


@cache
def _library() -> Any:
    """The C library, if it has `mallinfo2` (glibc 2.33 and later)."""
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _Mallinfo
    except AttributeError:
        return None
    return library


def allocated() -> int:
    """Allocated bytes of this process: the interpreter's and, with glibc 2.33 or later, those of libraries."""
    library = _library()
    native = 0
    if library is not None:
        found = library.mallinfo2()
        native = found.uordblks + found.hblkhd
    return int(native) + _BLOCK * sys.getallocatedblocks()


def give_back() -> None:
    """Free memory goes back to the system: that of Arrow's pool, where it is loaded, and the C library's."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    library = _library()
    if library is not None:
        library.malloc_trim(0)
