"""Idea: a source edit that applies to any descendant of the subject, or declines. Hint: a prior on a number.
RunSize: how much text one run sees, and how large a model it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxresearch.budget import Unit
from jaxresearch.proposal import Edit, Scalar

GPT, OPTIMIZER, RECIPE = (f"models/{name}.py" for name in ("gpt", "optimizer", "recipe"))
_TOKENS_PER_PARAMETER = 20

Edits = Callable[[Mapping[str, str]], list[Edit] | None]


@dataclass(frozen=True)
class Idea:
    """An edit of the subject's source.

    tag: names it, once and for all. family: ideas that succeed or fail together. promise: prior chance to help.
    edits: source files -> the edits, or None where the text that it changes is not there any more.
    """

    tag: str
    family: str
    promise: float
    hypothesis: str
    edits: Edits


@dataclass(frozen=True)
class Hint:
    """What is known beforehand about one hyperparameter: the way to go (+1 up, -1 down, 0 unknown), and why.

    values: for one that is not a number, or whose choices have an order of their own: what to try first.
    halves: the first step is to half the value, and so is each that follows one that helped.
    """

    direction: int = 0
    promise: float = 0.25
    why: str = ""
    values: tuple[Scalar, ...] = ()
    halves: bool = False


@dataclass(frozen=True)
class RunSize:
    """unit: of the budget that binds one run. tokens: that it trains on. parameters: of its model."""

    unit: Unit
    tokens: int
    parameters: int

    @property
    def is_starved(self) -> bool:
        """Whether a smaller model would see more text, and see far too little now.

        About 20 tokens a parameter spend a given compute best (arXiv 2203.15556); below a quarter of that the model is
        too large for its budget. Where tokens or steps are what is given, a smaller model sees no more of them.
        """
        return self.unit in ("flops", "seconds") and self.tokens < _TOKENS_PER_PARAMETER / 4 * self.parameters


def swaps(*changes: tuple[str, str, str]) -> Edits:
    """An edit function of (path, search, replace), in turn.

    It declines unless each `search` occurs exactly once, and where a `replace` stands already.
    """

    def edits(files: Mapping[str, str]) -> list[Edit] | None:
        texts = dict(files)
        for path, search, replace in changes:
            text = texts.get(path, "")
            if text.count(search) != 1 or (search in replace and replace in text):
                return None
            texts[path] = texts[path].replace(search, replace)
        return [Edit(path=path, search=search, replace=replace) for path, search, replace in changes]

    return edits
