"""Facts about this machine that the standard library can tell."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OURS = Path("/proc/self/cgroup")


def physical_memory_bytes() -> int:
    """Memory of the machine; a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def usable_memory_bytes() -> int:
    """The machine's memory, or less where a control group that we are in has a limit: a container's, or a Slurm job's."""
    return min(physical_memory_bytes(), *_group_limits(_OURS, _GROUPS))


def held_bytes() -> int:
    """Memory that this process alone holds, swapped out or not; no files that it maps. 0 where the system is silent."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def _group_limits(ours: Path, groups: Path) -> Iterator[int]:
    """Limits of the memory groups that a process is in, from its own up: in bytes, a very large number for none.

    ours: its /proc/PID/cgroup, `0::PATH` of version 2 and `N:memory:PATH` of version 1. groups: where they are mounted.
    """
    yield sys.maxsize
    try:
        lines = ours.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):  # a container may see its own group as the root, whatever its path says
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # `max`, or a group that is not shown here
                yield int((folder / name).read_text())
