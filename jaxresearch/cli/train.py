"""`train`: one run of the unmodified subject, or of a study's experiment again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from jaxresearch.cli.common import Output, config_options, make_config, output_options, sandbox_option
from jaxresearch.cli.hosts import hosts_options
from jaxresearch.cli.live import RunDisplay
from jaxresearch.cli.options import mesh_options
from jaxresearch.config import StudyConfig
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun
from jaxresearch.proposal import Candidate
from jaxresearch.subjects import load_subject


@click.command(epilog="Example: jaxresearch train --budget 200steps --seed 1")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of init and data order.")
@click.option("--budget", help="What the run may spend: 300s, 5m, 2000steps, 50Mtok, 1e15flop.")
@click.option("--corpus", metavar="NAME_OR_PATH", help="As for `prepare`.")
@click.option("--study", type=click.Path(path_type=Path), help="Run an experiment of this study, with its settings.")
@click.option("--experiment", type=click.IntRange(0), help="Which one; the best kept when left out.")
@mesh_options
@sandbox_option
@config_options
@output_options
@hosts_options
def train(
    seed: int,
    budget: str | None,
    corpus: str | None,
    study: Path | None,
    experiment: int | None,
    mesh: dict[str, Any],
    require_sandbox: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> None:
    """Train the unmodified subject once and score it; or, with --study, an experiment of that study."""
    from jaxresearch.execution.single import train_once

    if study is not None:
        if config_file or settings or corpus or budget or any(mesh.values()):
            raise click.UsageError("--study brings its own settings; leave the others out.")
        config, candidate, begun_with = _from_study(study, experiment)
    elif experiment is not None:
        raise click.UsageError("--experiment needs --study.")
    else:
        config = make_config(config_file, settings, output, budget=budget, corpus__source=corpus, **mesh)
        candidate, begun_with = load_subject(config.subject.source, config.subject.hyperparameters), None
    with RunDisplay(output) as display:
        config = config.requiring(require_sandbox)
        outcome = asyncio.run(train_once(config, candidate, seed, display.preparing, display.update, begun_with))
        if isinstance(outcome, CompletedRun):
            display.warn_of(outcome.sandbox)
            display.warn_of_worker(outcome.worker)
    if not isinstance(outcome, CompletedRun):
        raise JaxresearchError(f"{outcome.verdict}: {outcome.reason}.", fix="Nothing was scored.")
    facts = outcome.model_dump(mode="json", exclude={"status"})

    def show(console: Console) -> None:
        for key in (
            "val_bpb", "loss", "steps", "tokens", "train_seconds", "compile_seconds", "eval_seconds",
            "tokens_per_second", "mfu", "parameters", "peak_memory_bytes", "budget", "seed", "device", "attention",
            "sandbox", "worker", "flags",
        ):  # fmt: skip
            if facts[key] is None:
                continue
            console.print(f"{key + ':':20}{_plain(facts[key])}", markup=False)

    output.result(facts, show)


def _from_study(folder: Path, number: int | None) -> tuple[StudyConfig, Candidate, tuple[str, str]]:
    from jaxresearch.study.study import Study

    study = Study.open(folder, read_only=True)
    try:
        number = study.history.incumbent_number if number is None else number
        return study.config, study.candidate(number), study.begun_with
    finally:
        study.close()


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}" if value < 100 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
