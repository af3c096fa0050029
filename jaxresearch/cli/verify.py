"""`verify`: the ledger, the programs and the scores of a study, checked against each other."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.live import RunDisplay


@click.command(epilog="Example: jaxresearch verify studies/mine 3")
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("experiment", type=click.IntRange(0), required=False)
@click.option("--head", metavar="HASH", help="A head noted earlier (`status`): it must still be in the ledger.")
@click.option("--rescore", is_flag=True, help="Also score every kept final state again, by its stored program.")
@output_options
def verify(study: Path, experiment: int | None, head: str | None, rescore: bool, output: Output) -> None:
    """Check a study's ledger, programs, scores and checkpoints; with EXPERIMENT, also train its runs again and compare."""
    from jaxresearch.study.rescoring import rescore_study
    from jaxresearch.study.study import Study
    from jaxresearch.study.verification import verify_run, verify_study

    opened = Study.open(study, read_only=True)
    try:
        if head is not None:
            opened.check_head(head)
        with RunDisplay(output) as display:
            found = verify_study(opened, display.preparing)
            rescored = asyncio.run(rescore_study(opened, display.preparing)) if rescore else []
            repeated = []
            if experiment is not None:
                repeated = asyncio.run(verify_run(opened, experiment, display.preparing, display.update))
    finally:
        opened.close()
    facts = {"study": str(study), **asdict(found), "repeated": [asdict(each) for each in repeated]}
    facts["rescored"] = [asdict(each) for each in rescored]

    def show(console: Console) -> None:
        console.print(
            f"In order: {found.events} events, {found.programs} programs, {found.scores} scores, "
            f"{found.checkpoints} checkpoints."
        )
        if rescored:
            unlike = sum(not each.exact for each in rescored)
            console.print(
                f"Scored again: {len(rescored)} final states, "
                + ("to the last digit." if not unlike else f"{unlike} on an unlike machine, within rounding.")
            )
        for each in repeated:
            how = "to the last digit" if each.exact else f"{each.repeated_bpb:.6f} on an unlike machine"
            console.print(f"Trained again with seed {each.seed}: {each.recorded_bpb:.6f}, {how}.")

    output.result(facts, show)
