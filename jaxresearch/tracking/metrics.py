"""What a tracker wants of an event: a flat dictionary of figures. A function of the ledger alone."""

from __future__ import annotations

import math
from typing import Any

from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.study.costs import tokens_of
from jaxresearch.study.events import (
    Decided,
    LLMCalled,
    ProposalFailed,
    Proposed,
    Quarantined,
    RunFinished,
    Stopped,
    TestScored,
    TrialJudged,
    TrialRun,
)
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.text import one_line

_RUN = (
    "val_bpb test_bpb loss steps tokens flops train_seconds compile_seconds eval_seconds audit_seconds probe_seconds "
    "trace_seconds verify_seconds setup_seconds keep_seconds tokens_per_second mfu peak_memory_bytes parameters device"
).split()


def metrics_of(stored: StoredEvent, history: History) -> dict[str, Any] | None:
    """`stored` in figures, and None for an event that has none. `history` is the study with it.

    Keys: `seq`, `time` (seconds since the epoch) and `kind` always; `experiment` where there is one. A verdict carries
    the study's totals up to it. What is not finite or not known is left out.
    """
    facts = _facts(stored, history)
    if facts is None:
        return None
    whole = {"seq": stored.seq, "time": stored.time, "kind": stored.event.kind, **facts}
    return {key: value for key, value in whole.items() if value is not None and _finite(value)}


def _facts(stored: StoredEvent, history: History) -> dict[str, Any] | None:
    match stored.event:
        case Proposed() as event:
            proposal = event.proposal
            return {
                "experiment": event.number,
                "parent": proposal.parent,
                "hypothesis": one_line(proposal.hypothesis, 300),
                "predicted_bpb": proposal.predicted_bpb,
                "confidence": proposal.confidence,
            }
        case RunFinished() as event:
            return {"experiment": event.number, "shared_from": event.shared_from, **_run(event.outcome)}
        case TestScored() as event:
            return {"experiment": event.number, **_run(event.outcome)}
        case TrialRun() as event:
            return {"arm": one_line(event.arm), **_run(event.outcome)}
        case TrialJudged() as event:
            return {"experiment": event.number, "needed": event.needed, "difference": event.difference}
        case Quarantined() as event:
            return {"experiment": event.number, "difference": event.difference, "reason": one_line(event.reason, 300)}
        case Decided() as event:
            return {
                "experiment": event.number,
                "verdict": str(event.verdict),
                "reason": one_line(event.reason, 300),
                "val_bpb": history.entries[event.number].experiment.val_bpb,
                "difference": event.difference,
                "p_value": event.p_value,
                **_totals(history),
            }
        case LLMCalled() as event:
            record = event.record
            return {"model": record.get("model"), "tokens": tokens_of(event), "cost_usd": record.get("cost_usd")}
        case ProposalFailed() as event:
            return {"reason": one_line(event.reason, 300)}
        case Stopped() as event:
            return {"reason": one_line(event.reason, 300), "finished": event.finished, **_totals(history)}
        case _:
            return None


def _run(outcome: RunOutcome) -> dict[str, Any]:
    if isinstance(outcome, CompletedRun):
        return {"seed": outcome.seed, **{name: getattr(outcome, name) for name in _RUN}}
    return {"seed": outcome.seed, "failed": str(outcome.verdict), "reason": one_line(outcome.reason, 300)}


def _totals(history: History) -> dict[str, Any]:
    costs = history.costs
    return {
        "incumbent": history.incumbent_number,
        "best_val_bpb": history.incumbent.experiment.val_bpb,
        "wall_seconds": costs.wall_seconds,
        "accelerator_seconds": costs.paid_seconds,
        "llm_cost_usd": costs.llm_cost_usd,
        "llm_tokens": costs.llm_tokens,
    }


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
