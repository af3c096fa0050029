"""What of program.md even those obey who cannot read: lines that begin with `Taboo:`.

    Taboo: depth, swiglu, models/optimizer.py

names hyperparameters, tags or families of ideas, and files, which no strategy and no model is to touch. All else in
program.md is for models that read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jaxresearch.proposal import Proposal

_TABOO = re.compile(r"^[ \t>*-]*taboos?[*_]*[ \t]*:[*_]*[ \t]*(.+)$", re.IGNORECASE | re.MULTILINE)


def taboos(instructions: str) -> frozenset[str]:
    """The names on the `Taboo:` lines, in lower case."""
    lines = (line for line in _TABOO.findall(instructions))
    names = (name.strip(" \t`*_.'\"").lower() for line in lines for name in re.split(r"[,;]|\band\b", line))
    return frozenset(name for name in names if name)


def touched(names: Iterable[str], forbidden: frozenset[str]) -> str | None:
    """The first of `names` that is forbidden, as it was written."""
    return next((name for name in names if name.lower() in forbidden), None)


def names_in(proposal: Proposal) -> list[str]:
    """What `proposal` touches: hyperparameters, files, and its idea's name."""
    return [*proposal.config, *(edit.path for edit in proposal.edits), *proposal.tag.split(" & ")]
