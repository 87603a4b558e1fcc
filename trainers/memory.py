"""How much memory this machine gives to its processes."""

import os
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may take, in version 2 and 1 of its control groups."""


def memory_bytes() -> int:
    """The machine's memory, or the container's share of it."""
    limits = [Path(path) for path in _LIMITS]
    told = [path.read_text(encoding="ascii").strip() for path in limits if path.exists()]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(int(limit) for limit in told if limit.isdecimal())])
