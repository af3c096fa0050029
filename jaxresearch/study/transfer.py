"""transfer: does the winner's gain survive at another size or time? Baseline and winner both run there, on fresh seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from jaxresearch.budget import Budget
from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.base import Executor, TracedCandidate
from jaxresearch.proposal import Candidate, Hyperparameter, Scalar
from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.study.events import TrialClosed, TrialOpened
from jaxresearch.study.history import History
from jaxresearch.study.journal import Journal
from jaxresearch.study.judging import fresh_seeds
from jaxresearch.study.stopping import Stop
from jaxresearch.study.trial import Trial
from jaxresearch.study.trials import Bench, last_trial, mean_scores, refuse_without_winner
from jaxresearch.study.view import hyperparameters_of
from jaxresearch.study.workspace import Workspace

BASELINE, WINNER = "baseline", "winner"
_FACTOR = re.compile(r"([0-9]+(?:\.[0-9]+)?)x")
_EXAMPLE = "For example --transfer depth=2x,budget=2x."


def parse_scale(text: str) -> dict[str, str]:
    """`depth=2x,budget=2x` by name, in order of names, as the ledger has it. Raises `ConfigurationError` in one line."""
    scale: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        match = _FACTOR.fullmatch(value)
        if not name or not equals or match is None or float(match[1]) <= 0:
            raise ConfigurationError(f"--transfer: {part.strip()!r} is not NAME=FACTORx.", fix=_EXAMPLE)
        if name in scale:
            raise ConfigurationError(f"--transfer: {name} is given twice.", fix=_EXAMPLE)
        scale[name] = value
    return dict(sorted(scale.items()))


def scaled_budget(budget: str, scale: dict[str, str]) -> str:
    """The budget of one run. Raises `ConfigurationError` where so many are no whole number of steps or tokens."""
    whole = Budget.parse(budget)
    amount = _times(whole.amount, scale.get("budget", "1x"))
    if whole.unit in ("steps", "tokens") and amount != round(amount):
        raise ConfigurationError(
            f"--transfer: budget={scale['budget']} of {budget} is not a whole number.", fix=_EXAMPLE
        )
    return str(Budget(amount, whole.unit))


def scaled_config(declared: Sequence[Hyperparameter], scale: dict[str, str], whose: str) -> dict[str, Scalar]:
    """New values of the hyperparameters in `scale`, from the present ones. Raises `ConfigurationError` in one line."""
    by_name = {each.name: each for each in declared}
    values: dict[str, Scalar] = {}
    for name, factor in scale.items():
        if name == "budget":
            continue
        if name not in by_name:
            known = ", ".join(sorted(each.name for each in declared if _is_number(each.value)))
            raise ConfigurationError(f"--transfer: {whose} has no hyperparameter {name!r}.", fix=f"There are: {known}.")
        values[name] = _scaled(by_name[name], factor, whose)
    return values


def _scaled(each: Hyperparameter, factor: str, whose: str) -> Scalar:
    where = f"--transfer: {each.name}={factor}"
    if isinstance(each.value, bool) or not isinstance(each.value, int | float):
        raise ConfigurationError(f"{where}: {each.name} is {each.value!r}, not a number.", fix=_EXAMPLE)
    value = _times(each.value, factor)
    if isinstance(each.value, int):
        if value != round(value):
            raise ConfigurationError(f"{where}: {value:g} is no whole number ({whose} has {each.value}).", fix=_EXAMPLE)
        value = int(value)
    low, high = each.low, each.high
    if each.choices and value not in each.choices:
        allowed = ", ".join(map(str, each.choices))
        raise ConfigurationError(
            f"{where}: {value:g} is not allowed ({whose} has {each.value}).", fix=f"One of {allowed}."
        )
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"It may be {low if low is not None else '-inf'} to {high if high is not None else 'inf'}."
        raise ConfigurationError(f"{where}: {value:g} is out of bounds ({whose} has {each.value}).", fix=bounds)
    return value


def _times(value: float, factor: str) -> float:
    """value x factor, as people multiply: in floats 50 x 1.1 is no whole number."""
    return float(Decimal(repr(value)) * Decimal(factor.removesuffix("x")))


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def transfer(
    journal: Journal,
    workspace: Workspace,
    executor: Executor,
    stop: Stop,
    *,
    scale: dict[str, str],
    count: int,
    again: bool = False,
) -> None:
    """Run baseline and winner at `scale` on `count` fresh seeds, or go on with such a transfer that is not done.

    again: begin another although one is done. Raises as `ablate` does, and `ConfigurationError` for an impossible scale.
    """
    history = journal.history
    refuse_without_winner(history)
    candidates = check_scale(history, workspace, scale)
    last = last_trial(history, "transfer", scale)
    if last is not None and last.closed is not None and not again:
        return
    if last is None or last.closed is not None or history.trials[-1] is not last:
        journal.record(
            TrialOpened(
                trial=len(history.trials) + 1,
                purpose="transfer",
                experiment=history.incumbent_number,
                seeds=fresh_seeds(history, count),
                budget=scaled_budget(history.config.budget, scale),
                scale=scale,
            )
        )
    bench = Bench(journal, workspace, executor, stop)
    text = ", ".join(f"{name} {factor}" for name, factor in scale.items())
    traces = [await bench.trace(arm, candidate, f"The {arm} at {text}") for arm, candidate in candidates.items()]
    if all(isinstance(trace, TracedCandidate) for trace in traces):
        await bench.run(BASELINE, WINNER)
    journal.record(TrialClosed())


def check_scale(history: History, workspace: Workspace, scale: dict[str, str]) -> dict[str, Candidate]:
    """Baseline and winner at `scale`. Raises `ConfigurationError` before anything runs."""
    scaled_budget(history.config.budget, scale)
    found = {}
    for arm, number in ((BASELINE, 0), (WINNER, history.incumbent_number)):
        candidate = workspace.candidate(history.entries[number].experiment.commit)
        values = scaled_config(hyperparameters_of(history, number), scale, f"the {arm}")
        found[arm] = Candidate(candidate.files, {**candidate.config, **values})
    return found


def transfer_object(history: History, study: str, scale: dict[str, str]) -> dict[str, Any] | None:
    """What `confirm --transfer --json` prints; gains are in bits per byte, above zero is better. None before a transfer."""
    trial = last_trial(history, "transfer", scale)
    if trial is None:
        return None
    gain = paired_gain(trial.scores(BASELINE), trial.scores(WINNER))
    claimed = paired_gain(history.baseline.experiment.scores, history.incumbent.experiment.scores)
    arms = {
        arm: {**mean_scores(list(trial.scores(arm).values())), "failed": trial.failures(arm)}
        for arm in (BASELINE, WINNER)
    }
    return {
        "study": study,
        "trial": trial.event.trial,
        "transfer": trial.event.scale,
        "budget": trial.event.budget,
        "seeds": list(trial.event.seeds),
        "finished": trial.closed is not None,
        "baseline": {"experiment": 0, **arms[BASELINE]},
        "incumbent": {"experiment": trial.event.experiment, **arms[WINNER]},
        "gain": asdict(gain) if gain is not None else None,
        "claimed_gain_bpb": claimed.mean_bpb if claimed is not None else None,
        "conclusion": conclusion(trial),
    }


def conclusion(trial: Trial) -> str:
    """The transfer in one sentence."""
    where = "At " + " and ".join(f"{factor} {name}" for name, factor in trial.event.scale.items())
    if trial.closed is None:
        return f"{where}: not done; the same command goes on."
    gain = paired_gain(trial.scores(BASELINE), trial.scores(WINNER))
    if gain is None or gain.low_bpb is None or gain.high_bpb is None:
        why = next(iter([*trial.failures(BASELINE), *trial.failures(WINNER)]), "too few runs came through")
        return f"{where} nothing can be said: {why}."
    share = _relative(trial)
    interval = (
        f"{gain.mean_bpb:.4f} bpb{share} (95 %: {gain.low_bpb:.4f} to {gain.high_bpb:.4f}, {gain.pairs} fresh seeds)"
    )
    if failed := trial.failures(WINNER):
        why = f"the winner gave no score on {len(failed)} of {len(trial.event.seeds)} seeds ({failed[0]})"
        return f"{where} the gain is not shown to survive: {why}; on the others it is {interval}."
    if gain.low_bpb > 0:
        return f"{where} the gain survives: {interval}."
    if gain.high_bpb < 0:
        return f"{where} the winner is worse than the baseline: {interval}."
    return f"{where} the gain is not shown to survive: {interval}."


def _relative(trial: Trial) -> str:
    baseline = trial.scores(BASELINE)
    gain = paired_gain(baseline, trial.scores(WINNER))
    return f", {gain.mean_bpb / statistics.fmean(baseline.values()):.1%}" if gain is not None and baseline else ""
