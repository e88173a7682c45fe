"""Memory limit of this process: that of its container, if there is one, not the host's memory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes: the machine's memory, or a lower limit of a cgroup (version 1 or 2) or of the address space.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits(root)]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min(limits if address_space == resource.RLIM_INFINITY else [*limits, address_space])


def _cgroup_limits(root: Path) -> Iterator[int]:
    """The limits of this process's cgroup and of each group above it, as far as they are mounted here."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers and group:
            tops, names = [mounted, mounted / "unified"], ["memory.max", "memory.high"]
        elif "memory" in controllers.split(","):
            tops, names = [mounted / "memory"], ["memory.limit_in_bytes"]
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        folders = (top.joinpath(*parts[:depth]) for top in tops for depth in range(len(parts) + 1))
        yield from (limit for folder in folders for name in names if (limit := _number(folder / name)) is not None)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
