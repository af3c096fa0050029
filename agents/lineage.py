"""What was tried where: which moves are closed on a parent, and which candidates exist already.

The history tells it: an experiment's ideas are its parent's and its own tag, its values its parent's and its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxresearch.proposal import Scalar

_UNTRIED = ("infrastructure", "duplicate")


class Past(Protocol):
    """An earlier experiment, as `agents.choice.Tried` has it."""

    @property
    def number(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def verdict(self) -> str: ...
    @property
    def tag(self) -> str: ...
    @property
    def config(self) -> Mapping[str, tuple[Scalar | None, Scalar]]: ...
    @property
    def has_edits(self) -> bool: ...
    @property
    def helped(self) -> bool: ...
    @property
    def nearly_helped(self) -> bool: ...


Made = tuple[frozenset[str], frozenset[tuple[str, Scalar]]]
"""A candidate by what was done to the baseline: tags of edits, and values."""


class Ground:
    """What is known around experiment `parent`.

    closed: tags that are not to be tried there. open: tags that helped, or nearly, elsewhere and were not tried there.
    """

    def __init__(self, tried: Sequence[Past], parent: int, refused: frozenset[str]) -> None:
        self._roots: dict[str, Scalar | None] = {}
        self._made: dict[int, Made] = {0: (frozenset(), frozenset())}
        for past in tried:
            changes = {name: after for name, (_, after) in past.config.items()}
            self._remember_roots(past)
            self._made[past.number] = self._after(past.parent, past.tag, changes, has_edits=past.has_edits)
        self._parent = parent
        self._existing = {self._made[past.number] for past in tried if past.verdict not in _UNTRIED}
        self._existing.add(self._made[0])
        line = self._line(tried)
        lasting = {past.tag for past in tried if past.helped or past.nearly_helped}
        lost = {past.tag for past in tried if not (past.helped or past.nearly_helped)}
        here = {past.tag for past in tried if past.parent == parent or past.number in line}
        self.open = lasting - lost - here - refused
        self.closed = ({past.tag for past in tried} | refused) - self.open

    def repeats(self, tag: str, config: Mapping[str, Scalar], *, has_edits: bool) -> bool:
        """Whether the move makes a candidate that exists."""
        return self._after(self._parent, tag, config, has_edits=has_edits) in self._existing

    def _after(self, parent: int, tag: str, config: Mapping[str, Scalar], *, has_edits: bool) -> Made:
        ideas, values = self._made.get(parent, self._made[0])
        if has_edits:
            ideas = ideas | {part for part in tag.split(" & ") if "=" not in part}
        merged = {**dict(values), **config}
        kept = {(name, value) for name, value in merged.items() if self._roots.get(name, ...) != value}
        return ideas, frozenset(kept)

    def _remember_roots(self, past: Past) -> None:
        changed = dict(self._made.get(past.parent, self._made[0])[1])
        for name, (before, _) in past.config.items():
            if name not in changed and before is not None:
                self._roots.setdefault(name, before)

    def _line(self, tried: Sequence[Past]) -> set[int]:
        """The parent and its ancestors."""
        parents = {past.number: past.parent for past in tried}
        line, at = set(), self._parent
        while at in parents:
            line.add(at)
            at = parents[at]
        return line
