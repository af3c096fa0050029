"""builtin: a pydantic-ai model that needs no key and no network. It is no language model: a library of edits and
bounded numeric moves, chosen by what the history says has worked.

It goes the way that any model goes: it is asked by the researcher, calls the same read-only tools, answers with the
same output tools, and is told to repair what does not apply. All that it knows is in the messages; its randomness is
seeded by them, so equal messages give equal replies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from agents.choice import Move, Tried, choose, read_history, read_hyperparameters
from agents.digest import HISTORY_PAGE, RELEVANT
from agents.library import RunSize
from agents.steering import taboos
from jaxresearch.budget import Budget
from jaxresearch.proposal import Hyperparameter

_ROUND = re.compile(r"^round seed=(\d+) experiments=(\d+) parent=(\d+) noise=([\d.]+)", re.MULTILINE)
_REPAIR = re.compile(r"^round .* repairs=(\d+)$", re.MULTILINE)
_DIVERGED = re.compile(r"the loss (?:is not finite|exploded)")
_ASKED = re.compile(
    r"^What the person who runs this study asks for:\n(.*?)(?=\n\nFor this proposal:|\n\nHyperparameters of)",
    re.MULTILINE | re.DOTALL,
)
_FILES = re.compile(r"^Your proposal builds on experiment \d+\. Its files: (.+)\.$", re.MULTILINE)
_ORDER = re.compile(r"^For this proposal: This slot is for (a change of the source|hyperparameters only)", re.MULTILINE)
_BUDGET = re.compile(r"^Budget of one run: (\S+?)\.$", re.MULTILINE)
_SIZE = re.compile(r"^One run of it has \d+ steps, ([\d,]+) tokens and ([\d,]+) parameters", re.MULTILINE)
_NEAR_MISS = 0.25  # of the deviation between seeds: on paired seeds, gains scatter about that much
_OUTPUT_TOOLS = ("propose_config", "propose_code", "propose_both")
_ONLY_THE_RESEARCHER = (
    "builtin is no language model: it answers agents.researcher.ask alone. Other prompts need another --llm"
)


@dataclass
class _Conversation:
    """What the messages say so far."""

    seed: int
    experiments: int
    noise_sd: float
    files: list[str]
    parent: int = 0
    repairs: int | None = None
    forbidden: frozenset[str] = frozenset()
    wants_edits: bool | None = None
    size: RunSize | None = None
    answers: dict[str, list[tuple[dict[str, Any], str]]] = field(default_factory=dict)
    offered: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_read(self) -> bool:
        return bool(self.answers)


class BuiltinModel(Model):
    """No language model: a library of edits and bounded numeric moves. Needs no key, no network, and costs nothing."""

    costs_nothing = True

    @property
    def model_name(self) -> str:
        return "builtin"

    @property
    def system(self) -> str:
        return "jaxresearch"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        conversation = _read(messages)
        outputs = {tool.name for tool in model_request_parameters.output_tools}
        if not outputs.issuperset(_OUTPUT_TOOLS):
            raise UnexpectedModelBehavior(_ONLY_THE_RESEARCHER)
        if conversation.has_read:
            calls = [_answer(conversation)]
        else:
            offered = {tool.name for tool in model_request_parameters.function_tools}
            calls = [call for call in _questions(conversation) if call.tool_name in offered]
        return ModelResponse(
            parts=calls, model_name=self.model_name, provider_name=self.system, usage=RequestUsage(cost=Decimal(0))
        )


def _read(messages: list[ModelMessage]) -> _Conversation:
    parts = [part for message in messages for part in message.parts]
    prompt = next((part.content for part in parts if isinstance(part, UserPromptPart)), "")
    text = prompt if isinstance(prompt, str) else ""
    facts, files = _ROUND.search(text), _FILES.search(text)
    if facts is None or files is None:
        raise UnexpectedModelBehavior(_ONLY_THE_RESEARCHER)
    conversation = _Conversation(int(facts[1]), int(facts[2]), float(facts[4]), files[1].split(", "))
    repairs = _REPAIR.search(text)
    conversation.parent, conversation.repairs = int(facts[3]), int(repairs[1]) if repairs is not None else None
    asked = _ASKED.search(text)
    conversation.forbidden = taboos(asked[1]) if asked is not None else frozenset()
    order = _ORDER.search(text)
    conversation.wants_edits = None if order is None else order[1].endswith("source")
    conversation.size = _size(text)
    calls = {part.tool_call_id: part for part in parts if isinstance(part, ToolCallPart)}
    for call in calls.values():
        if call.tool_name in _OUTPUT_TOOLS:
            conversation.offered.append(call.args_as_dict())
    for part in parts:
        if isinstance(part, ToolReturnPart) and part.tool_name not in _OUTPUT_TOOLS and part.tool_call_id in calls:
            content = part.model_response_str() if part.outcome == "success" else ""
            arguments = calls[part.tool_call_id].args_as_dict()
            conversation.answers.setdefault(part.tool_name, []).append((arguments, content))
    return conversation


def _size(prompt: str) -> RunSize | None:
    budget, size = _BUDGET.search(prompt), _SIZE.search(prompt)
    if budget is None or size is None:
        return None
    tokens, parameters = (int(number.replace(",", "")) for number in size.groups())
    return RunSize(Budget.parse(budget[1]).unit, tokens, parameters)


def _questions(conversation: _Conversation) -> Iterator[ToolCallPart]:
    wanted: list[tuple[str, dict[str, Any]]] = [("list_hyperparameters", {})]
    if conversation.experiments <= RELEVANT:
        wanted += [("history", {"first": first}) for first in range(0, conversation.experiments, HISTORY_PAGE)]
    else:  # what it reads must not grow with the study
        wanted.append(("relevant_history", {}))
    wanted += [("read_source", {"path": path}) for path in conversation.files]
    for number, (tool, arguments) in enumerate(wanted):
        yield ToolCallPart(tool, arguments, tool_call_id=f"builtin-{number}")


def _answer(conversation: _Conversation) -> ToolCallPart:
    answers = conversation.answers
    hyperparameters = read_hyperparameters("\n".join(text for _, text in answers.get("list_hyperparameters", [])))
    pages = [text for tool in ("history", "relevant_history") for _, text in answers.get(tool, [])]
    tried = read_history(pages, threshold=_NEAR_MISS * conversation.noise_sd)
    files = {arguments["path"]: text for arguments, text in answers.get("read_source", []) if text}
    refused = frozenset(str(each["tag"]) for each in conversation.offered)
    rng = np.random.default_rng([conversation.seed, conversation.experiments, len(refused)])
    try:
        if conversation.repairs is not None:
            move = _repair(conversation.repairs, hyperparameters, tried, refused)
        else:
            move = choose(
                hyperparameters, files, tried, refused, rng, parent=conversation.parent, taboo=conversation.forbidden,
                wants_edits=conversation.wants_edits, size=conversation.size,
            )  # fmt: skip
    except LookupError as error:
        raise UnexpectedModelBehavior(str(error)) from None
    tool = "propose_both" if move.config and move.edits else "propose_config" if move.config else "propose_code"
    arguments: dict[str, Any] = {
        "hypothesis": move.hypothesis,
        "expected_effect": _expectation(move, tried),
        "tag": move.tag,
        "predicted_change": _median_gain(tried),
        "confidence": round(move.promise, 4),
    }
    if move.config:
        arguments["config"] = dict(move.config)
    if move.edits:
        arguments["edits"] = [edit.model_dump() for edit in move.edits]
    return ToolCallPart(tool, arguments, tool_call_id=f"builtin-answer-{len(conversation.offered)}")


def _repair(number: int, hyperparameters: list[Hyperparameter], tried: list[Tried], refused: frozenset[str]) -> Move:
    """What diverged gets half the learning rates. Source it cannot mend, and what was refused it does not try again."""
    crashed = next((each for each in tried if each.number == number), None)
    rates = [each for each in hyperparameters if each.name.endswith("lr") and isinstance(each.value, float)]
    if crashed is None or refused or not rates or _DIVERGED.search(crashed.why) is None:
        raise LookupError("builtin is no language model: it mends only what diverged")
    config = {each.name: max(each.low or 0.0, float(f"{float(each.value) / 2:.3g}")) for each in rates}
    return Move("repair", f"{crashed.tag} slower", "Half the learning rates: it diverged.", 0.3, config)


def _expectation(move: Move, tried: list[Tried]) -> str:
    gain = _median_gain(tried)
    size = f", the median gain of what was kept is {gain:+.4f}" if gain is not None else ""
    return f"Lower val_bpb; by prior and history a chance of {move.promise:.0%}{size}."


def _median_gain(tried: list[Tried]) -> float | None:
    gains = sorted(each.effect for each in tried if each.helped and each.effect is not None)
    return gains[len(gains) // 2] if gains else None
