"""greedy, the loop of karpathy/autoresearch:

parent = incumbent
for each free slot:
    proposal = ask the researcher for one change on the parent
    remember it as pending, so that the next slot differs
return the proposals
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.researcher import ask
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView


class Greedy:
    """Builds every proposal on the incumbent, one change at a time, as autoresearch does."""

    class Options(StrategyOptions):
        """greedy has nothing to set."""

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        return await ask_in_turn(view, [view.incumbent.number] * slots)


async def ask_in_turn(view: StudyView, parents: Iterable[int]) -> list[Proposal]:
    """One proposal on each of `parents`, each seeing those before it. What could not be had ends the row, and raises
    `ProposalError` only when it was the first."""
    proposals: list[Proposal] = []
    for parent in parents:
        try:
            proposal = await ask(view, parent)
        except ProposalError:
            if proposals:
                break
            raise
        proposals.append(proposal)
        view = view.with_pending(proposal)
    return proposals
