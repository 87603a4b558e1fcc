"""What this machine gives to its processes: memory and CPUs."""

import math
import os
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may take, in version 2 and 1 of its control groups."""

_CPU_TIME = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of CPU time a container may take in so many of wall time, in version 2."""


def memory_bytes() -> int:
    """The machine's memory, or the container's share of it."""
    limits = [Path(path) for path in _LIMITS]
    told = [path.read_text(encoding="ascii").strip() for path in limits if path.exists()]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(int(limit) for limit in told if limit.isdecimal())])


def usable_cpus() -> int:
    """The logical CPUs that this process may run on, or the container's share of them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = _CPU_TIME.read_text(encoding="ascii").split() if _CPU_TIME.exists() else []
    if len(told) == 2 and told[0].isdecimal():
        cpus = min(cpus, max(1, math.floor(int(told[0]) / int(told[1]))))
    return cpus
