"""greedy, the loop of karpathy/autoresearch:

second chances first: a repair for what crashed (and, if asked for, other learning rates for what nearly helped)
parent = incumbent
for each free slot:
    proposal = ask the researcher for one change on the parent
    remember it as pending, so that the next slot differs
return the proposals
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.researcher import ask
from agents.second_chance import second_chances
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView


class Greedy:
    """Builds every proposal on the incumbent, one change at a time, as autoresearch does."""

    class Options(StrategyOptions):
        """repair: once, a code change that crashed. retune: the learning rates of one that nearly helped, once."""

        repair: bool = True
        retune: bool = False

    def __init__(self, options: StrategyOptions) -> None:
        assert isinstance(options, Greedy.Options)
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        owed = await second_chances(view, slots, repair=self.options.repair, retune=self.options.retune)
        for proposal in owed:
            view = view.with_pending(proposal)
        return owed + await ask_in_turn(view, [view.incumbent.number] * (slots - len(owed)), failing=not owed)


async def ask_in_turn(view: StudyView, parents: Iterable[int], *, failing: bool = True) -> list[Proposal]:
    """One proposal on each of `parents`, each seeing those before it. What could not be had ends the row, and raises
    `ProposalError` only when it was the first, and only if `failing`."""
    proposals: list[Proposal] = []
    for parent in parents:
        try:
            proposal = await ask(view, parent)
        except ProposalError:
            if proposals or not failing:
                break
            raise
        proposals.append(proposal)
        view = view.with_pending(proposal)
    return proposals
