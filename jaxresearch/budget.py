"""Budget: what one run may spend, in seconds, steps, tokens or floating-point operations."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Self

from jaxresearch.errors import ConfigurationError

Unit = Literal["seconds", "steps", "tokens", "flops"]

_SUFFIXES: dict[str, tuple[Unit, int]] = {
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "h": ("seconds", 3600),
    "steps": ("steps", 1),
    "tok": ("tokens", 1),
    "flop": ("flops", 1),
}
_MULTIPLIERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?)([kMGTP]?)(steps|tok|flop|s|m|h)")
_EXAMPLES = "Write it like 300s, 5m, 2000steps, 50Mtok or 1e15flop."


@dataclass(frozen=True)
class Budget:
    """An amount of one unit.

    >>> Budget.parse("5m")
    Budget(amount=300.0, unit='seconds')
    >>> str(Budget.parse("50Mtok"))
    '50000000tok'
    >>> str(Budget.parse("500Gflop"))
    '5e11flop'
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget as people write it. Raises `ConfigurationError` with examples of what would be right."""
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(f"budget: {text!r} is not a budget.", fix=_EXAMPLES)
        number, multiplier, suffix = match.groups()
        unit, scale = _SUFFIXES[suffix]
        if multiplier and unit == "seconds":
            raise ConfigurationError(f"budget: {text!r} is not a length of time.", fix=_EXAMPLES)
        amount = float(Decimal(number) * _MULTIPLIERS[multiplier] * scale)  # in floats 1.001ktok is not a whole number
        if not math.isfinite(amount) or amount <= 0:
            raise ConfigurationError(f"budget: {text!r} must be above zero and finite.", fix=_EXAMPLES)
        if unit in ("steps", "tokens") and amount != round(amount):
            raise ConfigurationError(f"budget: {text!r} is not a whole number of {unit}.", fix=_EXAMPLES)
        return cls(amount=amount, unit=unit)

    def __str__(self) -> str:
        suffix = {"seconds": "s", "steps": "steps", "tokens": "tok", "flops": "flop"}[self.unit]
        if self.unit in ("steps", "tokens"):
            return f"{int(self.amount)}{suffix}"
        number = Decimal(repr(self.amount)).normalize()  # repr: the fewest digits that are read back to the last bit
        many = self.unit == "flops" and self.amount >= 1e6
        return f"{number:{'e' if many else 'f'}}{suffix}".replace("e+", "e")
