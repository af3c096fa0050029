"""Where a move may be tried: once on one parent, again on another only where it did well, never the same candidate."""

from __future__ import annotations

import numpy as np

from agents import choice
from agents.beam import Beam
from agents.choice import Tried, choose
from agents.library import Idea
from agents.lineage import Ground
from jaxresearch.proposal import Edit
from jaxresearch.testing import play


def edit(number: int, parent: int, tag: str, effect: float | None, verdict: str = "discard") -> Tried:
    return Tried(number, verdict, effect, tag, {}, has_edits=True, threshold=0.001, parent=parent)


def value(number: int, parent: int, name: str, before: float, after: float, verdict: str = "discard") -> Tried:
    return Tried(number, verdict, 0.01, f"{name}={after}", {name: (before, after)}, threshold=0.001, parent=parent)


def ground(tried: list[Tried], parent: int, *refused: str) -> Ground:
    return Ground(tried, parent, frozenset(refused))


def test_a_move_is_open_on_another_parent_only_where_it_did_well():
    tried = [
        edit(1, 0, "swiglu", -0.02, "keep"),
        edit(2, 0, "gelu", -0.005),
        edit(3, 0, "post-norm", 0.01),
        edit(4, 0, "cube", None, "crash"),
        edit(5, 0, "tanh", None, "pending"),
        edit(6, 0, "qk-norm", -0.01),
    ]
    assert ground(tried, 0).open == set()
    assert ground(tried, 1).open == {"gelu", "qk-norm"}  # swiglu is in its line
    assert ground(tried, 6).open == {"swiglu", "gelu"}
    assert ground(tried, 6, "gelu").open == {"swiglu"}
    assert ground(tried, 1).closed == {"swiglu", "post-norm", "cube", "tanh"}
    lost = [*tried, edit(7, 6, "gelu", 0.02)]
    assert "gelu" not in ground(lost, 1).open  # it lost there: no third parent


def test_the_same_candidate_by_another_way_is_known():
    tried = [edit(1, 0, "a", -0.01), edit(2, 0, "b", -0.01), edit(3, 1, "b", -0.01)]
    assert ground(tried, 2).repeats("a", {}, has_edits=True)
    assert not ground(tried, 3).repeats("c", {}, has_edits=True)
    assert ground(tried, 0).repeats("a & b", {}, has_edits=True)
    numbers = [value(1, 0, "lr", 0.1, 0.2), value(2, 1, "lr", 0.2, 0.3), value(3, 0, "wd", 0.0, 0.5)]
    assert ground(numbers, 1).repeats("lr=0.1", {"lr": 0.1}, has_edits=False)  # the baseline
    assert ground(numbers, 0).repeats("lr=0.3", {"lr": 0.3}, has_edits=False)
    assert not ground(numbers, 3).repeats("lr=0.3", {"lr": 0.3}, has_edits=False)
    lost = [Tried(1, "infrastructure", None, "a", {}, has_edits=True)]
    assert not ground(lost, 0).repeats("a", {}, has_edits=True)


def swap(word: str):
    def edits(files):
        return [Edit(path="f", search="# here", replace=f"{word}\n# here")] if word not in files["f"] else None

    return edits


def test_an_edit_that_helped_one_parent_is_offered_to_another():
    library = (Idea("one", "x", 0.1, "one", swap("one")), Idea("two", "y", 0.1, "two", swap("two")))
    tried = [edit(1, 0, "one", -0.01), edit(2, 0, "two", 0.01)]
    rng = np.random.default_rng(0)
    there = choose([], {"f": "# here"}, [*tried, edit(3, 0, "three", -0.02)], frozenset(), rng, library, parent=3)
    assert (there.tag, there.promise > 0.3) == ("one", True)
    assert choice.RETRIED_PROMISE == 0.5


def test_a_beam_carries_what_helped_from_one_member_to_another():
    """In a whole study: some tag is tried on more than one parent, and no candidate comes twice (`play` sees to it)."""
    for seed in range(3):
        played = play(Beam, experiments=60, seed=seed)
        places: dict[str, set[int]] = {}
        for proposal in (each for row in played.rounds for each in row):
            places.setdefault(proposal.tag, set()).add(proposal.parent)
        assert any(len(parents) > 1 for parents in places.values())
