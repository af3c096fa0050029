"""Second chances: what an idea is owed before it is dropped. Each is one proposal, once, right after the round.

repair: a code change that crashed when it ran goes back to the model, once, with the reason and the traceback;
    the answer is put on top of its edits, so that what runs is the idea itself, on the parent that it was meant for
re-tuning: a code change that was discarded, and did not clearly lose, runs once more with all learning rates moved;
    a change judged at its parent's rates loses unfairly. At most one experiment in `RETUNE_EVERY` is spent so
a second chance has none of its own
"""

from __future__ import annotations

import re

from agents.digest import effect, trusted_reason, untrusted_crash
from agents.researcher import ask, find_problem
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.proposal import EditError, Hyperparameter, Proposal, Scalar, apply
from jaxresearch.strategy import ProposalError, StudyView

RETUNE_EVERY = 5
RETUNE_FACTOR = 1.5
CLEAR_LOSS = 0.25  # of the deviation between seeds: on paired seeds, differences scatter about that much
_RATE = re.compile(r"(?:^|_)(?:lr|learning_rate)$")
_TAGS = (" lr-up", " lr-down")


async def second_chances(view: StudyView, slots: int, *, repair: bool, retune: bool) -> list[Proposal]:
    """At most `slots` proposals that are owed to the last `slots` experiments."""
    proposals: list[Proposal] = []
    for experiment in view.experiments[1:][-slots:]:
        proposal = None
        if repair and experiment.verdict is Verdict.CRASH:
            proposal = await repaired(view, experiment)
        elif retune and experiment.verdict is Verdict.DISCARD:
            proposal = await retuned(view, experiment)
        if proposal is not None:
            proposals.append(proposal)
            view = view.with_pending(proposal)
    return proposals


async def repaired(view: StudyView, crashed: Experiment) -> Proposal | None:
    """`crashed` without what made it crash; None where it is owed nothing, or the model had no repair."""
    idea = crashed.proposal
    owed = idea is not None and idea.edits and idea.repairs is None
    if idea is None or not owed or any(each.repairs == crashed.number for each in _proposals(view)):
        return None
    try:
        apply(idea, view.candidate(idea.parent))
        answer = await ask(view, crashed.number, _repair_task(view, crashed), repairs=crashed.number)
    except (ProposalError, EditError):
        return None
    proposal = answer.model_copy(
        update={
            "parent": idea.parent,
            "hypothesis": f"Repair of #{crashed.number}: {idea.hypothesis}"[:500],
            "config": {**idea.config, **answer.config},
            "edits": (*idea.edits, *answer.edits),
            "tag": idea.tag or answer.tag,
            "predicted_bpb": idea.predicted_bpb,
            "repairs": crashed.number,
        }
    )
    return None if find_problem(proposal, view) else proposal


def _repair_task(view: StudyView, crashed: Experiment) -> str:
    why = (
        f"Experiment {crashed.number}, on which you build, crashed: {trusted_reason(crashed)}. Repair it: keep its "
        "idea, and change only what made it crash. There is no second repair."
    )
    shown = crashed.number == len(view.experiments) - 1  # the digest shows the last experiment's
    return why if shown else f"{why}\n{untrusted_crash(view, crashed)}"


async def retuned(view: StudyView, discarded: Experiment) -> Proposal | None:
    """`discarded` with other learning rates; None where it is owed nothing."""
    idea, moved = discarded.proposal, effect(view, discarded)
    if idea is None or not idea.edits or idea.repairs is not None or moved is None or view.noise_sd is None:
        return None
    rates = [each for each in view.hyperparameters(discarded.number) if _is_rate(each)]
    if moved > CLEAR_LOSS * view.noise_sd or not rates or any(each.name in idea.config for each in rates):
        return None
    tried = _proposals(view)
    alike = [each for each in tried if (each.edits, each.parent) == (idea.edits, idea.parent)]
    spent = sum(each.tag.endswith(_TAGS) for each in tried)
    if len(alike) > 1 or spent * RETUNE_EVERY >= len(tried):
        return None
    factor, tag = (RETUNE_FACTOR, _TAGS[0]) if _upwards(view) else (1 / RETUNE_FACTOR, _TAGS[1])
    proposal = idea.model_copy(
        update={
            "hypothesis": f"#{discarded.number} again, with the learning rates times {factor:.2f}: {idea.hypothesis}"[
                :500
            ],
            "config": {**idea.config, **{each.name: _scaled(each, factor) for each in rates}},
            "tag": f"{idea.tag}{tag}",
            "notes": (),
        }
    )
    if find_problem(proposal, view) or await view.check(proposal):
        return None
    return proposal


def _is_rate(each: Hyperparameter) -> bool:
    return bool(_RATE.search(each.name)) and isinstance(each.value, float) and None not in (each.low, each.high)


def _scaled(each: Hyperparameter, factor: float) -> Scalar:
    assert isinstance(each.value, float)
    assert each.low is not None
    assert each.high is not None
    return min(max(float(f"{each.value * factor:.3g}"), each.low), each.high)


def _upwards(view: StudyView) -> bool:
    """Where rates went when it helped, by the sum of the effects of moving one alone; a coin where none was moved."""
    pull = 0.0
    for each in view.experiments[1:]:
        moved = effect(view, each)
        if each.proposal is None or each.proposal.edits or len(each.proposal.config) != 1 or moved is None:
            continue
        ((name, value),) = each.proposal.config.items()
        before = {known.name: known.value for known in view.hyperparameters(each.proposal.parent)}.get(name)
        if _RATE.search(name) and isinstance(value, float) and isinstance(before, float):
            pull += -moved if value > before else moved
    return pull > 0 if pull else bool(view.generator().random() < 0.5)


def _proposals(view: StudyView) -> list[Proposal]:
    return [each.proposal for each in view.experiments if each.proposal is not None]
