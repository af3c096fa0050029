"""The laboratory's wrappers around any pydantic-ai model: bounded, recording, retrying, replaying.

Every attempt is recorded, the failed ones too: RetryingModel(BudgetedModel(RecordingModel(BoundedModel(model)))).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings, merge_model_settings
from pydantic_ai.usage import RequestUsage

from jaxresearch.errors import JaxresearchError
from jaxresearch.llm import FatalLLMError, LLMCall, classify, fatal_error, known_secrets, redact
from jaxresearch.llm_budget import bill_of, may_be_billed, worst_case
from jaxresearch.llm_circuit import CircuitBreaker, CircuitOpenError
from jaxresearch.llm_http import long_body
from jaxresearch.llm_whole import WholeModel, WholeWrapperModel

warnings.filterwarnings("ignore", category=Warning, module=r"pydantic(_ai)?(\.|$)")
"""They quote replies, over several lines, into the middle of a study's display. What came of a reply is in the ledger."""

LONGEST_REPLY_BYTES = 1_000_000
"""A reply above this is refused: nothing that a researcher may ask for is near it, and the ledger keeps replies."""


class BoundedModel(WholeWrapperModel):
    """Gives up on a request after `timeout_seconds` in all, however slowly bytes come, and caps the reply.

    An answer that is too long to read (`llm_http`) is a reply that cannot be used.
    """

    def __init__(self, wrapped: Model, *, timeout_seconds: float, max_output_tokens: int) -> None:
        super().__init__(wrapped)
        self.max_output_tokens = max_output_tokens
        self._timeout_seconds = timeout_seconds
        self._bounds = ModelSettings(timeout=timeout_seconds, max_tokens=max_output_tokens, max_retries=0)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        settings = merge_model_settings(self._bounds, model_settings)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self.wrapped.request(messages, settings, model_request_parameters)
        except TimeoutError:
            raise TimeoutError(f"no reply within {self._timeout_seconds:g} s") from None
        except Exception as error:
            if (too_long := long_body(error)) is not None:  # it would be as long again: not to be asked anew
                raise UnexpectedModelBehavior(str(too_long)) from None
            raise


