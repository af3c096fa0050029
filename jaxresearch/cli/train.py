"""`train`: one run of the unmodified subject."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from rich.console import Console

from jaxresearch.cli.common import Output, config_options, make_config, output_options
from jaxresearch.cli.live import RunDisplay, StageProgress
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun


@click.command(epilog="Example: jaxresearch train --budget 200steps --seed 1")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of init and data order.")
@click.option("--budget", help="What the run may spend: 300s, 5m, 2000steps, 50Mtok, 1e15flop.")
@click.option("--corpus", metavar="NAME_OR_PATH", help="As for `prepare`.")
@config_options
@output_options
def train(
    seed: int,
    budget: str | None,
    corpus: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> None:
    """Train the unmodified subject once, and score it."""
    from jaxresearch.execution.single import train_once

    config = make_config(config_file, settings, budget=budget, corpus__source=corpus)
    with StageProgress(output) as progress, RunDisplay(output) as display:
        outcome = asyncio.run(train_once(config, seed, progress.update, display.update))
    if not isinstance(outcome, CompletedRun):
        raise JaxresearchError(f"{outcome.verdict}: {outcome.reason}.", fix="Nothing was scored.")
    facts = outcome.model_dump(mode="json", exclude={"status"})

    def show(console: Console) -> None:
        for key in (
            "val_bpb", "loss", "steps", "tokens", "train_seconds", "compile_seconds", "eval_seconds",
            "tokens_per_second", "parameters", "peak_memory_bytes", "budget", "seed", "device", "sandbox", "flags",
        ):  # fmt: skip
            console.print(f"{key + ':':20}{_plain(facts[key])}", markup=False)

    output.result(facts, show)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}" if value < 100 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
