"""Acceptance: is a contender better than the incumbent? A rule sees scores only, and answers with a reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from jaxresearch.statistics.noise import NoiseFloor


@dataclass(frozen=True)
class RunSeed:
    """Not known yet: run the contender with `seed` too."""

    seed: int


@dataclass(frozen=True)
class RunIncumbent:
    """Not known yet: the contender's next pair needs the incumbent with `seed`."""

    seed: int


@dataclass(frozen=True)
class Keep:
    """The contender is better. `difference`: mean paired difference in bits per byte, below zero is better.

    p_value: None where the rule makes no test.
    """

    reason: str
    difference: float
    p_value: float | None


@dataclass(frozen=True)
class Discard:
    """The contender is not shown to be better. `p_value` is None when it was given up before a test."""

    reason: str
    difference: float
    p_value: float | None = None


Answer = RunSeed | RunIncumbent | Keep | Discard


class Acceptance(Protocol):
    """Decides on a contender, one run at a time. Match the answer with `assert_never`."""

    @property
    def false_keep_rate(self) -> float:
        """The probability with which a contender of no effect is kept, at most."""
        ...

    def decide(
        self,
        contender: Mapping[int, float],
        incumbent: Mapping[int, float],
        noise: NoiseFloor | None,
        unusable: AbstractSet[int] = frozenset(),
    ) -> Answer:
        """The next thing to do, from val_bpb by seed of both.

        contender: the runs so far, empty at first. incumbent: all of its runs, never empty. noise: standard deviation
        of a paired difference, pooled over the study's pairs, this contender's own among them; None while there is no
        replicated pair. unusable: seeds on which the incumbent gives no score, so that no pair can be had.
        A pure function: asked again with the same scores, it answers the same.
        """
        ...
