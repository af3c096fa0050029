"""The builtin model's library: source edits of the subject, and hints about its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxresearch.proposal import Edit, Scalar


@dataclass(frozen=True)
class Idea:
    """An edit of the subject's source.

    tag: names it, once and for all. family: ideas that succeed or fail together. promise: prior chance to help.
    edits: source files -> the edits, or None where the text that it changes is not there any more.
    """

    tag: str
    family: str
    hypothesis: str
    promise: float
    edits: Callable[[Mapping[str, str]], list[Edit] | None]


@dataclass(frozen=True)
class Hint:
    """What is known beforehand about one hyperparameter: the way to go (+1 up, -1 down, 0 unknown), and why."""

    direction: int = 0
    promise: float = 0.3
    why: str = ""
    values: tuple[Scalar, ...] = ()


HINTS: dict[str, Hint] = {}
LIBRARY: tuple[Idea, ...] = ()
