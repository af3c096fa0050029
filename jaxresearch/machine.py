"""Facts about this machine that the standard library can tell."""

from __future__ import annotations

import os
import sys


def physical_memory_bytes() -> int:
    """Memory of the machine; a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
