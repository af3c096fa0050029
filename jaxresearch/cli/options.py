"""Options that several commands share, said once. A command receives what was asked as keys of `make_config`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click


def _taking_turns(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """Several `--llm` as one, as the configuration has them."""
    del context, option
    return ", ".join(given) if given else None


LLM: dict[str, Any] = {"metavar": "MODEL", "multiple": True, "callback": _taking_turns}
"""Of click.option, for every `--llm`. With click's own, the last of several would be taken and the others passed over."""

_STUDY: dict[str, tuple[str, dict[str, Any]]] = {
    "llm": (
        "llm__model",
        {**LLM, "help": "builtin (no key) or PROVIDER:MODEL; several, or 'A@2, B', take turns; 'A | B' falls back."},
    ),
    "budget": ("budget", {"help": "Of one run: 300s, 5m, 2000steps, 50Mtok, 1e15flop."}),
    "corpus": ("corpus__source", {"metavar": "NAME_OR_PATH", "help": "As for `prepare`."}),
    "seed": (
        "seed",
        {"type": click.IntRange(0, 2**31 - 1), "help": "Of the study: run seeds and the strategy's choices."},
    ),
    "slots": ("slots", {"type": click.IntRange(1), "help": "Proposals asked for at a time."}),
    "max_cost": ("max_cost", {"type": click.FloatRange(0), "help": "US dollars of LLM calls; never exceeded."}),
    "max_tokens": (
        "max_tokens",
        {"type": click.IntRange(1), "help": "Tokens of LLM calls, both ways; never exceeded."},
    ),
}
_MESH: dict[str, tuple[str, dict[str, Any]]] = {
    "devices": (
        "execution__devices",
        {"type": click.IntRange(1), "help": "Devices that one run is spread over."},
    ),
    "fsdp": (
        "execution__fsdp",
        {
            "type": click.IntRange(1),
            "help": "Devices that hold one state together; chosen by its size if left out.",
        },
    ),
}


def study_options(**changes: Mapping[str, Any]) -> Callable[[Callable], Callable]:
    """--llm, --budget, --corpus, --seed, --slots, --max-cost, --max-tokens; the command receives `asked`.

    changes: by option, keywords of `click.option` that say it otherwise for this command.
    """
    return _options("asked", _STUDY, changes)


def mesh_options(command: Callable) -> Callable:
    """--devices and --fsdp; the command receives `mesh`."""
    return _options("mesh", _MESH, {})(command)


def _options(
    receives: str, options: Mapping[str, tuple[str, dict[str, Any]]], changes: Mapping[str, Mapping[str, Any]]
) -> Callable[[Callable], Callable]:
    """Click options whose values reach the command as one dictionary: key of the configuration -> value, or None."""

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {key: kwargs.pop(name) for name, (key, _) in options.items()}
            return command(*args, **{receives: given}, **kwargs)

        for name, (_, facts) in reversed(list(options.items())):
            wrapper = click.option(f"--{name.replace('_', '-')}", **{**facts, **changes.get(name, {})})(wrapper)
        return wrapper

    return decorate
