"""`ablate`: which of the winner's changes matter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.live import StudyDisplay
from jaxresearch.study.trials import DEFAULT_SEEDS
from jaxresearch.text import quoted


@click.command(epilog="Example: jaxresearch ablate studies/mine --seeds 5")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--seeds", type=click.IntRange(2, 1000), default=DEFAULT_SEEDS, show_default=True, help="Fresh seeds for each."
)
@click.option("--again", is_flag=True, help="Begin another ablation although one is done.")
@output_options
def ablate(study: Path, seeds: int, again: bool, output: Output) -> int:
    """Take each kept change out of the winner in turn; what does not matter beyond the noise is dropped.

    Changes that later ones build on stay. What is left is the minimal winner: export --ablated. An ablation that was cut
    short goes on; a whole one is shown again.
    """
    from jaxresearch.study.ablation import ablation_object
    from jaxresearch.study.session import ablate_study
    from jaxresearch.study.stopping import Interrupted
    from jaxresearch.study.study import Study
    from jaxresearch.study.trials import refuse_without_winner

    opened = Study.open(study)
    try:
        refuse_without_winner(opened.history)
        known = ablation_object(opened.history, str(study))
        if known is not None and known["finished"] and not again:
            output.note("This winner was ablated before; this is what came out. Do it once more with --again.")
        else:
            with StudyDisplay(output) as display:
                work = ablate_study(
                    opened,
                    display,
                    count=seeds,
                    again=again,
                    on_preparation=display.preparing,
                    on_stop=display.stopping,
                )
                asyncio.run(work)
        facts = ablation_object(opened.refresh(), str(study))
        assert facts is not None
    except Interrupted:
        output.stopped(f"jaxresearch ablate {quoted(study)}")
        return INTERRUPTED
    finally:
        opened.close()
    output.result(facts, lambda console: _print(console, facts, study))
    return 0


def _print(console: Console, facts: dict[str, Any], study: Path) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("#", "right"), ("needed", "left"), ("what was changed", "left"), ("why", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for each in facts["changes"]:
        table.add_row(str(each["number"]), "yes" if each["needed"] else "no", Text(each["title"]), Text(each["reason"]))
    console.print(table)
    for name in ("winner", "minimal"):
        score = facts[name]
        if score["val_bpb"] is not None:
            spread = f" ± {score['sem']:.4f}" if score["sem"] is not None else ""
            console.print(f"{name:10}val_bpb {score['val_bpb']:.4f}{spread}, {score['runs']} fresh seeds", markup=False)
    console.print(f"\n{facts['conclusion']}", markup=False)
    if facts["dropped"] and len(facts["dropped"]) < len(facts["changes"]):
        console.print(f"jaxresearch export {quoted(study)} --format patch --ablated   the minimal winner", markup=False)
