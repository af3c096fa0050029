"""independent, the control that shows what feedback is worth:

hide every score and verdict: what was proposed stays visible, so that nothing is proposed twice
for each free slot:
    proposal = ask the researcher for one change on the baseline
    remember it as pending, so that the next slot differs
return the proposals
"""

from __future__ import annotations

from dataclasses import replace

from agents.greedy import ask_in_turn
from jaxresearch.experiment import Experiment
from jaxresearch.proposal import Proposal
from jaxresearch.strategy import StrategyOptions, StudyView


class Independent:
    """Asks for changes of the baseline and never tells what came of them. A control without feedback."""

    class Options(StrategyOptions):
        """independent has nothing to set."""

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        return await ask_in_turn(without_outcomes(view), [0] * slots)


def without_outcomes(view: StudyView) -> StudyView:
    """`view` as if every experiment still waited: neither scores, nor verdicts, nor what `check` says of them."""

    async def check(proposal: Proposal) -> str | None:
        finding = await view.check(proposal)
        repeats = finding is not None and finding.startswith("Same ")  # it would name the verdict
        return "This was proposed before. Try another." if repeats else finding

    waiting = [Experiment(number=each.number, parent=each.parent, proposal=each.proposal) for each in view.experiments]
    return replace(view, experiments=(view.baseline, *waiting[1:]), incumbent=view.baseline, check=check)
