"""Approval: under `oversight.approve=code` a person sees each change of the sources before it is traced.

An answer is an event and holds for those sources for the whole study, in `check`, in the experiment, after a resume and for
whatever is built on them. Settings alone need no approval: they are numbers within bounds.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jaxresearch.errors import JaxresearchError
from jaxresearch.proposal import Candidate, Proposal
from jaxresearch.study.events import Approval
from jaxresearch.study.identity import candidate_fingerprint
from jaxresearch.study.journal import Journal
from jaxresearch.study.stopping import Stop
from jaxresearch.text import clean

NO_TERMINAL = JaxresearchError(
    "oversight.approve=code asks a person about each change, and nobody can be asked here: this is no terminal.",
    fix="Run it on a terminal, or with --approve none.",
)


@dataclass(frozen=True)
class CodeChange:
    """What a person is asked about. diff: unified, against the parent's sources."""

    parent: int
    hypothesis: str
    diff: str


@dataclass(frozen=True)
class Answer:
    """approved: None says that the person wants to stop here; the change will be asked about again."""

    approved: bool | None
    reason: str = ""


Approver = Callable[[CodeChange], Awaitable[Answer]]


class Gate:
    """Lets approved sources through. Asks about each other ones once, and records the answer."""

    def __init__(self, journal: Journal, baseline: Candidate, approver: Approver | None, stop: Stop) -> None:
        self._journal, self._approver, self._stop = journal, approver, stop
        self._baseline = sources_fingerprint(baseline)

    def passes(self, candidate: Candidate) -> bool:
        """Whether `candidate` may be traced without asking anybody now."""
        history, sources = self._journal.history, sources_fingerprint(candidate)
        if history.config.oversight.approve == "none" or sources == self._baseline:
            return True
        known = history.approvals.get(sources)
        return known is not None and known.approved

    async def refusal(self, proposal: Proposal, candidate: Candidate, parent: Candidate) -> str | None:
        """Why the sources of `candidate` may not be traced, or None."""
        history = self._journal.history
        sources = sources_fingerprint(candidate)
        if history.config.oversight.approve == "none" or sources == self._baseline:
            return None
        known = history.approvals.get(sources)
        if known is None:
            known = await self._ask(proposal, candidate, parent, sources)
            self._journal.record(known)
        if known.approved:
            return None
        return f"a person refused this change of the sources: {known.reason or 'no reason given'}"

    async def _ask(self, proposal: Proposal, candidate: Candidate, parent: Candidate, sources: str) -> Approval:
        if self._approver is None:
            raise NO_TERMINAL
        change = CodeChange(proposal.parent, proposal.hypothesis, diff_text(parent, candidate))
        answer = await self._approver(change)
        if answer.approved is None:
            self._stop.request()
            await asyncio.Event().wait()  # until the stop cancels the work that waits for the answer
        return Approval(sources=sources, approved=bool(answer.approved), reason=clean(answer.reason)[:500])


def sources_fingerprint(candidate: Candidate) -> str:
    """Of the sources alone, whatever the config."""
    return candidate_fingerprint(Candidate(files=candidate.files))


def diff_text(parent: Candidate, candidate: Candidate) -> str:
    """Unified diff of all files. Only a newline ends a line: what else ends one elsewhere is shown, not lost."""
    lines: list[str] = []
    for path in sorted({*parent.files, *candidate.files}):
        before, after = parent.files.get(path, ""), candidate.files.get(path, "")
        lines += difflib.unified_diff(_lines(before), _lines(after), f"a/{path}", f"b/{path}", lineterm="")
    return "\n".join(lines) + "\n"


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []
