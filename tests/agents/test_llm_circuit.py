"""A provider that is down is left alone for a while, and what stands in for it answers meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import FunctionModel

from jaxresearch.llm import FatalLLMError, LLMCall, ReplayModel, laboratory_model
from jaxresearch.llm_circuit import CircuitBreaker
from jaxresearch.llm_wrappers import Backoff, FallingBackModel


class World:
    """A clock that only sleeping moves, and two providers, each down until a time."""

    def __init__(self, *, first_until: float = 0.0, second_until: float = 0.0) -> None:
        self.now = 0.0
        self.until = {"first": first_until, "second": second_until}
        self.asked: list[tuple[str, float]] = []
        self.calls: list[LLMCall] = []
        self.circuits = {name: CircuitBreaker(clock=lambda: self.now) for name in self.until}

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def provider(self, name: str) -> FunctionModel:
        def answer(messages, info) -> ModelResponse:
            self.asked.append((name, self.now))
            if self.now < self.until[name]:
                raise ModelHTTPError(status_code=503, model_name=name, body="down")
            return ModelResponse(parts=[TextPart(name)])

        return FunctionModel(answer, model_name=name)

    def model(self, *names: str, attempts: int = 6):
        chain = [
            laboratory_model(
                self.provider(name),
                on_call=self.calls.append,
                backoff=Backoff(attempts=attempts, first_seconds=1, sleep=self.sleep, uniform=lambda low, high: low),
                circuit=self.circuits[name],
                hands_over=len(names) > 1,
            )
            for name in names
        ]
        return FallingBackModel(chain, sleep=self.sleep) if len(chain) > 1 else chain[0]


async def ask(model) -> str:
    reply = await model.request([ModelRequest(parts=[])], None, ModelRequestParameters())
    (part,) = reply.parts
    return part.content


def test_the_life_of_a_circuit():
    now = 0.0
    circuit = CircuitBreaker(failures=2, open_seconds=10, longest_seconds=30, clock=lambda: now)

    def fail() -> float:
        circuit.begin()
        circuit.failed()
        return circuit.seconds_to_wait()

    assert [fail(), fail()] == [0, 10]
    now = 9.0
    assert circuit.seconds_to_wait() == 1
    now = 10.0
    assert circuit.seconds_to_wait() == 0
    circuit.begin()
    assert circuit.seconds_to_wait() > 0  # one on trial is enough
    circuit.given_up()
    assert circuit.seconds_to_wait() == 0  # cancelled: another one may try
    waits = []
    for _ in range(3):
        waits.append(fail())
        now += waits[-1]
    assert waits == [20, 30, 30]
    circuit.begin()
    circuit.answered()
    assert (circuit.closed, fail(), fail()) == (True, 0, 10)  # as new


def test_an_answer_between_failures_keeps_it_closed():
    circuit = CircuitBreaker(failures=2, clock=lambda: 0.0)
    for _ in range(5):
        circuit.failed()
        circuit.answered()
    assert circuit.closed


def test_the_fallback_answers_while_the_circuit_is_open_and_hands_back():
    world = World(first_until=50)

    async def a_night() -> list[str]:
        answers = []
        for _ in range(12):
            answers.append(await ask(world.model("first", "second")))  # a new chain for each round, as in a study
            await world.sleep(10)
        return answers

    answers = asyncio.run(a_night())
    assert answers == ["second"] * 9 + ["first"] * 3
    tried = [at for name, at in world.asked if name == "first"]
    assert tried == [0, 1, 3, 33, 93, 103, 113]  # three in a row open it for 30 s, a failed trial for 60 s
    failures = [call.failure for call in world.calls if call.model == "function:first"]
    assert failures == ["backoff"] * 4 + [None] * 3
    assert asyncio.run(_replayed(world.calls, 12)) == answers


async def _replayed(calls: list[LLMCall], times: int) -> list[str]:
    model = ReplayModel(calls)
    return [await ask(model) for _ in range(times)]


def test_where_all_are_down_it_waits_for_the_first_to_come_back():
    world = World(first_until=1e9, second_until=40)
    assert asyncio.run(ask(world.model("first", "second"))) == "second"
    assert world.now >= 40


def test_where_none_comes_back_it_ends_in_one_line():
    world = World(first_until=1e9, second_until=1e9)
    with pytest.raises(FatalLLMError, match=r"none of function:first, function:second answers") as raised:
        asyncio.run(ask(world.model("first", "second")))
    assert "resume STUDY" in raised.value.fix
    assert len(world.asked) < 20


def test_one_alone_waits_for_its_circuit():
    world = World(first_until=100)
    assert asyncio.run(ask(world.model("first"))) == "first"
    assert [at for _, at in world.asked] == [0, 1, 3, 33, 93, 213]


def test_of_many_at_once_only_one_is_on_trial():
    world = World(first_until=1e9)

    async def slots() -> list[object]:
        return await asyncio.gather(*(ask(world.model("first", attempts=4)) for _ in range(5)), return_exceptions=True)

    answers = asyncio.run(slots())
    assert all(isinstance(each, FatalLLMError) for each in answers)
    early = [at for _, at in world.asked if at < 30]
    assert len(early) <= 7  # 5 requests that were on their way, not 5 x 4


def test_a_refusal_is_an_answer():
    world = World()
    circuit = world.circuits["first"]
    circuit.failed()
    circuit.failed()

    def refuse(messages, info):
        raise ModelHTTPError(status_code=401, model_name="first", body="no")

    model = laboratory_model(FunctionModel(refuse), on_call=world.calls.append, circuit=circuit)
    with pytest.raises(FatalLLMError):
        asyncio.run(ask(model))
    circuit.failed()
    assert circuit.closed
