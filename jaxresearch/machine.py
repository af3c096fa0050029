"""Facts about this machine that the standard library can tell."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def physical_memory_bytes() -> int:
    """Memory of the machine; a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def held_bytes() -> int:
    """Memory that this process alone holds: no files that it has mapped. 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
