"""`pause` and `stop`: from another terminal, to the process that drives a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.text import quoted

if TYPE_CHECKING:
    from jaxresearch.study.control import Wish


@click.command(epilog="Example: jaxresearch pause studies/night")
@click.argument("study", type=click.Path(path_type=Path))
@output_options
def pause(study: Path, output: Output) -> None:
    """Have a running study end once the experiment at hand has its verdict; `resume` goes on."""
    _ask(study, "pause", "ends when the experiment at hand has its verdict", output)


@click.command(epilog="Example: jaxresearch stop studies/night")
@click.argument("study", type=click.Path(path_type=Path))
@output_options
def stop(study: Path, output: Output) -> None:
    """Have a running study end after the run at hand, as Ctrl-C does; `resume` goes on."""
    _ask(study, "stop", "ends after the run at hand", output)


def _ask(study: Path, wish: Wish, outcome: str, output: Output) -> None:
    from jaxresearch.study.control import request
    from jaxresearch.study.layout import StudyLayout

    driver = request(StudyLayout(study.absolute()), wish)
    facts = {"study": str(study), "wish": wish, "driver": driver}
    text = f"The study {outcome} ({driver}). Go on later with: jaxresearch resume {quoted(study)}"
    output.result(facts, lambda console: console.print(text, markup=False))
