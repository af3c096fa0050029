"""Several models in one `--llm`: turns by share, falling back, and what the ledger and a replay make of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import FunctionModel

from agents.greedy import Greedy
from jaxresearch.errors import ConfigurationError
from jaxresearch.llm import FatalLLMError, LLMCall, ReplayModel, laboratory_model, resolve_model
from jaxresearch.llm_mix import parse_llms
from jaxresearch.llm_wrappers import FallingBackModel, ResumingModel
from jaxresearch.study.models import Models
from tests.study.fakes import Bench, FakeExecutor, config


def test_turns_follow_the_shares_and_are_a_function_of_the_round():
    mix = parse_llms("anthropic:a@2, openai:b | builtin, ollama:llama3:8b")
    assert mix.models == ("anthropic:a", "openai:b", "builtin", "ollama:llama3:8b")
    turns = [mix.turn(number).models[0] for number in range(40)]
    assert Counter(turns) == {"anthropic:a": 20, "openai:b": 10, "ollama:llama3:8b": 10}
    assert Counter(turns[:4]) == {"anthropic:a": 2, "openai:b": 1, "ollama:llama3:8b": 1}
    assert parse_llms("builtin").turn(7).models == ("builtin",)
    assert parse_llms("vertex:claude@20250929").models == ("vertex:claude@20250929",)
    assert parse_llms("vertex:claude@20250929@1, builtin").turn(0).models == ("vertex:claude@20250929",)


def test_a_date_in_a_name_is_not_taken_for_a_share():
    with pytest.raises(ConfigurationError, match=r"20250929 in .* is no share.*vertex:claude@20250929@1"):
        parse_llms("vertex:claude@20250929, builtin")


@pytest.mark.parametrize("text", ["", "a,", "a@, b", "a@-1, b", "a@x, b", "a |", "b, a@inf"])
def test_what_cannot_be_read_is_named(text: str):
    with pytest.raises(ConfigurationError, match="--llm"):
        parse_llms(text)


def answering(text: str) -> FunctionModel:
    return FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart(text)]), model_name=text)


def refused(messages, info) -> ModelResponse:
    raise ModelHTTPError(status_code=401, model_name="first", body="no")


def asked(model, times: int) -> list[str]:
    async def ask() -> list[str]:
        message = [ModelRequest(parts=[])]
        replies = [await model.request(message, None, ModelRequestParameters()) for _ in range(times)]
        return [part.content for reply in replies for part in reply.parts if isinstance(part, TextPart)]

    return asyncio.run(ask())


def test_the_next_model_answers_when_one_can_answer_no_more():
    calls: list[LLMCall] = []
    chain = [laboratory_model(each, on_call=calls.append) for each in (FunctionModel(refused), answering("second"))]
    assert asked(FallingBackModel(chain), 2) == ["second", "second"]
    assert [call.failure for call in calls] == ["fatal", None, None]  # the first is not asked again
    assert asked(ReplayModel(calls), 2) == ["second", "second"]
    with pytest.raises(FatalLLMError):
        asked(FallingBackModel([laboratory_model(FunctionModel(refused), on_call=calls.append)]), 1)


def test_a_model_that_failed_fatally_is_asked_once_in_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its key is wrong: so it is in the next round too. A later session tries it again, as the key may be another."""
    asks: list[str] = []

    def first(messages, info) -> ModelResponse:
        asks.append("first")
        return refused(messages, info)

    known = {"a": FunctionModel(first, model_name="first"), "b": resolve_model("builtin")}
    monkeypatch.setattr("jaxresearch.llm.resolve_model", lambda name, **bounds: known[name])
    study = Bench(tmp_path / "study", config(3, llm={"model": "a | b"})).create()
    for session in (1, 2):
        models = Models(study.config.llm.model, study.config.llm)
        strategy = Greedy(Greedy.Options())
        asyncio.run(study.run(FakeExecutor(), strategy, models.of_rounds(study), experiments=3 * session))
        assert len(asks) == session
    assert len(study.history.contenders) == 6


def test_recorded_replies_come_first_and_are_not_recorded_again():
    calls: list[LLMCall] = []
    first = asked(laboratory_model(answering("paid"), on_call=calls.append), 2)
    live = laboratory_model(answering("live"), on_call=calls.append)
    assert asked(ResumingModel(live, list(calls)), 3) == [*first, "live"]
    assert len(calls) == 3
