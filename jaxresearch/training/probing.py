"""Probing: the state of a training, scored at a few shares of its budget, and the training cut where it is hopeless."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax

from jaxresearch.experiment import Audit

Leaves = list[jax.Array]


@dataclass
class Probing:
    """What a training is asked at its checkpoints.

    score: a state's bits per byte, None where it has none. checkpoints: shares of the budget, ascending. limits: by
    checkpoint, the bits per byte above which the training ends there. audit: of a state that was scored. points:
    (checkpoint, bits per byte) so far. seconds: that scoring and auditing them took in this process. broken: the audit
    that failed; the training ends there.
    """

    score: Callable[[Leaves], float | None]
    checkpoints: tuple[float, ...]
    limits: Mapping[float, float]
    audit: Callable[[Leaves], Audit]
    points: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    broken: Audit | None = None
    _next: int = 0

    def take_up(self, points: Sequence[tuple[float, float]]) -> str | None:
        """Go on where a training was left that had given `points`; why it is to be cut all the same, or None.

        The limits may be other ones than it had: then it ends at the point at which it would have ended under them.
        """
        self.points = []
        for at, value in points:
            self.points.append((at, value))
            if (why := self._hopeless(at, value, at)) is not None:
                return why
        self._next = sum(at <= self.points[-1][0] for at in self.checkpoints) if self.points else 0
        return None

    def due(self, progress: float) -> bool:
        return self._next < len(self.checkpoints) and progress >= self.checkpoints[self._next]

    def probe(self, progress: float, leaves: Leaves) -> str | None:
        """Score and audit `leaves` for the checkpoint that is due; why the training is to be cut, or None.

        Where one step passes several checkpoints, the last of them is meant: the others would show a later state.
        """
        while self.due(progress):
            self._next += 1
        at = self.checkpoints[self._next - 1]
        started = time.monotonic()
        value = self.score(leaves)
        found = self.audit(leaves) if value is not None else None
        self.seconds += time.monotonic() - started
        if value is None or found is None:
            return None
        if not found.passed:
            self.broken = found
            return f"{found.name}: {found.detail}"
        self.points.append((at, value))
        return self._hopeless(at, value, progress)

    def _hopeless(self, at: float, value: float, progress: float) -> str | None:
        limit = self.limits.get(at)
        if limit is None or value <= limit:
            return None
        return f"cut at {progress:.0%} of its budget: {value:.4f} bpb there, where the limit is {limit:.4f}"
