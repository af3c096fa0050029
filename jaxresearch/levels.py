"""The names of isolation, strongest first, and what `sandbox.require` asks of them."""

from __future__ import annotations

from typing import Literal

from jaxresearch.errors import JaxresearchError

Tier = Literal["bubblewrap", "landlock", "subprocess"]
"""What isolates one process. `subprocess` isolates nothing: it keeps honest programs tidy."""

Level = Literal["bubblewrap", "landlock", "bubblewrap+network", "landlock+network", "subprocess"]
"""A tier, and whether the network is left open to it, as runs on several machines need."""

TIERS: tuple[Tier, ...] = ("bubblewrap", "landlock", "subprocess")
LEVELS: tuple[Level, ...] = ("bubblewrap", "landlock", "bubblewrap+network", "landlock+network", "subprocess")


def level_of(tier: Tier, *, network: bool) -> Level:
    """The level of a process in `tier`, with or without the network."""
    match tier:
        case "bubblewrap":
            return "bubblewrap+network" if network else "bubblewrap"
        case "landlock":
            return "landlock+network" if network else "landlock"
        case "subprocess":
            return "subprocess"


def meets(level: Level, require: str | None) -> bool:
    """Whether `level` is as strong as `require`; None asks for nothing."""
    return require is None or LEVELS.index(level) <= _rank(require)


def stricter(first: str | None, second: str | None) -> Level | None:
    """The stronger of two requirements; None is none."""
    named = [_rank(each) for each in (first, second) if each is not None]
    return LEVELS[min(named)] if named else None


def _rank(level: str) -> int:
    if level not in LEVELS:
        raise JaxresearchError(f"sandbox.require: {level!r} is no tier.", fix=f"One of {', '.join(LEVELS)}.")
    return LEVELS.index(level)
