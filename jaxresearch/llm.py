"""Who answers: a model by name, what a call to it cost, and what its failures mean.

`resolve_model` turns `--llm` into a pydantic-ai `Model`. `RecordingModel` writes every request and reply down,
`RetryingModel` walks the error ladder, `ReplayModel` answers from a ledger instead of a provider:

    model = laboratory_model("anthropic:claude-sonnet-4-5", on_call=ledger.append)

Importing this module imports no pydantic-ai; the wrappers and the first resolved model do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from jaxresearch.errors import ConfigurationError, JaxresearchError

if TYPE_CHECKING:
    from pydantic_ai.models import Model
    from pydantic_ai.providers import Provider

    from jaxresearch.llm_budget import LLMBudget
    from jaxresearch.llm_circuit import CircuitBreaker
    from jaxresearch.llm_wrappers import Backoff, RecordingModel, ReplayModel, RetryingModel

__all__ = [
    "Backoff",
    "Failure",
    "FatalLLMError",
    "LLMBudgetSpent",
    "LLMCall",
    "RecordingModel",
    "ReplayModel",
    "RetryingModel",
    "classify",
    "fatal_error",
    "known_secrets",
    "laboratory_model",
    "redact",
    "resolve_model",
]

ENTRY_POINT_GROUP = "jaxresearch.llms"

os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")  # it would land in the middle of a study's display

Failure = Literal["fatal", "backoff", "proposal"]
"""What an exception of a model call means: stop the study, wait and ask again, or give this proposal up."""

_EXTRAS = {"openai": "openai", "anthropic": "anthropic", "google": "google"}
_OPENAI_COMPATIBLE = ("ollama", "openrouter", "deepseek", "azure", "together", "fireworks", "litellm", "vllm")
_KEY_VARIABLES = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_KEY|SECRET_KEY|ACCESS_KEY_ID|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE
)
_SHORTEST_SECRET = 8
REDACTED = "[redacted]"


class LLMCall(BaseModel):
    """One attempt at one request: what was asked, what came back, and what it cost.

    ordinal: 0-based position among all attempts of the study; replay matches by it.
    model: PROVIDER:MODEL as the model names itself.
    request, response: pydantic-ai messages as JSON, keys redacted; `response` is empty when there was none.
    input_tokens, output_tokens: as the provider counted them.
    cost_usd: None when the model is not priced; 0.0 only when it is known to be free.
    possible_tokens, possible_cost_usd: the most that an attempt may have cost which was sent and not answered, or whose
    answer counts no tokens; caps count it, sums of what was spent do not.
    seconds: wall time of this attempt.
    error: what went wrong, keys redacted; empty when nothing did.
    failure: what that meant on the error ladder; None when nothing went wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ordinal: int
    model: str
    request: str
    response: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    possible_tokens: int = 0
    possible_cost_usd: float = 0.0
    seconds: float = 0.0
    error: str = ""
    failure: Failure | None = None


class FatalLLMError(JaxresearchError):
    """No further call can succeed as things are. Nothing is lost: the study resumes, with another `--llm` if wished."""


class LLMBudgetSpent(JaxresearchError):  # noqa: N818 - a planned end, no fault
    """The next request might pass a cap of the study. It was not sent, and the session ends in good order."""


def laboratory_model(
    name: str | Model,
    *,
    on_call: Callable[[LLMCall], None],
    timeout_seconds: float = 120,
    max_output_tokens: int = 8192,
    first_ordinal: int = 0,
    backoff: Backoff | None = None,
    budget: LLMBudget | None = None,
    circuit: CircuitBreaker | None = None,
    hands_over: bool = False,
) -> Model:
    """The model called `name`, recording every attempt through `on_call` and retrying what may pass.

    budget: caps that hold for each attempt. circuit: this model's breaker, which outlives rounds. hands_over: raise
    `CircuitOpenError` while it is open, for `FallingBackModel`, instead of waiting.

    Resolve a name once and pass the model on where many of these are made: each resolved one has its own connections.
    `first_ordinal` is the number of calls that the ledger holds already. Raises `ConfigurationError` for a name that
    cannot be used here.
    """
    from jaxresearch.llm_wrappers import Backoff, RecordingModel, RetryingModel

    if isinstance(name, str):
        name = resolve_model(name, timeout_seconds=timeout_seconds, max_output_tokens=max_output_tokens)
    attempt: Model = RecordingModel(name, on_call, first_ordinal=first_ordinal)
    if budget is not None:
        from jaxresearch.llm_budget import BudgetedModel

        attempt = BudgetedModel(attempt, budget)
    return RetryingModel(attempt, backoff or Backoff(), circuit=circuit, hands_over=hands_over)


