"""Costs: what a study has used, added up run by run and call by call."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxresearch.experiment import CompletedRun, RunOutcome
from jaxresearch.study.events import LLMCalled


@dataclass(frozen=True)
class Costs:
    """What a study has used. Accelerator seconds are compiling, training and scoring, infrastructure failures included;
    shared runs cost nothing. `discarded_seconds` came on top, for runs ahead of time that were not needed. `flops` are
    those of trainings, cut and failed ones included. Wall seconds are those of its sessions. `llm_cost_usd` leaves
    unpriced models out; their tokens are `llm_unpriced_tokens`. `llm_possible_...`: the most that requests may have cost
    which were sent and never answered; only the caps count them."""

    accelerator_seconds: float = 0.0
    discarded_seconds: float = 0.0
    train_seconds: float = 0.0
    flops: float = 0.0
    wall_seconds: float = 0.0
    llm_calls: int = 0
    llm_tokens: int = 0
    llm_cost_usd: float = 0.0
    llm_unpriced_tokens: int = 0
    llm_possible_tokens: int = 0
    llm_possible_cost_usd: float = 0.0

    @property
    def paid_seconds(self) -> float:
        """Accelerator seconds, those of runs included that were not needed."""
        return self.accelerator_seconds + self.discarded_seconds

    @property
    def capped_tokens(self) -> int:
        """What `max_tokens` is held against."""
        return self.llm_tokens + self.llm_possible_tokens

    @property
    def capped_cost_usd(self) -> float:
        """What `max_cost` is held against."""
        return self.llm_cost_usd + self.llm_possible_cost_usd

    def with_run(self, outcome: RunOutcome) -> Costs:
        return replace(
            self,
            accelerator_seconds=self.accelerator_seconds + accelerator_seconds(outcome),
            train_seconds=self.train_seconds + outcome.train_seconds,
            flops=self.flops + outcome.flops,
        )

    def with_call(self, event: LLMCalled) -> Costs:
        record = event.record
        return replace(
            self,
            llm_calls=self.llm_calls + 1,
            llm_tokens=self.llm_tokens + tokens_of(event),
            llm_cost_usd=self.llm_cost_usd + float(record.get("cost_usd") or 0.0),
            llm_unpriced_tokens=self.llm_unpriced_tokens + (tokens_of(event) if record.get("cost_usd") is None else 0),
            llm_possible_tokens=self.llm_possible_tokens + int(record.get("possible_tokens") or 0),
            llm_possible_cost_usd=self.llm_possible_cost_usd + float(record.get("possible_cost_usd") or 0.0),
        )


def tokens_of(event: LLMCalled) -> int:
    """Tokens of one model request, both ways."""
    return sum(int(event.record.get(name) or 0) for name in ("input_tokens", "output_tokens"))


def accelerator_seconds(outcome: RunOutcome) -> float:
    """Of compiling, training and scoring, early scores included; all that is known of a run that failed."""
    if isinstance(outcome, CompletedRun):
        return outcome.compile_seconds + outcome.train_seconds + outcome.probe_seconds + outcome.eval_seconds
    return outcome.total_seconds