class RecordingModel(WholeWrapperModel):
    """Hands each attempt to `on_call` as an `LLMCall`, with the values of API keys taken out.

    Keys are also taken out of what is sent and of what is returned, so that ledger, prompt and proposal agree.
    """

    def __init__(
        self,
        wrapped: Model,
        on_call: Callable[[LLMCall], None],
        *,
        first_ordinal: int = 0,
        secrets: Iterable[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(wrapped)
        self._on_call = on_call
        self._next_ordinal = first_ordinal
        self._secrets = known_secrets() if secrets is None else tuple(secrets)
        self._clock = clock

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        ordinal, self._next_ordinal = self._next_ordinal, self._next_ordinal + 1
        started = self._clock()
        messages, request = self._redacted(messages)
        call = LLMCall(ordinal=ordinal, model=self.model_id, request=request)

        def unknown() -> dict[str, float]:
            worst = worst_case(self.wrapped, messages, model_settings, model_request_parameters)
            return {"possible_tokens": worst.tokens, "possible_cost_usd": worst.cost_usd or 0.0}

        try:
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
        except BaseException as error:
            failure = classify(error) if isinstance(error, Exception) else "backoff"  # cancelled: asked again on resume
            foreign = failure == "proposal" and not type(error).__module__.startswith("pydantic_ai")
            problem = f"{'no usable reply: ' if foreign else ''}{type(error).__name__}: {error}"
            text = redact(problem, self._secrets)[:4000]
            self._record(call, started, error=text, failure=failure, **(unknown() if may_be_billed(error) else {}))
            if foreign or (failure == "proposal" and redact(str(error), self._secrets) != str(error)):
                raise UnexpectedModelBehavior(text) from None  # its message will be read: it must not hold the key
            raise
        bill = bill_of(response, self.wrapped)
        spent = unknown() if bill is None else {**_counted(response), "cost_usd": bill.cost_usd}
        response = response if bill is not None else replace(response, usage=RequestUsage())
        try:
            kept, reply = self._written(response)
        except Exception as error:
            problem = redact(f"the reply cannot be written down: {type(error).__name__}: {error}", self._secrets)[:500]
            self._record(call, started, error=problem, failure="proposal", **spent)
            raise UnexpectedModelBehavior(problem) from None
        if len(reply.encode()) > LONGEST_REPLY_BYTES:
            problem = f"the reply has {len(reply.encode())} bytes, above the limit of {LONGEST_REPLY_BYTES}"
            self._record(call, started, error=problem, failure="proposal", **spent)
            raise UnexpectedModelBehavior(problem)
        self._record(call, started, response=reply, **spent)
        return kept

    def _record(self, call: LLMCall, started: float, **what: object) -> None:
        self._on_call(call.model_copy(update={"seconds": self._clock() - started, **what}))

    def _redacted(self, messages: list[ModelMessage]) -> tuple[list[ModelMessage], str]:
        text = ModelMessagesTypeAdapter.dump_json(messages).decode()
        clean = redact(text, self._secrets)
        return (messages, text) if clean == text else (ModelMessagesTypeAdapter.validate_json(clean), clean)

    def _written(self, response: ModelResponse) -> tuple[ModelResponse, str]:
        """`response` and its JSON. Raises where that cannot be written, read again by resume and replay, or sent back."""
        for call in response.tool_calls:
            json.dumps(call.args, allow_nan=False)  # what an API takes: an object may hold a NaN, its text may not
        (kept,), reply = self._redacted([response])
        if len(reply) <= LONGEST_REPLY_BYTES:
            ModelMessagesTypeAdapter.validate_json(reply)
        assert isinstance(kept, ModelResponse)
        return kept, reply


def _counted(response: ModelResponse) -> dict[str, int]:
    return {"input_tokens": response.usage.input_tokens, "output_tokens": response.usage.output_tokens}


@dataclass(frozen=True)
class Backoff:
    """How patient the ladder is: `attempts` in all; waits double from `first_seconds` up to `longest_seconds`.

    A provider's Retry-After counts instead of the doubling, up to `longest_retry_after_seconds`; one that asks for more
    ends the wait at once, and a date that has passed counts for nothing, as clocks differ. `jitter` is the share by which
    a wait may grow. Jitter only moves time, never a decision.
    """

    attempts: int = 6
    first_seconds: float = 2.0
    longest_seconds: float = 60.0
    longest_retry_after_seconds: float = 300.0
    jitter: float = 0.25
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def seconds(self, attempt: int, error: BaseException) -> float | None:
        """How long to wait after failed attempt number `attempt` (from 1); None when waiting is over."""
        if attempt >= self.attempts:
            return None
        asked = getattr(error, "retry_after", None)
        if asked is not None and asked > self.longest_retry_after_seconds:
            return None
        wait = asked if asked else min(self.longest_seconds, self.first_seconds * 2 ** (attempt - 1))
        return wait * (1 + self.uniform(0, self.jitter))


class RetryingModel(WholeWrapperModel):
    """Walks the error ladder: waits for what may pass, raises `FatalLLMError` for what cannot.

    While `circuit` is open it waits for that too, or, with `hands_over`, raises `CircuitOpenError` at once.
    """

    def __init__(
        self, wrapped: Model, backoff: Backoff, *, circuit: CircuitBreaker | None = None, hands_over: bool = False
    ) -> None:
        super().__init__(wrapped)
        self._backoff = backoff
        self._circuit = circuit or CircuitBreaker(failures=sys.maxsize)
        self._hands_over = hands_over

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        attempt = 0
        while True:
            await self._until_the_circuit_lets_it()
            attempt += 1
            self._circuit.begin()
            try:
                response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            except JaxresearchError:
                self._circuit.given_up()
                raise
            except Exception as error:
                failure = classify(error)
                if failure == "proposal":
                    self._circuit.answered()
                    raise
                self._circuit.failed() if failure == "backoff" else self._circuit.answered()
                wait = self._backoff.seconds(attempt, error) if failure == "backoff" else None
                if wait is None:
                    raise fatal_error(error, self.model_id, attempts=attempt) from None  # the cause may hold the key
            except BaseException:
                self._circuit.given_up()
                raise
            else:
                self._circuit.answered()
                return response
            if not self._hands_over or self._circuit.closed:
                await self._backoff.sleep(wait)

    async def _until_the_circuit_lets_it(self) -> None:
        while (seconds := self._circuit.seconds_to_wait()) > 0:
            if self._hands_over:
                raise CircuitOpenError(seconds)
            await self._backoff.sleep(seconds)


class FallingBackModel(WholeWrapperModel):
    """Asks each of `models` until one can answer: a fatal error of one is the next one's turn, for good, and `on_fatal`
    is told which; an open circuit is the next one's turn until it closes. Where all circuits are open it waits for the
    first, `patience` times.

    Each is a laboratory model of its own (`hands_over`), so every attempt stands in the ledger under its model.
    """

    def __init__(
        self,
        models: Iterable[Model],
        *,
        on_fatal: Callable[[Model], None] = lambda model: None,
        patience: int = 6,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._models = list(models)
        self._on_fatal = on_fatal
        self._patience = patience
        self._sleep = sleep
        super().__init__(self._models[0])

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        for attempt in range(self._patience):
            seconds = []
            for model in list(self._models):
                try:
                    return await model.request(messages, model_settings, model_request_parameters)
                except FatalLLMError:
                    if len(self._models) == 1:
                        raise
                    self._models.remove(model)
                    self._on_fatal(model)
                except CircuitOpenError as error:
                    seconds.append(error.seconds)
            if attempt < self._patience - 1:
                await self._sleep(min(seconds))
        names = ", ".join(model.model_id for model in self._models)
        raise FatalLLMError(
            f"llm: none of {names} answers.",
            fix="Nothing is lost: `jaxresearch resume STUDY` goes on, also with another --llm.",
        )


class ReplayModel(WholeModel):
    """Answers from recorded calls, in their order, with no key and no network.

    Attempts that were made again later (the ladder's, and fatal ones that a resume followed) are passed over; a reply
    that could not be used fails again. A fatal call with nothing after it is fatal again.
    """

    def __init__(self, calls: Iterable[LLMCall]) -> None:
        super().__init__()
        known = [call for call in calls if call.failure != "backoff"]
        self._calls = [call for call in known[:-1] if call.failure != "fatal"] + known[-1:]

    @property
    def unused(self) -> int:
        """How many recorded calls were not asked for yet."""
        return len(self._calls)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        if not self._calls:
            raise FatalLLMError("replay: the strategy asks the model more often than the ledger has replies.")
        return _recorded_answer(self._calls.pop(0))

    @property
    def model_name(self) -> str:
        return "replay"

    @property
    def system(self) -> str:
        return "jaxresearch"


class ResumingModel(WholeWrapperModel):
    """Answers from the calls that a round which was cut off has recorded (they were paid for), then asks `wrapped`."""

    def __init__(self, wrapped: Model, calls: Iterable[LLMCall]) -> None:
        super().__init__(wrapped)
        self._calls = [call for call in calls if call.failure not in ("backoff", "fatal")]

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        if self._calls:
            return _recorded_answer(self._calls.pop(0))
        return await self.wrapped.request(messages, model_settings, model_request_parameters)


def _recorded_answer(call: LLMCall) -> ModelResponse:
    if call.failure == "fatal":
        raise FatalLLMError(call.error)
    if call.failure == "proposal":
        raise UnexpectedModelBehavior(call.error)
    (response,) = ModelMessagesTypeAdapter.validate_json(call.response)
    assert isinstance(response, ModelResponse)
    return response
