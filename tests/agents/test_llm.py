"""Models by name, what is recorded of their calls, and what each failure of a provider becomes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys

import pytest
from fake_openai import FakeOpenAI, Reply, completion, message, refusal
from fake_study import FakeStudy
from pydantic_ai.models import infer_model

from agents.builtin import BuiltinModel
from agents.greedy import Greedy
from agents.researcher import ask
from jaxresearch.errors import ConfigurationError
from jaxresearch.llm import (
    Backoff,
    FatalLLMError,
    LLMCall,
    RecordingModel,
    ReplayModel,
    classify,
    known_secrets,
    laboratory_model,
    redact,
    resolve_model,
)
from jaxresearch.strategy import ProposalError

KEY = "sk-secret-0123456789abcdef"
CHANGE = {"hypothesis": "deeper is better", "expected_effect": "-0.01", "config": {"depth": 3}, "tag": "depth-3"}
GOOD = message(tool="propose_config", arguments=json.dumps(CHANGE))
BAD_JSON = message(tool="propose_config", arguments='{"hypothesis": ')
WRONG_SCHEMA = message(tool="propose_config", arguments='{"config": "deeper"}')
HTML = Reply(200, b"<html><body>Gateway</body></html>", content_type="text/html")


class Session:
    """One proposal asked of a fake provider, and all that was recorded and waited."""

    def __init__(self, provider: FakeOpenAI, monkeypatch, *, timeout_seconds: float = 5, attempts: int = 3) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        self.provider, self.calls, self.waits = provider, [], []

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        self.model = laboratory_model(
            "openai-chat:gpt-4o-mini",
            on_call=self.calls.append,
            timeout_seconds=timeout_seconds,
            backoff=Backoff(attempts=attempts, sleep=sleep, uniform=lambda low, high: low),
        )
        self.study = FakeStudy(self.model)

    def propose(self):
        return asyncio.run(ask(self.study.view(), 0))

    @property
    def failures(self) -> list[str | None]:
        return [call.failure for call in self.calls]


@pytest.fixture
def session(monkeypatch):
    opened = []

    def open_session(*replies, **options) -> Session:
        opened.append(FakeOpenAI(*replies))
        return Session(opened[-1], monkeypatch, **options)

    yield open_session
    for provider in opened:
        provider.close()


def test_a_good_reply_is_a_proposal_and_is_recorded(session):
    asked = session(GOOD)
    assert asked.propose().config == {"depth": 3}
    (call,) = asked.calls
    assert (call.ordinal, call.input_tokens, call.output_tokens, call.failure) == (0, 1000, 100, None)
    assert call.cost_usd == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)
    assert call.model == "openai:gpt-4o-mini"
    assert "round seed=1" in call.request
    assert "propose_config" in call.response
    assert call.seconds > 0
    sent = json.loads(asked.provider.requests[0])
    assert {tool["function"]["name"] for tool in sent["tools"]} == {
        "read_source", "list_hyperparameters", "history", "relevant_history", "show_experiment", "notebook",
        "propose_config", "propose_code", "propose_both",
    }  # fmt: skip


@pytest.mark.parametrize("first", [BAD_JSON, WRONG_SCHEMA, message("Let me think about it.")])
def test_a_bad_reply_is_repaired(session, first):
    asked = session(first, GOOD)
    assert asked.propose().config == {"depth": 3}
    assert len(asked.calls) == 2


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        pytest.param(BAD_JSON, 3, id="bad-json-forever"),
        pytest.param(WRONG_SCHEMA, 3, id="wrong-schema-forever"),
        pytest.param(message("No."), 3, id="plain-text"),
        pytest.param(message("", finish="length"), None, id="truncated"),
        pytest.param(HTML, 1, id="html"),
        pytest.param(completion([]), 1, id="no-choices"),
        pytest.param(Reply(200, b"{}"), 1, id="empty-object"),
        pytest.param(Reply(200, b'{"choices": [{"mess'), 1, id="cut-off"),
        pytest.param(message("x" * 10_000_000), 1, id="ten-megabytes"),
        pytest.param(message(tool="history", arguments='{"first": 0}'), 16, id="tool-loop"),
        pytest.param(refusal(400, "context_length_exceeded", "too long"), 1, id="context-too-long"),
        pytest.param(refusal(400, "invalid_request_error", "no"), 1, id="bad-request"),
    ],
)
def test_an_unusable_reply_costs_one_proposal(session, reply, calls):
    asked = session(reply)
    with pytest.raises(ProposalError) as raised:
        asked.propose()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert asked.waits == []
    assert calls is None or len(asked.calls) == calls
    assert sum(len(call.model_dump_json()) for call in asked.calls) < 2_000_000


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        pytest.param(refusal(401, "invalid_api_key", f"Incorrect API key: {KEY}"), "refused the API key", id="401"),
        pytest.param(refusal(404, "model_not_found", "no such model"), "no model openai:gpt-4o-mini", id="unknown"),
        pytest.param(refusal(429, "insufficient_quota", "You exceeded your quota"), "quota", id="quota"),
    ],
)
def test_what_cannot_pass_stops_the_study_with_one_line(session, reply, says):
    asked = session(reply)
    with pytest.raises(FatalLLMError) as raised:
        asked.propose()
    assert says in raised.value.message
    assert "resume" in raised.value.fix
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert asked.failures == ["fatal"]
    assert asked.waits == []


def test_retry_after_is_honoured(session):
    busy = refusal(429, "rate_limit_exceeded", "slow down", Retry_After="7")
    asked = session(busy, busy, GOOD)
    assert asked.propose().config == {"depth": 3}
    assert asked.waits == [7.0, 7.0]
    assert asked.failures == ["backoff", "backoff", None]
    assert [call.ordinal for call in asked.calls] == [0, 1, 2]


def test_without_it_waits_double_and_end(session):
    asked = session(refusal(429, "rate_limit_exceeded", "slow down"), attempts=4)
    with pytest.raises(FatalLLMError, match="did not answer in 4 attempts"):
        asked.propose()
    assert asked.waits == [2, 4, 8]


def test_a_wait_of_hours_is_not_waited(session):
    asked = session(refusal(429, "rate_limit_exceeded", "slow down", Retry_After="86400"))
    with pytest.raises(FatalLLMError, match="1 attempt:"):
        asked.propose()
    assert asked.waits == []


def test_server_errors_pass(session):
    asked = session(Reply(500, b"oops"), Reply(503, b"<html>"), GOOD)
    assert asked.propose().config == {"depth": 3}
    assert asked.failures == ["backoff", "backoff", None]


def test_server_errors_for_ever_end_the_study(session):
    asked = session(Reply(500, b"oops"))
    with pytest.raises(FatalLLMError, match="did not answer in 3 attempts"):
        asked.propose()
    assert asked.failures == ["backoff"] * 3


@pytest.mark.parametrize("how", ["stall", "drip", "drop"])
def test_a_connection_that_hangs_or_breaks_is_tried_again(session, how):
    asked = session(GOOD, timeout_seconds=0.4)
    asked.provider.replies = [getattr(asked.provider, how), GOOD]
    assert asked.propose().config == {"depth": 3}
    assert asked.failures == ["backoff", None]
    assert asked.calls[0].seconds < 3


def test_nobody_listening(session, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = session(GOOD)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    again = Session.__new__(Session)
    again.__dict__ |= asked.__dict__
    model = laboratory_model(
        "openai-chat:x", on_call=asked.calls.append, backoff=Backoff(attempts=2, first_seconds=0.01)
    )
    again.study = FakeStudy(model)
    with pytest.raises(FatalLLMError, match="did not answer in 2 attempts"):
        again.propose()
    assert asked.failures == ["backoff", "backoff"]


def test_keys_are_nowhere(session):
    """A key in the instructions, in the provider's error and in its reply reaches neither provider nor record."""
    leaky = message(tool="propose_config", arguments=json.dumps(CHANGE | {"hypothesis": f"use {KEY}"}))
    asked = session(refusal(500, "server_error", f"key {KEY}"), leaky)
    asked.study.instructions = f"My key is {KEY}."
    proposal = asked.propose()
    assert proposal.hypothesis == "use [redacted]"
    assert all(KEY not in request for request in asked.provider.requests)
    assert all(KEY not in call.model_dump_json() for call in asked.calls)
    assert "[redacted]" in asked.calls[0].error


