"""Models: what `--llm` names, resolved once for a session, with the circuits and the caps that outlive a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel

from jaxresearch.config import LLMConfig
from jaxresearch.llm_mix import parse_llms
from jaxresearch.study.study import Study
from jaxresearch.study.view import ModelFactory

if TYPE_CHECKING:
    from pydantic_ai.models import Model


class Models:
    """The models that `llm` names. Raises `ConfigurationError` for a name that cannot be used here."""

    def __init__(self, llm: str, settings: LLMConfig) -> None:
        from jaxresearch.llm import resolve_model
        from jaxresearch.llm_circuit import CircuitBreaker

        bounds = {"timeout_seconds": settings.timeout_seconds, "max_output_tokens": settings.max_output_tokens}
        self._mix = parse_llms(llm)
        self._resolved = {name: resolve_model(name, **bounds) for name in self._mix.models}
        self._circuits = {name: CircuitBreaker() for name in self._mix.models}
        self._gone: set[str] = set()
        """Names that failed fatally beside others in this session: the next session tries them again."""

    def check_caps(self, max_cost: float | None, max_tokens: int | None) -> None:
        """Refuse a cap that could not hold for these models."""
        from jaxresearch.llm_budget import check_capped

        check_capped(list(self._resolved.values()), max_cost_usd=max_cost, max_tokens=max_tokens)

    def of_rounds(self, study: Study, *, max_cost: float | None = None, max_tokens: int | None = None) -> ModelFactory:
        """Makes the model of each round of `study`. The caps are the study's own unless they are given."""
        from jaxresearch.llm import LLMCall, laboratory_model
        from jaxresearch.llm_budget import Bill, LLMBudget
        from jaxresearch.llm_wrappers import FallingBackModel, ResumingModel

        history = study.history
        caps = (
            history.max_cost if max_cost is None else max_cost,
            history.max_tokens if max_tokens is None else max_tokens,
        )
        self.check_caps(*caps)

        def spent() -> Bill:
            costs = study.history.costs
            return Bill(costs.capped_tokens, costs.capped_cost_usd)

        budget = LLMBudget(spent, max_cost_usd=caps[0], max_tokens=caps[1])

        def of_round(record: Callable[[BaseModel], None]) -> Model:
            history = study.history
            recorded = [LLMCall.model_validate(call.record) for call in history.calls]
            names = self._mix.turn(history.rounds).models
            names = tuple(name for name in names if name not in self._gone) or names
            chain = {
                name: laboratory_model(
                    self._resolved[name],
                    on_call=record,
                    first_ordinal=history.costs.llm_calls,
                    budget=budget,
                    circuit=self._circuits[name],
                    hands_over=len(names) > 1,
                )
                for name in names
            }
            named = {id(model): name for name, model in chain.items()}
            model = FallingBackModel(chain.values(), on_fatal=lambda model: self._gone.add(named[id(model)]))
            return ResumingModel(model, recorded) if recorded else model

        return of_round
