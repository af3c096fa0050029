"""A model of the laboratory's has one way to its provider: all else is recorded, capped and replayed, or refused."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from jaxresearch.llm import LLMBudgetSpent, LLMCall, ReplayModel, laboratory_model
from jaxresearch.llm_budget import Bill, LLMBudget
from jaxresearch.llm_whole import WholeModel

NEVER_BILLED = {"__aenter__", "__aexit__", "request", "cancel_suspended_response"}


def provider() -> FunctionModel:
    async def streamed(messages, info):
        raise AssertionError("the provider was asked past the ledger")
        yield ""

    return FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart("Halve it.")]), stream_function=streamed)


async def streamed(model) -> str:
    async with Agent(model).run_stream("What next?") as answer:
        return "".join([piece async for piece in answer.stream_text(delta=True)])


def test_a_stream_is_a_whole_reply_recorded_and_replayed():
    calls: list[LLMCall] = []
    assert asyncio.run(streamed(laboratory_model(provider(), on_call=calls.append))) == "Halve it."
    assert [call.output_tokens > 0 for call in calls] == [True]
    assert asyncio.run(streamed(ReplayModel(calls))) == "Halve it."


def test_a_stream_is_held_by_the_caps():
    budget = LLMBudget(Bill, max_tokens=10)
    with pytest.raises(LLMBudgetSpent):
        asyncio.run(streamed(laboratory_model(provider(), on_call=lambda call: None, budget=budget)))


def test_no_other_method_reaches_the_provider():
    """Also none that a later pydantic-ai adds to its wrapper."""
    asking = {
        name
        for name, method in vars(WrapperModel).items()
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(inspect.unwrap(method))
    }
    assert {"request_stream", "batch_create", "count_tokens"} <= asking
    assert asking - NEVER_BILLED <= set(vars(WholeModel))
