"""Meter: how much of a Budget is spent, and whether another step fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxresearch.budget import Budget


class BudgetTooSmallError(ValueError):
    """Not even one step fits the budget, or the budget cannot be metered for this program."""


@dataclass
class Meter:
    """Spends a budget step by step. Seconds are our own monotonic clock's, from `start()`.

    steps, tokens and flops are exact: a step that would outrun the budget is not begun. Seconds overrun by at most the
    steps in flight.
    """

    budget: Budget
    clock: Callable[[], float] = time.monotonic
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    _started: float | None = field(default=None, init=False)

    def start(self, spent_seconds: float = 0.0) -> None:
        """Start the clock, with `spent_seconds` on it where a training is taken up again."""
        self._started = self.clock() - spent_seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the laboratory does meanwhile is not the run's time."""
        began = self.clock()
        yield
        if self._started is not None:
            self._started += self.clock() - began

    @property
    def seconds(self) -> float:
        return 0.0 if self._started is None else self.clock() - self._started

    @property
    def spent(self) -> float:
        match self.budget.unit:
            case "seconds":
                return self.seconds
            case "steps":
                return float(self.steps)
            case "tokens":
                return float(self.tokens)
            case "flops":
                return self.flops

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        return min(1.0, self.spent / self.budget.amount)

    def fits(self, *, tokens: int, flops: float | None) -> bool:
        """Whether one more step of `tokens` tokens and `flops` FLOPs may begin."""
        match self.budget.unit:
            case "seconds":
                return self.seconds < self.budget.amount
            case "steps":
                return self.steps + 1 <= self.budget.amount
            case "tokens":
                return self.tokens + tokens <= self.budget.amount
            case "flops":
                if flops is None:
                    raise BudgetTooSmallError("a loop's trip count is unknown, so FLOPs cannot be counted")
                return self.flops + flops <= self.budget.amount

    def spend(self, *, tokens: int, flops: float | None) -> None:
        self.steps += 1
        self.tokens += tokens
        self.flops += flops or 0.0