def resolve_model(name: str, *, timeout_seconds: float = 120, max_output_tokens: int = 8192) -> Model:
    """The pydantic-ai model called `name`: an entry point of `jaxresearch.llms`, or PROVIDER:MODEL.

    `timeout_seconds` bounds one whole request. The provider's SDK does not retry: the error ladder does. Raises
    `ConfigurationError` for an unknown provider, a missing extra and a missing key.
    """
    provider, _, rest = name.partition(":")
    plugins = entry_points(group=ENTRY_POINT_GROUP)
    if provider in plugins.names:
        model = _plugin(provider, rest)
    elif not rest:
        raise ConfigurationError(
            f"llm.model (--llm): {name!r} names no model.",
            fix=f"Write {', '.join(sorted(plugins.names))} or PROVIDER:MODEL, such as anthropic:claude-sonnet-4-5.",
        )
    else:
        model = _provided(name, provider)

    from jaxresearch.llm_wrappers import BoundedModel

    return BoundedModel(model, timeout_seconds=timeout_seconds, max_output_tokens=max_output_tokens)


def _plugin(name: str, rest: str) -> Model:
    from pydantic_ai.models import Model

    points = {point.value: point for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if len(points) > 1:  # which of them answered would depend on the order of folders
        both = " and ".join(sorted(points))
        raise ConfigurationError(
            f"llm.model (--llm): {name!r} is declared twice: {both}.", fix="Uninstall one of them."
        )
    ((value, point),) = points.items()
    try:
        factory = point.load()
        model = factory(rest) if rest else factory()
    except JaxresearchError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {_one_line(error)}"
        raise ConfigurationError(f"llm.model (--llm): the plug-in {name!r} ({value}) does not load: {said}.") from error
    if not isinstance(model, Model):
        kind = type(model).__name__
        raise ConfigurationError(
            f"llm.model (--llm): the plug-in {name!r} ({value}) gives a {kind}, no pydantic-ai Model."
        )
    return model


def _provided(name: str, provider: str) -> Model:
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.models import infer_model

    try:
        bounded = provider.split("-")[0] in (*_EXTRAS, *_OPENAI_COMPATIBLE)
        return infer_model(name, _bounded_provider) if bounded else infer_model(name)
    except ImportError as error:
        raise ConfigurationError(
            f"llm.model (--llm): {provider!r} needs a package that is not installed.",
            fix=f"Run: pip install '{_extra_for(provider)}'",
        ) from error
    except UserError as error:
        text = _one_line(error)
        variable = re.search(r"`([A-Z][A-Z0-9_]+)`", text)
        if variable is None:
            raise ConfigurationError(
                f"llm.model (--llm): {provider!r} is not a provider that is known here: {text}.",
                fix="Known are builtin, anthropic:, openai: (Responses), openai-chat:, google:, ollama: and those of "
                "pydantic-ai.",
            ) from error
        raise ConfigurationError(
            f"llm.model (--llm): {name!r} needs the environment variable {variable[1]}, which is not set.",
            fix=f"Run: export {variable[1]}=...",
        ) from error
    except Exception as error:
        raise ConfigurationError(f"llm.model (--llm): {name!r} cannot be used: {_one_line(error)}.") from error


def _bounded_provider(name: str) -> Provider[Any]:
    """The provider called `name`, which reads no more of an answer than `llm_http.LONGEST_BODY_BYTES`."""
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.providers import infer_provider_class

    from jaxresearch.llm_http import bounded_client

    try:
        make = cast("Callable[..., Provider[Any]]", infer_provider_class(name))
    except ValueError:
        raise UserError(f"Unknown provider: {name}") from None
    return make(http_client=bounded_client())


def _extra_for(provider: str) -> str:
    family = provider.split("-")[0]
    if family in _OPENAI_COMPATIBLE:
        family = "openai"
    extra = _EXTRAS.get(family)
    return f"jaxresearch[{extra}]" if extra else f"pydantic-ai-slim[{family}]"


def classify(error: BaseException) -> Failure:
    """Where `error`, raised by a model call or an agent run, stands on the ladder.

    Authentication, an unknown model and a spent quota are "fatal"; rate limits, server errors, connections and timeouts
    are "backoff"; all else (a reply of the wrong shape, no choices, HTML, too many tool calls) is "proposal".
    """
    from pydantic_ai import exceptions

    fatal = (
        exceptions.ModelAuthenticationError,
        exceptions.ModelNotFoundError,
        exceptions.ModelQuotaExceededError,
        FatalLLMError,
        ConfigurationError,
    )
    passing = (
        exceptions.ModelRateLimitError,
        exceptions.ModelUnavailableError,
        exceptions.ModelServerError,
        exceptions.ModelConnectionError,
        exceptions.ModelRequestTimeout,
        TimeoutError,
        ConnectionError,
    )
    if isinstance(error, fatal):
        return "fatal"
    if isinstance(error, passing):
        return "backoff"
    if isinstance(error, exceptions.ModelHTTPError):
        if error.status_code in (401, 402, 403, 404):
            return "fatal"
        if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
            return "backoff"
    if type(error).__module__.startswith(("httpx", "httpcore")) and "Error" in type(error).__name__:
        return "backoff"
    return "proposal"


def fatal_error(error: BaseException, model: str, *, attempts: int = 1) -> FatalLLMError:
    """One clear line for an `error` that ends the study, and what to do about it."""
    from pydantic_ai import exceptions

    detail = redact(_one_line(error), known_secrets())
    resume = "Nothing is lost: `jaxresearch resume STUDY` goes on, also with another --llm."
    status = error.status_code if isinstance(error, exceptions.ModelHTTPError) else None
    if isinstance(error, FatalLLMError):
        return error
    if isinstance(error, exceptions.ModelQuotaExceededError) or status == 402:
        return FatalLLMError(f"llm: the quota of {model} is spent: {detail}.", fix=f"Top it up. {resume}")
    if isinstance(error, exceptions.ModelAuthenticationError) or status in (401, 403):
        return FatalLLMError(f"llm: {model} refused the API key: {detail}.", fix=f"Set a valid key. {resume}")
    if isinstance(error, exceptions.ModelNotFoundError) or status == 404:
        return FatalLLMError(f"llm: no model {model}: {detail}.", fix=f"Check the name and the base URL. {resume}")
    plural = "s" if attempts > 1 else ""
    return FatalLLMError(f"llm: {model} did not answer in {attempts} attempt{plural}: {detail}.", fix=resume)


def known_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The values of the environment's key variables (`*_API_KEY`, `*_TOKEN`, `*_SECRET` ...), longest first."""
    environment = os.environ if environment is None else environment
    values = {
        value.strip()
        for name, value in environment.items()
        if _KEY_VARIABLES.search(name) and len(value.strip()) >= _SHORTEST_SECRET
    }
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with each of `secrets` taken out, also where it stands escaped inside JSON or an address."""
    for secret in secrets:
        for form in {
            secret,
            _in_json(secret),
            _in_json(secret, ascii_only=True),
            quote(secret),
            quote(secret, safe=""),
        }:
            text = text.replace(form, REDACTED)
    return text


def _in_json(text: str, *, ascii_only: bool = False) -> str:
    import json

    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit].rstrip(".")


def __getattr__(name: str) -> object:
    if name in ("Backoff", "RecordingModel", "ReplayModel", "RetryingModel"):
        from jaxresearch import llm_wrappers

        return getattr(llm_wrappers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
