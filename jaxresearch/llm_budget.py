"""Hard caps on what a study's model calls may cost, with the requests in flight counted.

Before a request is sent, the most that it may cost is reserved; what it did cost replaces that once the ledger knows.
A request that does not fit waits for those in flight, and where none is left, the session ends in good order:

    spent, as the ledger has it + reserved for requests in flight + this request's worst case <= the cap

The worst case of a request is one token for each byte that is sent, and `max_output_tokens`. A model without a price is
held by the cap on tokens alone. What no cap can see: a provider that exceeds the output that it was allowed, and a
request in flight when this process is killed, whose answer never came.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from jaxresearch.errors import ConfigurationError
from jaxresearch.llm import LLMBudgetSpent
from jaxresearch.llm_whole import WholeWrapperModel

_HIDDEN_TOKENS = 1024
"""A provider's own words around tools and roles, which it counts as ours."""
_USUAL_OUTPUT_TOKENS = 8192
_MOST_TOKENS = 10**9
"""A count above this is no count: no model reads so much at once."""


@dataclass(frozen=True)
class Bill:
    """What requests cost. tokens: both ways. cost_usd: None when a model has no price."""

    tokens: int = 0
    cost_usd: float | None = 0.0


class LLMBudget:
    """The caps of one session of a study, in US dollars and in tokens; None is no cap.

    spent: what the ledger holds now. Of several tasks that wait, each gets its turn as room comes free.
    """

    def __init__(
        self, spent: Callable[[], Bill], *, max_cost_usd: float | None = None, max_tokens: int | None = None
    ) -> None:
        self._spent = spent
        self._max_cost_usd = max_cost_usd
        self._max_tokens = max_tokens
        self._in_flight: list[Bill] = []
        self._released = asyncio.Event()

    @asynccontextmanager
    async def reserved(self, worst: Bill, model: str) -> AsyncIterator[None]:
        """Room for a request to `model` while the context lasts. Raises `LLMBudgetSpent` when there can be none."""
        while (problem := self._problem(worst, model)) is not None:
            if not self._in_flight:
                raise problem
            await self._released.wait()
        self._in_flight.append(worst)
        try:
            yield
        finally:
            self._in_flight.remove(worst)
            self._released.set()
            self._released = asyncio.Event()

    def _problem(self, worst: Bill, model: str) -> LLMBudgetSpent | None:
        spent = self._spent()
        tokens = spent.tokens + sum(each.tokens for each in self._in_flight)
        cost = (spent.cost_usd or 0.0) + sum(each.cost_usd or 0.0 for each in self._in_flight)
        if self._max_tokens is not None and worst.tokens and tokens + worst.tokens > self._max_tokens:
            return LLMBudgetSpent(
                f"max_tokens: {tokens:,} of {self._max_tokens:,} are used, and the next request to {model} may take "
                f"{worst.tokens:,}",
                fix="Go on with `jaxresearch resume STUDY --max-tokens N`.",
            )
        if self._max_cost_usd is not None and worst.cost_usd and cost + worst.cost_usd > self._max_cost_usd:
            return LLMBudgetSpent(
                f"max_cost: ${cost:.4f} of ${self._max_cost_usd:g} are used, and the next request to {model} may cost "
                f"${worst.cost_usd:.4f}",
                fix="Go on with `jaxresearch resume STUDY --max-cost N`.",
            )
        return None


class BudgetedModel(WholeWrapperModel):
    """Sends no request that `budget` has no room for."""

    def __init__(self, wrapped: Model, budget: LLMBudget) -> None:
        super().__init__(wrapped)
        self._budget = budget

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        worst = worst_case(self.wrapped, messages, model_settings, model_request_parameters)
        async with self._budget.reserved(worst, self.model_id):
            return await self.wrapped.request(messages, model_settings, model_request_parameters)


def worst_case(
    model: Model, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
) -> Bill:
    """The most that this request to `model` may be billed for."""
    if costs_nothing(model):
        return Bill()
    sent = len(ModelMessagesTypeAdapter.dump_json(messages)) + _HIDDEN_TOKENS
    for tool in (*parameters.function_tools, *parameters.output_tools):
        sent += len(json.dumps([tool.name, tool.description, tool.parameters_json_schema]))
    allowed = (settings or {}).get("max_tokens") or getattr(model, "max_output_tokens", _USUAL_OUTPUT_TOKENS)
    return Bill(sent + allowed, price_usd(model, sent, allowed))


def costs_nothing(model: Model) -> bool:
    """Whether `model` says so of itself (a class attribute `costs_nothing`), as the builtin one does."""
    return bool(getattr(model, "costs_nothing", False))


def price_usd(model: Model, input_tokens: int, output_tokens: int) -> float | None:
    """What so many tokens of `model` cost in US dollars by pydantic-ai's price list; None when it has no price."""
    usage = RequestUsage(input_tokens=input_tokens, output_tokens=output_tokens)
    response = ModelResponse(
        parts=[],
        usage=usage,
        model_name=model.model_name,
        provider_name=model.system,
        provider_url=getattr(model, "base_url", None),
    )
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None


def bill_of(response: ModelResponse, model: Model) -> Bill | None:
    """What `response`, which `model` gave, cost; None where it counts no tokens, or in numbers that cannot be.

    Priced as the model that it says it is, and as `model` where that one has no price: else a provider that answers under
    a name of its own would pass by a cap in dollars.
    """
    usage = response.usage
    counts = (usage.input_tokens, usage.output_tokens)
    if costs_nothing(model):
        return Bill(sum(counts), 0.0)
    if not all(type(each) is int and 0 <= each <= _MOST_TOKENS for each in counts) or not usage.input_tokens:
        return None
    cost = _own_price_usd(response)
    return Bill(sum(counts), price_usd(model, *counts) if cost is None else cost)


def _own_price_usd(response: ModelResponse) -> float | None:
    try:
        cost = float(response.cost().total_price if response.usage.cost is None else response.usage.cost)
    except (LookupError, ValueError, AssertionError, AttributeError, TypeError):  # its name may be no text
        return None
    return cost if math.isfinite(cost) and cost >= 0 else None


def may_be_billed(error: BaseException) -> bool:
    """Whether a request that ended in `error` may have been answered, and billed, on the other side.

    Not one that was answered with an error status, or that never left this machine.
    """
    if isinstance(error, ModelHTTPError):
        return False
    return not (isinstance(error, ModelConnectionError) and error.phase in ("pool", "connect"))


def check_capped(models: list[Model], *, max_cost_usd: float | None, max_tokens: int | None) -> None:
    """Refuse a cap in dollars on a model without a price, unless its tokens are capped."""
    if max_cost_usd is None or max_tokens is not None:
        return
    for model in models:
        if not costs_nothing(model) and price_usd(model, 1000, 1000) is None:
            raise ConfigurationError(
                f"max_cost (--max-cost): {model.model_id} has no known price, so dollars cannot cap it.",
                fix="Cap its tokens instead or as well: --max-tokens N.",
            )
