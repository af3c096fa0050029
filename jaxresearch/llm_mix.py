"""Several models in one `--llm`: taking turns by share, and falling back.

    anthropic:a@2, openai:b            of three rounds, a answers two and b one
    anthropic:a, vertex:b@20250929@1   a name with an @ in it needs a share of its own
    anthropic:a | openai:b | builtin   b when a can answer no more, builtin when neither can

Turns are by round, so that a conversation stays with one model, and a function of the round's number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxresearch.errors import ConfigurationError

_LARGEST_SHARE = 1000
"""A number above it is a part of the name, such as a date: as a share it would leave the other models no turn."""


@dataclass(frozen=True)
class Turn:
    """Models that stand in for each other, the first one preferred, and their share of the rounds."""

    models: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True)
class LLMMix:
    """What `--llm` asks for."""

    turns: tuple[Turn, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named, once."""
        return tuple(dict.fromkeys(model for turn in self.turns for model in turn.models))

    def turn(self, round_number: int) -> Turn:
        """Whose turn it is: of those behind their share the one that is furthest behind, the first of equals."""
        total = sum(turn.share for turn in self.turns)
        done = [0] * len(self.turns)
        chosen = 0
        for at in range(round_number + 1):
            behind = [turn.share / total * (at + 1) - count for turn, count in zip(self.turns, done, strict=True)]
            chosen = max(range(len(behind)), key=lambda each: (round(behind[each], 9), -each))
            done[chosen] += 1
        return self.turns[chosen]


def parse_llms(text: str) -> LLMMix:
    """`text` as a mix. Raises `ConfigurationError` that names the part which cannot be read."""
    turns = []
    parts = text.split(",")
    for part in parts:
        chain, at, share_text = part.strip().rpartition("@")
        if not at or len(parts) == 1:  # one alone has no share: some models have an @ in their names
            chain, share_text = part.strip(), "1"
        models = tuple(name.strip() for name in chain.split("|"))
        try:
            share = float(share_text)
        except ValueError:
            share = math.nan
        if not all(models) or not 0 < share < math.inf:
            raise ConfigurationError(
                f"llm.model (--llm): {part.strip()!r} cannot be read.",
                fix="Write MODEL, 'MODEL@2, MODEL@1' for turns by share, or 'MODEL | MODEL' for falling back.",
            )
        if share > _LARGEST_SHARE:
            raise ConfigurationError(
                f"llm.model (--llm): {share_text} in {part.strip()!r} is no share, which is at most {_LARGEST_SHARE}.",
                fix=f"If it belongs to the name, say the share too: {part.strip()}@1.",
            )
        turns.append(Turn(models, share))
    return LLMMix(tuple(turns))