@pytest.mark.parametrize(
    "reply",
    [
        refusal(400, "invalid_request_error", f"your key {KEY}"),
        refusal(401, "invalid_api_key", f"your key {KEY}"),
        Reply(200, f"<html>{KEY}</html>".encode(), content_type="text/html"),
    ],
)
def test_a_key_in_an_error_is_not_passed_on(session, reply):
    asked = session(reply)
    with pytest.raises((ProposalError, FatalLLMError)) as raised:
        asked.propose()
    seen: BaseException | None = raised.value
    assert KEY not in str(seen)
    if isinstance(seen, FatalLLMError):
        assert seen.__cause__ is None
    assert all(KEY not in call.model_dump_json() for call in asked.calls)


def test_redaction_is_by_value_and_knows_json():
    environment = {
        "OPENAI_API_KEY": 'a"quoted\\key',
        "HF_TOKEN": "hf_12345678",
        "PATH": "/usr/bin:/bin",
        "X_TOKEN": "no",
    }
    secrets = known_secrets(environment)
    assert sorted(secrets) == ['a"quoted\\key', "hf_12345678"]
    text = json.dumps({"said": 'a"quoted\\key and hf_12345678 and /usr/bin:/bin'})
    assert json.loads(redact(text, secrets)) == {"said": "[redacted] and [redacted] and /usr/bin:/bin"}
    assert redact("GET /v1?key=a%22quoted%5Ckey&n=1 failed", secrets) == "GET /v1?key=[redacted]&n=1 failed"


def test_replay_gives_the_same_proposals_without_a_provider(session):
    asked = session(Reply(500, b"oops"), BAD_JSON, GOOD)
    proposal = asked.propose()
    study = FakeStudy(ReplayModel(LLMCall.model_validate_json(call.model_dump_json()) for call in asked.calls))
    assert asyncio.run(ask(study.view(), 0)) == proposal
    with pytest.raises(FatalLLMError, match="replay"):
        asyncio.run(ask(study.view(), 0))


