"""Caps on model calls: never exceeded, requests in flight counted; a study ends at one in good order and goes on."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from fake_openai import FakeOpenAI, message
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from agents.greedy import Greedy
from jaxresearch.errors import ConfigurationError
from jaxresearch.llm import LLMBudgetSpent, LLMCall, laboratory_model, resolve_model
from jaxresearch.llm_budget import Bill, LLMBudget, check_capped, worst_case
from jaxresearch.study.models import Models
from jaxresearch.study.replay import replay
from jaxresearch.study.summary import status_object
from tests.study.fakes import Bench, FakeExecutor, config

MESSAGES = [ModelRequest(parts=[UserPromptPart("x" * 3000)])]
NO_TOOLS = ModelRequestParameters()
MAX_OUTPUT = 500


class Priced(Model):
    """gpt-4o-mini, so that it has a price; a reply takes a moment and costs `share` of the most that it may cost."""

    max_output_tokens = MAX_OUTPUT

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share, self.asked = share, 0

    async def request(self, messages, model_settings, model_request_parameters):
        self.asked += 1
        await asyncio.sleep(0.001)
        worst = worst_case(self, messages, model_settings, model_request_parameters).tokens - MAX_OUTPUT
        usage = RequestUsage(input_tokens=int(self.share * worst), output_tokens=int(self.share * MAX_OUTPUT))
        return ModelResponse(
            parts=[TextPart("yes")], usage=usage, model_name=self.model_name, provider_name=self.system
        )

    @property
    def model_name(self) -> str:
        return "gpt-4o-mini"

    @property
    def system(self) -> str:
        return "openai"


def spend(model: Model, requests: int, **caps) -> tuple[list[LLMCall], list[object]]:
    """`requests` at a time from three laboratory models that share caps, as the slots of one round do."""
    calls: list[LLMCall] = []

    def spent() -> Bill:
        return Bill(
            sum(call.input_tokens + call.output_tokens + call.possible_tokens for call in calls),
            sum((call.cost_usd or 0) + call.possible_cost_usd for call in calls),
        )

    async def all_at_once():
        budget = LLMBudget(spent, **caps)
        ours = itertools.cycle([laboratory_model(model, on_call=calls.append, budget=budget) for _ in range(3)])
        asking = [next(ours).request(MESSAGES, None, NO_TOOLS) for _ in range(requests)]
        return await asyncio.gather(*asking, return_exceptions=True)

    return calls, asyncio.run(all_at_once())


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("unit", ["tokens", "dollars"])
def test_a_cap_is_never_exceeded_by_requests_at_once(unit, share):
    model = Priced(share)
    worst = worst_case(model, MESSAGES, None, NO_TOOLS)
    caps = {"max_tokens": int(7.5 * worst.tokens)} if unit == "tokens" else {"max_cost_usd": 7.5 * worst.cost_usd}
    calls, answers = spend(model, 40, **caps)
    assert sum(call.input_tokens + call.output_tokens for call in calls) <= 7.5 * worst.tokens
    assert sum(call.cost_usd for call in calls) <= 7.5 * worst.cost_usd
    refused = [each for each in answers if isinstance(each, LLMBudgetSpent)]
    assert len(calls) == model.asked == 40 - len(refused)
    assert len(calls) == (7 if share == 1.0 else 22)  # what was reserved and not used comes free for those who wait
    assert f"max_{'tokens' if unit == 'tokens' else 'cost'}: " in refused[0].message
    assert "resume STUDY --max-" in refused[0].fix


def test_what_was_sent_and_not_answered_is_counted_at_its_most():
    class Stalling(Priced):
        async def request(self, *_):
            self.asked += 1
            raise TimeoutError

    model = Stalling()
    worst = worst_case(model, MESSAGES, None, NO_TOOLS)
    calls, answers = spend(model, 5, max_tokens=3 * worst.tokens)
    assert model.asked == 3
    assert [call.possible_tokens for call in calls] == [worst.tokens] * 3
    assert calls[0].possible_cost_usd == pytest.approx(worst.cost_usd)
    assert all(isinstance(each, LLMBudgetSpent) for each in answers)


def test_an_unpriced_model_needs_a_cap_on_tokens_and_the_builtin_one_needs_none():
    unpriced = TestModel(custom_output_text="hello")
    with pytest.raises(ConfigurationError, match=r"max_cost.*no known price") as raised:
        check_capped([unpriced], max_cost_usd=5.0, max_tokens=None)
    assert "--max-tokens" in raised.value.fix
    check_capped([unpriced], max_cost_usd=5.0, max_tokens=1000)
    check_capped([resolve_model("builtin"), Priced()], max_cost_usd=5.0, max_tokens=None)
    assert worst_case(resolve_model("builtin"), MESSAGES, None, NO_TOOLS) == Bill(0, 0.0)
    worst = worst_case(unpriced, MESSAGES, None, NO_TOOLS)
    assert (worst.cost_usd, worst.tokens > 3000) == (None, True)


@pytest.fixture
def provider(monkeypatch):
    rates = itertools.count(2)

    def another(handler) -> None:
        change = {"hypothesis": "a lower rate", "expected_effect": "-0.01", "config": {"lr": 0.01 / next(rates)}}
        body = message(tool="propose_config", arguments=json.dumps(change)).body
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with FakeOpenAI(another) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def go_on(study, **caps):
    models = Models(study.config.llm.model, study.config.llm)
    work = study.run(FakeExecutor(), Greedy(Greedy.Options()), models.of_rounds(study, **caps), **caps)
    return asyncio.run(work)


def test_a_study_stops_at_its_cap_in_good_order_and_goes_on_with_a_higher_one(tmp_path, provider):
    """A reply costs 1,100 tokens, and a request may cost about 20,000."""
    llm = {"model": "openai-chat:gpt-4o-mini"}
    study = Bench(tmp_path / "study", config(6, max_tokens=24_000, llm=llm)).create()
    ending = go_on(study)
    assert (ending.finished, ending.interrupted) == (False, False)
    assert ending.reason.startswith("max_tokens: ")
    kept = len(study.history.contenders)
    assert 0 < kept < 6
    assert study.history.costs.llm_tokens == 1100 * kept <= 24_000
    asyncio.run(replay(study, Greedy(Greedy.Options())))

    assert go_on(study).reason.startswith("max_tokens: ")  # the same cap still holds
    assert len(provider.requests) == kept
    ending = go_on(study, max_tokens=100_000)
    assert ending.finished
    assert len(study.history.contenders) == 6
    assert len(provider.requests) == 6
    status = status_object(study.refresh(), "study")
    assert (status["max_tokens"], status["llm_tokens"], status["llm_unpriced_tokens"]) == (100_000, 6600, 0)
    assert status["llm_cost_usd"] == pytest.approx(6 * (1000 * 0.15e-6 + 100 * 0.6e-6))
    asyncio.run(replay(study, Greedy(Greedy.Options())))


def test_a_cap_in_dollars_that_was_reached_can_be_raised(tmp_path, provider):
    llm = {"model": "openai-chat:gpt-4o-mini"}
    study = Bench(tmp_path / "study", config(3, max_cost=0.0001, llm=llm)).create()
    assert go_on(study).reason.startswith("max_cost: $0.0000 of $0.0001 are used, and the next request")
    assert provider.requests == []
    assert go_on(study, max_cost=1.0).finished
    assert len(study.history.contenders) == 3
    asyncio.run(replay(study, Greedy(Greedy.Options())))
