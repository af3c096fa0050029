"""A circuit breaker for each provider's model, so that one that is down is left alone for a while.

    closed      requests go; `failures` transient failures in a row open it
    open        no request goes for `open_seconds`
    half open   one request goes, on trial: an answer closes the circuit, a transient failure opens it for twice as long,
                up to `longest_seconds`

A model with others to fall back on hands over while its circuit is open; one alone waits. Any answer counts as one, also
a refusal: the provider is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitOpenError(Exception):
    """A model is left alone for `seconds` more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"left alone for {seconds:.0f} s after failing in a row")


class CircuitBreaker:
    """See above. `clock` is in seconds and never goes back."""

    def __init__(
        self,
        *,
        failures: int = 3,
        open_seconds: float = 30.0,
        longest_seconds: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_seconds = open_seconds
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._in_a_row = 0
        self._open_seconds = open_seconds
        self._half_open_at: float | None = None
        self._on_trial = False

    @property
    def closed(self) -> bool:
        return self._half_open_at is None

    def seconds_to_wait(self) -> float:
        """Until a request may go; 0 when one may now. While another is on trial, a second at a time."""
        if self._half_open_at is None:
            return 0.0
        if self._on_trial:
            return min(self._open_seconds, 1.0)
        return max(0.0, self._half_open_at - self._clock())

    def begin(self) -> None:
        """A request goes."""
        self._on_trial = self._half_open_at is not None

    def answered(self) -> None:
        """It was answered, with whatever."""
        self._in_a_row, self._open_seconds = 0, self._first_seconds
        self._half_open_at, self._on_trial = None, False

    def failed(self) -> None:
        """It failed in a way that may pass."""
        self._in_a_row += 1
        if self._on_trial:
            self._open_seconds = min(2 * self._open_seconds, self._longest_seconds)
        if self._on_trial or (self.closed and self._in_a_row >= self._limit):
            self._half_open_at = self._clock() + self._open_seconds
        self._on_trial = False

    def given_up(self) -> None:
        """It was cancelled: that says nothing about the provider."""
        self._on_trial = False
