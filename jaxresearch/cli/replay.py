"""`replay`: every decision of a study, derived again offline."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import click

from jaxresearch.cli.common import Output, output_options


@click.command(epilog="Example: jaxresearch replay studies/mine")
@click.argument("study", type=click.Path(path_type=Path))
@output_options
def replay(study: Path, output: Output) -> int:
    """Derive every proposal and verdict again from the ledger: no key, no network, no training.

    Recorded model replies stand for the model, recorded runs for training. The first difference is named, and the exit
    status is 1.
    """
    from jaxresearch.strategy import make_strategy
    from jaxresearch.study.replay import replay as replay_study
    from jaxresearch.study.study import Study

    opened = Study.open(study, read_only=True)
    try:
        strategy = opened.config.strategy
        replayed = asyncio.run(replay_study(opened, make_strategy(strategy.name, strategy.options)))
    finally:
        opened.close()
    facts = {"study": str(study), "same": True, **dataclasses.asdict(replayed)}
    text = (
        f"The same: {replayed.proposals} proposals in {replayed.rounds} rounds, {replayed.runs} runs, "
        f"{replayed.verdicts} verdicts; {replayed.events} events."
    )
    if replayed.open_round:
        text += " The last round is still open."
    output.result(facts, lambda console: console.print(text, markup=False))
    return 0
