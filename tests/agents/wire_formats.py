"""What three APIs of providers say, and how they refuse: OpenAI chat, OpenAI responses, Anthropic messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fake_openai import Reply, completion, message

INPUT_TOKENS, OUTPUT_TOKENS = 1000, 100


@dataclass(frozen=True)
class WireFormat:
    """model: as after `--llm`. price_usd: of one reply, by the provider's list price for it.

    says: text -> reply. calls: (tool, its arguments as JSON text) -> reply. empty: a reply that says nothing at all.
    cut_off: a reply that the limit on output cut. refuses: (status, code, text, headers) -> reply.
    tools_of: what was sent -> names of the tools in it.
    """

    name: str
    model: str
    environment: dict[str, str]
    price_usd: float
    path: str
    says: Callable[[str], Reply]
    calls: Callable[[str, str], Reply]
    empty: Callable[[], Reply]
    cut_off: Callable[[], Reply]
    refuses: Callable[..., Reply]
    tools_of: Callable[[dict[str, Any]], set[str]]

    def __str__(self) -> str:
        return self.name


def _openai_error(status: int, code: str, text: str, **headers: str) -> Reply:
    return _error(status, {"error": {"message": text, "type": code, "param": None, "code": code}}, headers)


def _anthropic_error(status: int, code: str, text: str, **headers: str) -> Reply:
    return _error(status, {"type": "error", "error": {"type": code, "message": text}, "request_id": "req_1"}, headers)


def _error(status: int, body: object, headers: dict[str, str]) -> Reply:
    return Reply(status, json.dumps(body).encode(), {name.replace("_", "-"): value for name, value in headers.items()})


def _response(output: list[dict[str, object]], *, incomplete: bool = False) -> Reply:
    body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "incomplete" if incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-4o-mini-2024-07-18",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": OUTPUT_TOKENS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }
    return Reply(200, json.dumps(body).encode())


def _response_text(text: str, *, incomplete: bool = False) -> Reply:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    said = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    return _response([said], incomplete=incomplete)


def _response_call(tool: str, arguments: str) -> Reply:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": tool, "arguments": arguments}
    return _response([call | {"status": "completed"}])


def _anthropic(content: list[dict[str, object]], stop: str) -> Reply:
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": OUTPUT_TOKENS,
        },
    }
    return Reply(200, json.dumps(body).encode())


def _anthropic_call(tool: str, arguments: str) -> Reply:
    """Its arguments are an object and no text; what is no object goes out as a string, as nothing of its kind would."""
    try:
        value = json.loads(arguments)
    except ValueError:
        value = arguments
    return _anthropic([{"type": "tool_use", "id": "toolu_1", "name": tool, "input": value}], "tool_use")


CHAT = WireFormat(
    name="openai-chat",
    model="openai-chat:gpt-4o-mini",
    environment={"OPENAI_API_KEY": "{key}", "OPENAI_BASE_URL": "{url}/v1"},
    price_usd=INPUT_TOKENS * 0.15e-6 + OUTPUT_TOKENS * 0.6e-6,
    path="/v1/chat/completions",
    says=message,
    calls=lambda tool, arguments: message(tool=tool, arguments=arguments),
    empty=lambda: completion([]),
    cut_off=lambda: message("", finish="length"),
    refuses=_openai_error,
    tools_of=lambda sent: {tool["function"]["name"] for tool in sent["tools"]},
)

RESPONSES = WireFormat(
    name="openai-responses",
    model="openai:gpt-4o-mini",
    environment={"OPENAI_API_KEY": "{key}", "OPENAI_BASE_URL": "{url}/v1"},
    price_usd=INPUT_TOKENS * 0.15e-6 + OUTPUT_TOKENS * 0.6e-6,
    path="/v1/responses",
    says=_response_text,
    calls=_response_call,
    empty=lambda: _response([]),
    cut_off=lambda: _response_text("", incomplete=True),
    refuses=_openai_error,
    tools_of=lambda sent: {tool["name"] for tool in sent["tools"]},
)

ANTHROPIC = WireFormat(
    name="anthropic",
    model="anthropic:claude-sonnet-4-5",
    environment={"ANTHROPIC_API_KEY": "{key}", "ANTHROPIC_BASE_URL": "{url}"},
    price_usd=INPUT_TOKENS * 3e-6 + OUTPUT_TOKENS * 15e-6,
    path="/v1/messages",
    says=lambda text: _anthropic([{"type": "text", "text": text}], "end_turn"),
    calls=_anthropic_call,
    empty=lambda: _anthropic([], "end_turn"),
    cut_off=lambda: _anthropic([{"type": "text", "text": ""}], "max_tokens"),
    refuses=_anthropic_error,
    tools_of=lambda sent: {tool["name"] for tool in sent["tools"]},
)

WIRE_FORMATS = (CHAT, RESPONSES, ANTHROPIC)
