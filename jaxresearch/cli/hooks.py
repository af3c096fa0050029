"""`hooks test`: whether a study's hooks reach anybody."""

from __future__ import annotations

from pathlib import Path

import click

from jaxresearch.cli.app import Group
from jaxresearch.cli.common import Output, output_options
from jaxresearch.errors import JaxresearchError


@click.group(cls=Group, epilog="Example: jaxresearch hooks test studies/night")
def hooks() -> None:
    """Who is told of a keep, a stop, an error."""


@hooks.command(epilog="Example: jaxresearch hooks test studies/night")
@click.argument("study", type=click.Path(path_type=Path))
@output_options
def test(study: Path, output: Output) -> None:
    """Send a message of event `test` the way that the study's settings say; exit 1 when it does not arrive."""
    from jaxresearch.study.hooks import Hooks
    from jaxresearch.study.study import Study

    opened = Study.open(study, read_only=True)
    try:
        found = Hooks.of(opened.config.hooks, opened.layout.folder)
        if found is None:
            raise JaxresearchError(
                f"{study} has no hooks.", fix="They are set when a study starts: --set hooks.url=..."
            )
        found.test(opened.history)
        found.close()
    finally:
        opened.close()
    if found.state["failed"]:
        raise JaxresearchError(f"The message was not sent: {found.state['last_error']}.", fix="See docs/operations.md.")
    output.result(found.state, lambda console: console.print("The message was sent.", markup=False))
