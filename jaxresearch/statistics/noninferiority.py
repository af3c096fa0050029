"""Non-inferiority: is a simpler contender shown to lose less than a margin?

The sequential paired test of `rules.Paired`, asked about differences from which the margin is taken off: a contender that
loses the margin or more passes with probability at most `alpha`, however many looks it gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import assert_never

from jaxresearch.statistics.acceptance import Answer, Discard, Keep, RunIncumbent, RunSeed
from jaxresearch.statistics.noise import NoiseFloor
from jaxresearch.statistics.rules import Paired


@dataclass(frozen=True)
class NonInferiority:
    """Keep: shown to lose less than `margin_bpb` against the reference. The margin was fixed before the contender ran."""

    margin_bpb: float
    alpha: float
    max_runs: int

    def decide(
        self,
        contender: Mapping[int, float],
        reference: Mapping[int, float],
        noise: NoiseFloor | None,
        unusable: AbstractSet[int] = frozenset(),
    ) -> Answer:
        """As `Acceptance.decide`, with the reference in the place of the incumbent."""
        shifted = {seed: score - self.margin_bpb for seed, score in contender.items()}
        answer = Paired(alpha=self.alpha, max_runs=self.max_runs).decide(shifted, reference, noise, unusable)
        match answer:
            case RunSeed() | RunIncumbent():
                return answer
            case Keep(difference=shift, p_value=p_value):
                difference = shift + self.margin_bpb
                return Keep(f"{self._compared(difference)}, p {p_value:.2g}", difference, p_value)
            case Discard(difference=shift, p_value=p_value):
                difference = shift + self.margin_bpb
                return Discard(f"{self._compared(difference)} is not shown", difference, p_value)
            case _:
                assert_never(answer)

    def _compared(self, difference: float) -> str:
        return f"{difference:+.4f} bpb, a loss below {self.margin_bpb:.4f}"
