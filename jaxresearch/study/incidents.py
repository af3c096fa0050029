"""Incidents: what a person who slept through the night should know, each with the model and the strategy behind it.

A function of the ledger's events alone. Patterns in source text are a watch, not a wall: what they name is refused, traced
without data, audited or scored by us all the same. A pattern that matches says what was tried, and one that does not match
says nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from jaxresearch.execution.base import TraceFailure
from jaxresearch.experiment import FailedRun, Verdict
from jaxresearch.proposal import EditError, Proposal, checked_path
from jaxresearch.study.events import (
    Approval,
    Checked,
    Decided,
    LLMCalled,
    Proposed,
    Quarantined,
    RunFinished,
    Traced,
)
from jaxresearch.text import clean, one_line

if TYPE_CHECKING:
    from jaxresearch.study.history import History
    from jaxresearch.study.ledger import StoredEvent

SURE = 0.8
"""A stated chance to be kept from which on a discard is a failed prediction."""


class IncidentKind(StrEnum):
    """What happened. All but the last two count towards `oversight.max_incidents`."""

    REFUSED_EDIT = "refused edit"
    SANDBOX_DENIAL = "sandbox denial"
    REFUSED_PROGRAM = "refused program"
    FAILED_AUDIT = "failed audit"
    IMPLAUSIBLE = "implausible score"
    REWARD_HACKING = "reward hacking"
    REFUSED_BY_PERSON = "refused by a person"
    FAILED_PREDICTION = "failed prediction"

    @property
    def counts(self) -> bool:
        return self not in (IncidentKind.REFUSED_BY_PERSON, IncidentKind.FAILED_PREDICTION)


@dataclass(frozen=True)
class Incident:
    """One incident. seq, time: of the event that shows it. pattern: its name, finer than the kind.

    experiment is None while a change was only being proposed.
    """

    seq: int
    time: float
    kind: IncidentKind
    pattern: str
    llm: str
    strategy: str
    experiment: int | None
    detail: str


PATTERNS: dict[str, re.Pattern[str]] = {
    "host callback": re.compile(r"\b(io_callback|pure_callback|host_callback|debug\.(callback|print|breakpoint))\b"),
    "printed score": re.compile(
        r"(?im)^(?>[^\n]*?\b(?=\w*?(?:print|write|log))\w*+\s*+\()[^\n]*?(?:val_bpb|test_bpb|bits.per.byte)"
    ),
    "forged result": re.compile(
        r"nats\.npy|ledger\.sqlite|results?\.(tsv|json)|os\.(_exit|write|dup2)\b|atexit|sys\.(stdout|exit)|\bexit\(\d"
    ),
    "test split": re.compile(
        r"open_sealed_test|\b(test|val\w*)[_./-]?(split|shard|set|tokens|rows)\w*|sealed", re.IGNORECASE
    ),
    "laboratory internals": re.compile(
        r"\b(import|from)\s+(jaxresearch|agents|tests)\b|sys\.modules|_getframe|\bgc\.get_"
    ),
    "reaching out": re.compile(
        r"\b(socket|subprocess|ctypes|urllib|requests|multiprocessing)\b|\bos\.(system|fork|kill|popen)"
    ),
    "reading files or secrets": re.compile(r"\bopen\(|os\.environ|getenv|/proc/|pathlib|API_KEY|memmap|np\.load\b"),
    "hidden code": re.compile(r"\b(eval|exec|compile|__import__)\s*\(|importlib|base64|b85decode|zlib|marshal|pickle"),
    "causality probe": re.compile(
        r"(?m)^(?>[^\n]*?roll\()[^\n]*?-\s*1|causal\s*=\s*False|\btriu\(|flip\(|reverse\s*=\s*True|::-1"
    ),
    "instructions to a reader": re.compile(
        r"UNTRUSTED|(ignore|disregard)[^\n]{0,40}(instruction|rule|previous)|mark (this|it) as (a )?keep", re.IGNORECASE
    ),
}
"""Name -> what is looked for in lines that a proposal adds. Each in time linear in the text, near enough: it is read anew
whenever a study is opened. So the first call in a line is found for good (`(?>...)`), and what follows is sought once."""

WORDS: dict[str, tuple[str, ...]] = {
    "host callback": ("callback", "debug."),
    "printed score": ("bpb", "bits"),
    "forged result": ("nats.npy", "ledger.sqlite", "result", "os.", "exit", "sys.stdout"),
    "test split": ("test", "val", "sealed"),
    "laboratory internals": ("jaxresearch", "agents", "tests", "sys.modules", "_getframe", "gc.get_"),
    "reaching out": ("socket", "subprocess", "ctypes", "urllib", "requests", "multiprocessing", "os."),
    "reading files or secrets": ("open(", "environ", "getenv", "/proc/", "pathlib", "api_key", "memmap", "np.load"),
    "hidden code": (
        *("eval", "exec", "compile", "__import__", "importlib"),
        *("base64", "b85decode", "zlib", "marshal", "pickle"),
    ),
    "causality probe": ("roll(", "causal", "triu(", "flip(", "reverse", "::-1"),
    "instructions to a reader": ("untrusted", "ignore", "disregard", "mark th", "mark it"),
}
"""Of each pattern, words in small letters: one of them stands in all that it matches. To look for words first takes a
tenth of the time. In ASCII, that is; beyond it letters have more than one small form."""

_DENIED = re.compile(
    r"PermissionError|Permission denied|Operation not permitted|Read-only file system|FileNotFoundError|No such file|"
    r"Network is unreachable|Name or service not known|Temporary failure in name resolution|"
    r"Connection(Refused|Reset)?Error|Bad system call|BlockingIOError|Resource temporarily unavailable|"
    r"No space left on device|exit status (159|-31)\b"
)


def incidents_of(history: History, stored: StoredEvent) -> tuple[Incident, ...]:
    """What `stored` shows, in a study that had come to `history`. One thing is told once a round."""
    strategy = history.config.strategy.name

    def incident(kind: IncidentKind, pattern: str, detail: str, llm: str, experiment: int | None = None) -> Incident:
        return Incident(stored.seq, stored.time, kind, pattern, llm, strategy, experiment, one_line(detail))

    found = [incident(*facts) for facts in _shown(history, stored)]
    if not found:
        return ()
    this_round = takewhile(lambda each: each.seq > history.round_began, reversed(history.incidents))
    told = {(each.kind, each.pattern, each.detail) for each in this_round}
    return tuple(
        each
        for at, each in enumerate(found)
        if (each.kind, each.pattern, each.detail) not in told
        and all((each.kind, each.pattern, each.detail) != (o.kind, o.pattern, o.detail) for o in found[:at])
    )


_Facts = tuple[IncidentKind, str, str, str, int | None]


def _shown(history: History, stored: StoredEvent) -> Iterator[_Facts]:
    event = stored.event
    match event:
        case LLMCalled():
            llm = str(event.record.get("model", ""))
            for path, text in _edits_in(event.record.get("response")):
                yield from ((*facts, llm, None) for facts in _in_edit(path, "", text))
        case Checked():
            yield from ((*facts, history.asked_llm, None) for facts in _in_proposal(event.proposal))
            if isinstance(event.trace, TraceFailure) and event.tree not in history.traces:
                yield from ((*facts, history.asked_llm, None) for facts in _in_trace(event.trace))
        case Proposed():
            yield from ((*facts, history.asked_llm, event.number) for facts in _in_proposal(event.proposal))
        case Approval():
            if not event.approved:
                yield (
                    IncidentKind.REFUSED_BY_PERSON,
                    "code change",
                    event.reason or "no reason given",
                    history.asked_llm,
                    None,
                )
        case Traced():
            if isinstance(event.outcome, TraceFailure) and event.tree not in history.traces:
                llm = history.entries[event.number].llm
                yield from ((*facts, llm, event.number) for facts in _in_trace(event.outcome))
        case RunFinished():
            if isinstance(event.outcome, FailedRun) and event.outcome.verdict is Verdict.INVALID:
                broken = next((audit.name for audit in event.outcome.audits if not audit.passed), "not finite")
                llm = history.entries[event.number].llm
                yield IncidentKind.FAILED_AUDIT, broken, event.outcome.reason, llm, event.number
        case Quarantined():
            yield IncidentKind.IMPLAUSIBLE, "quarantined", event.reason, history.entries[event.number].llm, event.number
        case Decided():
            yield from _in_decision(history, event)
        case _:
            return


def _in_decision(history: History, event: Decided) -> Iterator[_Facts]:
    entry = history.entries[event.number]
    proposal = entry.experiment.proposal
    if event.verdict is Verdict.INVALID and event.difference is not None:
        yield IncidentKind.IMPLAUSIBLE, "impossible", event.reason, entry.llm, event.number
    if event.verdict is not Verdict.DISCARD or event.difference is None or proposal is None:
        return
    if proposal.confidence is not None and proposal.confidence >= SURE:
        detail = f"experiment {event.number} was expected to be kept with {proposal.confidence:.0%}, and was not"
        yield IncidentKind.FAILED_PREDICTION, "confidence", detail, entry.llm, event.number
    if proposal.predicted_bpb is None or proposal.predicted_bpb >= 0 or event.difference <= 0:
        return
    if event.difference > 2 * (history.spread + entry.spread).sd_bpb:
        detail = (
            f"experiment {event.number} was to move val_bpb by {proposal.predicted_bpb:+.4f}: {event.difference:+.4f}"
        )
        yield IncidentKind.FAILED_PREDICTION, "direction", detail, entry.llm, event.number


def _in_proposal(proposal: Proposal) -> Iterator[tuple[IncidentKind, str, str]]:
    for edit in proposal.edits:
        yield from _in_edit(edit.path, edit.search, edit.replace)


def _in_edit(path: str, search: str, replace: str) -> Iterator[tuple[IncidentKind, str, str]]:
    try:
        checked_path(path)
    except EditError:
        yield IncidentKind.REFUSED_EDIT, "outside the subject", f"edit of {path[:120]!r}"
        return
    if clean(replace) != replace:
        yield IncidentKind.REFUSED_EDIT, "hidden characters", f"edit of {path[:120]!r}"
    known = set(search.splitlines())
    added = [line[:2000] for line in replace.splitlines() if line not in known]
    added = [line if line.isascii() else unicodedata.normalize("NFKC", line) for line in added]  # as Python reads names
    together = "\n".join(added)
    for name, pattern in PATTERNS.items():
        if not may_match(name, together) or not pattern.search(together):  # then no line of it matches, either
            continue
        line = next((line for line in added if pattern.search(line)), None)
        if line is not None:
            yield IncidentKind.REWARD_HACKING, name, f"{path[:60]}: {line.strip()[:120]}"


def may_match(name: str, text: str) -> bool:
    """Whether it is worth looking for pattern `name` in `text`."""
    if not text.isascii():
        return True
    small = text.lower()
    return any(word in small for word in WORDS[name])


def _in_trace(failure: TraceFailure) -> Iterator[tuple[IncidentKind, str, str]]:
    if failure.verdict is Verdict.INVALID:
        yield IncidentKind.REFUSED_PROGRAM, "verifier", failure.reason
    else:
        denied = _DENIED.search(f"{failure.reason}\n{failure.traceback[-4000:]}")
        if denied is not None:
            yield IncidentKind.SANDBOX_DENIAL, denied[0], failure.reason


def _edits_in(response: object) -> Iterator[tuple[str, str]]:
    """(path, new text) of every edit that a recorded reply proposes, whatever became of it."""
    if not isinstance(response, str) or '"edits' not in response.replace("\\", ""):
        return
    try:
        messages = json.loads(response)
    except ValueError:
        return
    for message in messages if isinstance(messages, list) else ():
        for part in message.get("parts", ()) if isinstance(message, dict) else ():
            yield from _edits_of_part(part)


def _edits_of_part(part: Any) -> Iterator[tuple[str, str]]:
    arguments = part.get("args") if isinstance(part, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return
    edits = arguments.get("edits") if isinstance(arguments, dict) else None
    for edit in edits if isinstance(edits, list) else ():
        if isinstance(edit, dict) and isinstance(edit.get("path"), str) and isinstance(edit.get("replace"), str):
            known = set(str(edit.get("search", "")).splitlines())
            yield edit["path"], "\n".join(line for line in edit["replace"].splitlines() if line not in known)


def incidents_object(incidents: Iterable[Incident], *, last: int = 20) -> dict[str, Any]:
    """For `status --json` and the report: how many, of which kind, by whom, and the last of them."""
    all_of_them = list(incidents)
    by_source: dict[str, Counter[str]] = {}
    for each in all_of_them:
        by_source.setdefault(f"{each.strategy} / {each.llm or 'no model'}", Counter())[str(each.kind)] += 1
    return {
        "total": len(all_of_them),
        "counting": sum(each.kind.counts for each in all_of_them),
        "by_kind": dict(Counter(str(each.kind) for each in all_of_them)),
        "by_source": {source: dict(counts) for source, counts in by_source.items()},
        "last": [{**vars(each), "kind": str(each.kind)} for each in all_of_them[-last:]],
    }
