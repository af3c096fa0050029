"""Every failure of a provider, in each of the wire formats that providers speak, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, Reply
from fake_study import FakeStudy
from wire_formats import INPUT_TOKENS, OUTPUT_TOKENS, WIRE_FORMATS, WireFormat

from agents.researcher import ask
from jaxresearch.llm import Backoff, FatalLLMError, LLMCall, ReplayModel, laboratory_model, resolve_model
from jaxresearch.llm_budget import worst_case
from jaxresearch.llm_http import LONGEST_BODY_BYTES
from jaxresearch.strategy import ProposalError

KEY = "sk-secret-0123456789abcdef"
CHANGE = {"hypothesis": "deeper is better", "expected_effect": "-0.01", "config": {"depth": 3}, "tag": "depth-3"}
HTML = Reply(200, b"<html><body>Gateway</body></html>", content_type="text/html")
ANSWERED = {
    "good",
    "bad-json",
    "wrong-schema",
    "plain-text",
    "tool-loop",
    "truncated",
    "empty",
    "no-such-tool",
    "list-of-arguments",
    "half-a-surrogate",
    "nested",
}
"""Replies that the provider counts tokens for."""

UNUSABLE = {
    "bad-json": lambda wire: wire.calls("propose_config", '{"hypothesis": '),
    "wrong-schema": lambda wire: wire.calls("propose_config", '{"config": "deeper"}'),
    "plain-text": lambda wire: wire.says("Let me think about it."),
    "truncated": lambda wire: wire.cut_off(),
    "empty": lambda wire: wire.empty(),
    "tool-loop": lambda wire: wire.calls("history", '{"first": 0}'),
    "html": lambda wire: HTML,
    "empty-object": lambda wire: Reply(200, b"{}"),
    "cut-off": lambda wire: Reply(200, b'{"choices": [{"mess'),
    "ten-megabytes": lambda wire: wire.says("x" * 10_000_000),
    "context-too-long": lambda wire: wire.refuses(400, "context_length_exceeded", "prompt is too long"),
    "bad-request": lambda wire: wire.refuses(400, "invalid_request_error", "no"),
    "null": lambda wire: Reply(200, b"null"),
    "list": lambda wire: Reply(200, b"[]"),
    "nothing": lambda wire: Reply(200, b""),
    "not-utf-8": lambda wire: Reply(200, wire.says("x").body.replace(b"x", b"\xff")),
    "no-such-tool": lambda wire: wire.calls("rm_rf", "{}"),
    "list-of-arguments": lambda wire: wire.calls("propose_config", "[1, 2]"),
    "not-a-number": lambda wire: wire.calls("propose_config", json.dumps(CHANGE | {"config": {"matrix_lr": math.nan}})),
    "half-a-surrogate": lambda wire: Reply(200, wire.says("HALF").body.replace(b"HALF", b"\\ud800")),
    "nested": lambda wire: wire.calls("propose_config", '{"hypothesis": ' + "[" * 500 + "]" * 500 + "}"),
    "redirect": lambda wire: Reply(307, b"", {"Location": "/elsewhere"}),
}
FATAL = {
    "401": (lambda wire: wire.refuses(401, "invalid_api_key", f"Incorrect API key: {KEY}"), "refused the API key"),
    "403": (lambda wire: wire.refuses(403, "permission_error", "not yours"), "refused the API key"),
    "unknown-model": (lambda wire: wire.refuses(404, "model_not_found", "no such model"), "no model"),
    "quota": (lambda wire: wire.refuses(402, "billing_error", "Your credit is spent"), "quota"),
}


def good(wire: WireFormat) -> Reply:
    return wire.calls("propose_config", json.dumps(CHANGE))


class Session:
    """One proposal asked of a fake provider, and all that was recorded and waited."""

    def __init__(self, wire: WireFormat, provider: FakeOpenAI, monkeypatch, *, timeout_seconds=5.0, attempts=3) -> None:
        for name, value in wire.environment.items():
            monkeypatch.setenv(name, value.format(key=KEY, url=provider.url.removesuffix("/v1")))
        self.wire, self.provider = wire, provider
        self.calls: list[LLMCall] = []
        self.waits: list[float] = []

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        self.resolved = resolve_model(wire.model, timeout_seconds=timeout_seconds, max_output_tokens=512)
        self.model = laboratory_model(
            self.resolved,
            on_call=self.calls.append,
            backoff=Backoff(attempts=attempts, sleep=sleep, uniform=lambda low, high: low),
        )
        self.study = FakeStudy(self.model)

    def propose(self):
        return asyncio.run(ask(self.study.view(), 0))

    @property
    def failures(self) -> list[str | None]:
        return [call.failure for call in self.calls]


@pytest.fixture(params=WIRE_FORMATS, ids=str)
def session(request, monkeypatch):
    opened = []

    def open_session(*replies, **options) -> Session:
        made = [reply(request.param) if callable(reply) else reply for reply in replies]
        opened.append(FakeOpenAI(*made))
        return Session(request.param, opened[-1], monkeypatch, **options)

    yield open_session
    for provider in opened:
        provider.close()


def changed(reply: Reply, change: Callable[[dict], object]) -> Reply:
    body = json.loads(reply.body)
    change(body)
    return Reply(200, json.dumps(body).encode())


def counting(input_tokens: object, output_tokens: object) -> Callable[[dict], object]:
    """Puts other counts in a reply, under the names that its wire format has."""

    def change(body: dict) -> None:
        names = [name for name in ("prompt_tokens", "input_tokens") if name in body["usage"]]
        names += [name for name in ("completion_tokens", "output_tokens") if name in body["usage"]]
        body["usage"].update(zip(names, (input_tokens, output_tokens), strict=True))

    return change


UNCOUNTED = {
    "missing": lambda body: body.pop("usage"),
    "null": lambda body: body.update(usage=None),
    "zero": counting(0, 0),
    "negative": counting(-(10**9), -(10**9)),
    "fractions": counting(1.5, 2.5),
    "words": counting("many", "few"),
    "not-a-number": counting(math.nan, math.nan),
    "beyond-all-bounds": counting(10**18, 10**400),
}


@pytest.mark.parametrize("kind", UNCOUNTED)
def test_a_reply_that_counts_no_tokens_is_counted_at_its_most(session, kind):
    """Also one that the provider's SDK refuses for it; and it can be read again, by a resume and by `replay`."""
    asked = session(lambda wire: changed(good(wire), UNCOUNTED[kind]))
    try:
        proposed = asked.propose().config
    except ProposalError:
        proposed = None
    (call,) = asked.calls
    assert (call.input_tokens, call.output_tokens, call.cost_usd) == (0, 0, None)
    assert call.possible_tokens > 1000
    assert call.possible_cost_usd > 0
    assert LLMCall.model_validate_json(call.model_dump_json()) == call
    if proposed is not None:
        assert asyncio.run(ask(FakeStudy(ReplayModel(asked.calls)).view(), 0)).config == proposed