def test_the_builtin_model_goes_the_same_way_for_nothing():
    calls: list[LLMCall] = []
    study = FakeStudy(laboratory_model("builtin", on_call=calls.append))
    (proposal,) = asyncio.run(Greedy(Greedy.Options()).propose(study.view(), 1))
    assert [call.cost_usd for call in calls] == [0.0, 0.0]
    assert [call.ordinal for call in calls] == [0, 1]
    assert {call.model for call in calls} == {"jaxresearch:builtin"}
    assert "list_hyperparameters" in calls[0].response
    replayed = FakeStudy(ReplayModel(calls))
    assert asyncio.run(Greedy(Greedy.Options()).propose(replayed.view(), 1)) == [proposal]


def test_an_unpriced_model_has_no_cost():
    from pydantic_ai.models.test import TestModel

    calls: list[LLMCall] = []
    study = FakeStudy(RecordingModel(TestModel(call_tools=[]), calls.append))
    with pytest.raises(ProposalError):
        asyncio.run(ask(study.view(), 0))
    assert {call.cost_usd for call in calls} == {None}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "names no model"),
        ("gpt-5", "names no model"),
        ("openai:", "names no model"),
        ("nobody:gpt", "'nobody' is not a provider"),
        ("openai:gpt-5", "export OPENAI_API_KEY="),
        ("openai-chat:gpt-5", "export OPENAI_API_KEY="),
        ("anthropic:claude-sonnet-4-5", "export ANTHROPIC_API_KEY="),
        ("ollama:qwen3", "export OLLAMA_BASE_URL="),
        ("builtin:large", "plug-in 'builtin'"),
    ],
)
def test_a_name_that_cannot_be_used_says_what_to_do(name, says, monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("OPENAI_", "ANTHROPIC_", "OLLAMA_")):
            monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError) as raised:
        resolve_model(name)
    assert says in str(raised.value)
    assert "--llm" in raised.value.message
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("anthropic:x", "jaxresearch[anthropic]"),
        ("openai:x", "jaxresearch[openai]"),
        ("google:x", "jaxresearch[google]"),
        ("ollama:x", "jaxresearch[openai]"),
        ("groq:x", "pydantic-ai-slim[groq]"),
    ],
)
def test_a_missing_extra_is_named(name, extra, monkeypatch):
    def missing(*_: object):
        raise ImportError("no package")

    monkeypatch.setattr("pydantic_ai.models.infer_model", missing)
    with pytest.raises(ConfigurationError, match="pip install") as raised:
        resolve_model(name)
    assert f"'{extra}'" in raised.value.fix


def test_real_providers_resolve(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9/v1")
    kinds = {name: type(resolve_model(name).wrapped).__name__ for name in (
        "openai:gpt-5", "openai-chat:gpt-5", "anthropic:claude-sonnet-4-5", "ollama:qwen3", "builtin")}  # fmt: skip
    assert list(kinds.values()) == [
        "OpenAIResponsesModel", "OpenAIChatModel", "AnthropicModel", "OllamaModel", "BuiltinModel",
    ]  # fmt: skip


def test_the_ladder_by_itself():
    import httpx2

    assert classify(TimeoutError()) == "backoff"
    assert classify(ConnectionResetError()) == "backoff"
    assert classify(httpx2.ReadError("")) == "backoff"
    assert classify(FatalLLMError("x")) == "fatal"
    assert classify(IndexError()) == "proposal"


def test_jitter_only_lengthens_and_is_bounded():
    backoff = Backoff()
    error = TimeoutError()
    for attempt, least in ((1, 2), (2, 4), (5, 32)):
        waits = [backoff.seconds(attempt, error) for _ in range(50)]
        assert all(least <= wait <= 1.25 * least for wait in waits)
        assert len(set(waits)) > 1
    assert backoff.seconds(6, error) is None


def test_importing_the_module_imports_no_pydantic_ai():
    code = "import sys, jaxresearch.llm, jaxresearch.strategy; sys.exit('pydantic_ai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_walls():
    """`agents` sees the nouns and the strategy protocol only; `jaxresearch` never sees `agents`."""
    import ast
    from pathlib import Path

    import agents
    import jaxresearch

    nouns = {f"jaxresearch.{noun}" for noun in ("budget", "proposal", "experiment", "errors", "text")}
    allowed = {"jaxresearch.strategy", *nouns}
    for path in Path(agents.__file__).parent.rglob("*.py"):
        assert {name for name in _imports(ast.parse(path.read_text())) if name.startswith("jaxresearch")} <= allowed
    for path in Path(jaxresearch.__file__).parent.rglob("*.py"):
        assert not {name for name in _imports(ast.parse(path.read_text())) if name.split(".")[0] == "agents"}


def _imports(tree):
    import ast

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_builtin_needs_no_inference():
    assert infer_model(BuiltinModel()).model_id == "jaxresearch:builtin"
