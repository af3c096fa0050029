"""What a round of asking the strategy amounts to, in events. The driver records them; replay derives them again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import TracedCandidate
from jaxresearch.proposal import EditError, Proposal
from jaxresearch.strategy import ProposalError, Strategy, StudyView, check_options, strategy_names
from jaxresearch.study.events import Event, ProposalFailed, ProposalRequested, Proposed
from jaxresearch.study.history import History
from jaxresearch.study.stopping import Interrupted
from jaxresearch.study.view import proposal_error
from jaxresearch.text import clean

NOTHING_LEFT = "the strategy has nothing left to try"


def check_fit(history: History) -> None:
    """Raise `ConfigurationError` where the strategy's options do not fit the traced baseline.

    One that is not installed was handed in by a program, which made its options.
    """
    trace, wanted = history.baseline.trace, history.config.strategy
    if isinstance(trace, TracedCandidate) and wanted.name in strategy_names():
        check_options(wanted.name, wanted.options, trace.hyperparameters)


async def asked(strategy: Strategy, view: StudyView, slots: int) -> list[Proposal]:
    """What `strategy` proposes. Whatever calling it raises is raised when this is awaited, also without its `async`.

    What would end the session, though nobody asked it to, is a `ProposalError`.
    """
    try:
        return await strategy.propose(view, slots)
    except (SystemExit, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise
        raise ProposalError(f"the strategy raised {type(error).__name__}: {error}") from error


async def events_of_round(
    asking: Awaitable[list[Proposal]], history: History, request: ProposalRequested
) -> tuple[Event, ...]:
    """What `asking` gives: refusals, then the experiments that it adds; nothing when nothing is left to try.

    A strategy that fails has failed this round only. What ends a session (`Interrupted`, `JaxresearchError`) passes.
    """
    try:
        proposals = await asking
    except (ProposalError, EditError) as error:
        return _no_proposal(request, str(error))
    except (Interrupted, JaxresearchError):
        raise
    except Exception as error:
        return _no_proposal(request, f"the strategy raised {type(error).__name__}: {error}")
    if not isinstance(proposals, list) or not all(isinstance(each, Proposal) for each in proposals):
        return _no_proposal(request, f"the strategy returned something other than proposals: {_kind_of(proposals)}")
    return _accepted(history, request, proposals[: request.slots])


def _kind_of(given: object) -> str:
    if not isinstance(given, list):
        return f"{type(given).__name__} instead of a list"
    return f"{next(type(each).__name__ for each in given if not isinstance(each, Proposal))} in its list"


def _no_proposal(request: ProposalRequested, reason: str) -> tuple[Event, ...]:
    return (ProposalFailed(round=request.round, reason=clean(reason)),)


def _accepted(history: History, request: ProposalRequested, proposals: list[Proposal]) -> tuple[Event, ...]:
    distinct = [each for at, each in enumerate(proposals) if each not in proposals[:at]]
    errors = [(each, proposal_error(history, each)) for each in distinct]
    refused = [ProposalFailed(round=request.round, reason=error) for _, error in errors if error is not None]
    good = [each for each, error in errors if error is None]
    first = len(history.entries)
    return (
        *refused,
        *(Proposed(round=request.round, number=first + at, proposal=each) for at, each in enumerate(good)),
    )