@pytest.mark.parametrize("name", ["gpt-99-ultra", 7])
def test_a_reply_in_another_s_name_is_priced_as_what_was_asked(session, name):
    asked = session(lambda wire: changed(good(wire), lambda body: body.update(model=name)))
    with contextlib.suppress(ProposalError):
        asked.propose()
    (call,) = asked.calls
    assert (call.cost_usd or call.possible_cost_usd) >= asked.wire.price_usd * 0.999


def test_a_redirect_takes_the_key_nowhere(session):
    with FakeOpenAI(Reply(500, b"")) as elsewhere:
        asked = session(Reply(307, b"", {"Location": elsewhere.url.replace("127.0.0.1", "localhost")}))
        with pytest.raises(ProposalError):
            asked.propose()
        assert elsewhere.paths == []


def test_a_date_that_has_passed_is_no_time_to_wait(session):
    late = {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    asked = session(lambda wire: wire.refuses(429, "rate_limit_error", "slow down", **late))
    with pytest.raises(FatalLLMError, match="did not answer in 3 attempts"):
        asked.propose()
    assert asked.waits == [2, 4]


QUOTED = f"""
import asyncio, json, sys
from fake_openai import FakeOpenAI, Reply
from fake_study import FakeStudy
from test_wire_formats import counting, changed, good
from wire_formats import WIRE_FORMATS
from agents.researcher import ask
from jaxresearch.llm import laboratory_model
import os
for wire in WIRE_FORMATS[1:]:
    with FakeOpenAI(changed(good(wire), counting({KEY!r}, {KEY!r}))) as server:
        for name, value in wire.environment.items():
            os.environ[name] = value.format(key={KEY!r}, url=server.url.removesuffix("/v1"))
        asyncio.run(ask(FakeStudy(laboratory_model(wire.model, on_call=lambda call: None)).view(), 0))
"""


def test_nothing_of_a_reply_is_printed():
    """Warnings of the libraries quote it, a key in it too, past all that takes keys out."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder.parent.parent}"}
    done = subprocess.run([sys.executable, "-c", QUOTED], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_good_reply_is_a_proposal_with_its_usage_and_price(session):
    asked = session(good)
    assert asked.propose().config == {"depth": 3}
    (call,) = asked.calls
    assert (call.input_tokens, call.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert call.cost_usd == pytest.approx(asked.wire.price_usd)
    assert (call.failure, call.possible_tokens) == (None, 0)
    assert asked.provider.paths[0].partition("?")[0] == asked.wire.path
    sent = json.loads(asked.provider.requests[0])
    assert asked.wire.tools_of(sent) >= {"read_source", "history", "propose_config", "propose_code", "propose_both"}
    assert 512 in sent.values()  # the bound on output, under whatever name


def test_what_is_sent_never_has_more_bytes_than_a_cap_reserves_tokens(session):
    seen = []
    asked = session(lambda wire: wire.calls("read_source", '{"path": "models/gpt.py"}'), good)
    request = type(asked.resolved).request

    async def noting(messages, settings, parameters):
        seen.append(worst_case(asked.resolved, messages, settings, parameters))
        return await request(asked.resolved, messages, settings, parameters)

    asked.resolved.request = noting
    asked.propose()
    assert [len(body) <= each.tokens - 512 for body, each in zip(asked.provider.requests, seen, strict=True)] == [
        True
    ] * 2
    assert all(each.cost_usd > asked.wire.price_usd for each in seen)


@pytest.mark.parametrize("first", ["bad-json", "wrong-schema", "plain-text"])
def test_a_bad_reply_is_repaired(session, first):
    asked = session(UNUSABLE[first], good)
    assert asked.propose().config == {"depth": 3}
    assert len(asked.calls) == 2


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_reply_costs_one_proposal(session, kind):
    asked = session(UNUSABLE[kind])
    with pytest.raises(ProposalError) as raised:
        asked.propose()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert asked.waits == []
    assert 1 <= len(asked.calls) == len(asked.provider.requests) <= 16
    assert sum(len(call.model_dump_json()) for call in asked.calls) < 2_000_000
    if kind in ANSWERED:
        counted = [call for call in asked.calls if call.cost_usd == pytest.approx(asked.wire.price_usd)]
        unknown = [call for call in asked.calls if call.possible_tokens]
        assert len(counted) + len(unknown) == len(asked.calls)  # no answer goes without its cost, or the most of it
    replayed = FakeStudy(ReplayModel(asked.calls))
    with pytest.raises(ProposalError):
        asyncio.run(ask(replayed.view(), 0))


def bomb(status: int) -> Reply:
    """Two gigabytes of zeros, in two megabytes of gzip."""
    packer = zlib.compressobj(wbits=31)
    first, again = (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return Reply(status, first + 2**11 * again, {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("status", [200, 500])
def test_a_small_body_that_unpacks_to_gigabytes_is_not_read(session, status):
    asked = session(bomb(status), timeout_seconds=60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProposalError, match=f"more than {LONGEST_BODY_BYTES} bytes"):
        asked.propose()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 500_000
    assert (asked.failures, asked.waits, len(asked.provider.requests)) == (["proposal"], [], 1)
    assert asked.calls[0].possible_tokens > 1000  # it may have been billed, and nobody knows for what


def test_a_packed_reply_is_read_also_in_another_event_loop(session):
    packed = session(lambda wire: Reply(200, gzip.compress(good(wire).body), {"Content-Encoding": "gzip"}))
    assert [packed.propose().config, packed.propose().config] == [{"depth": 3}] * 2


@pytest.mark.parametrize("kind", FATAL)
def test_what_cannot_pass_stops_the_study_with_one_line(session, kind):
    reply, says = FATAL[kind]
    asked = session(reply)
    with pytest.raises(FatalLLMError) as raised:
        asked.propose()
    assert says in raised.value.message
    assert "resume" in raised.value.fix
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (asked.failures, asked.waits) == (["fatal"], [])
    assert asked.calls[0].possible_tokens == 0  # an error status is not billed


def test_a_spent_quota_that_looks_like_a_rate_limit(session):
    asked = session(lambda wire: wire.refuses(429, "insufficient_quota", "You exceeded your quota"), attempts=2)
    with pytest.raises(FatalLLMError, match=r"quota|did not answer in 2 attempts"):
        asked.propose()


def test_retry_after_is_honoured(session):
    def busy(wire):
        return wire.refuses(429, "rate_limit_error", "slow down", Retry_After="7")

    asked = session(busy, busy, good)
    assert asked.propose().config == {"depth": 3}
    assert asked.waits == [7.0, 7.0]
    assert asked.failures == ["backoff", "backoff", None]


def test_without_it_waits_double_and_end(session):
    asked = session(lambda wire: wire.refuses(429, "rate_limit_error", "slow down"), attempts=4)
    with pytest.raises(FatalLLMError, match="did not answer in 4 attempts"):
        asked.propose()
    assert asked.waits == [2, 4, 8]


def test_server_errors_pass(session):
    overloaded = Reply(529, b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}')
    asked = session(Reply(500, b"oops"), Reply(503, b"<html>"), overloaded, good, attempts=5)
    assert asked.propose().config == {"depth": 3}
    assert asked.failures == ["backoff"] * 3 + [None]


def test_server_errors_for_ever_end_the_study(session):
    asked = session(Reply(500, b"oops"))
    with pytest.raises(FatalLLMError, match="did not answer in 3 attempts"):
        asked.propose()
    assert asked.failures == ["backoff"] * 3


@pytest.mark.parametrize("how", ["stall", "drip", "drop"])
def test_a_connection_that_hangs_or_breaks_is_tried_again(session, how):
    asked = session(good, timeout_seconds=1.0, attempts=20)  # a busy machine may time a good reply out, too
    asked.provider.replies = [getattr(asked.provider, how), good(asked.wire)]
    assert asked.propose().config == {"depth": 3}
    assert (asked.failures[0], asked.failures[-1]) == ("backoff", None)
    assert asked.calls[0].possible_tokens > 1000  # it may have been answered, and billed, on the other side
    assert asked.calls[0].possible_cost_usd > 0


def test_nobody_listening_costs_nothing(session, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = session(good)
    (base,) = (name for name in asked.wire.environment if name.endswith("BASE_URL"))
    monkeypatch.setenv(base, re.sub(r":\d+", f":{port}", asked.provider.url.removesuffix("/v1")))
    model = laboratory_model(
        asked.wire.model, on_call=asked.calls.append, backoff=Backoff(attempts=2, first_seconds=0.01)
    )
    asked.study = FakeStudy(model)
    with pytest.raises(FatalLLMError, match="did not answer in 2 attempts"):
        asked.propose()
    assert asked.failures == ["backoff", "backoff"]
    assert [call.possible_tokens for call in asked.calls] == [0, 0]


def test_keys_are_nowhere(session):
    """A key in the instructions, in the provider's error and in its reply reaches neither provider nor record."""
    leaky = json.dumps(CHANGE | {"hypothesis": f"use {KEY}"})
    asked = session(
        lambda wire: wire.refuses(500, "server_error", f"key {KEY}"), lambda wire: wire.calls("propose_config", leaky)
    )
    asked.study.instructions = f"My key is {KEY}."
    assert asked.propose().hypothesis == "use [redacted]"
    assert all(KEY not in request for request in asked.provider.requests)
    assert all(KEY not in call.model_dump_json() for call in asked.calls)
