"""`strategies` and `subjects`: what is installed."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxresearch.cli.common import Output, output_options


@click.command(epilog="Example: jaxresearch strategies")
@output_options
def strategies(output: Output) -> None:
    """List the installed strategies."""
    from jaxresearch.strategy import installed_strategies

    rows = [(s.name, s.summary, s.origin) for s in installed_strategies().values()]
    _list(output, "strategies", rows)


@click.command(epilog="Example: jaxresearch subjects --json")
@output_options
def subjects(output: Output) -> None:
    """List the installed subjects: what a study may edit."""
    from jaxresearch.subjects import installed_subjects

    rows = [(s.name, s.summary, s.origin) for s in installed_subjects().values()]
    _list(output, "subjects", rows)


def _list(output: Output, key: str, rows: list[tuple[str, str, str]]) -> None:
    def show(console: Console) -> None:
        table = Table("name", "what it does", "from", box=None, header_style="bold", pad_edge=False)
        for name, summary, origin in rows:
            table.add_row(name, Text(summary), origin)
        console.print(table)

    facts = [{"name": name, "summary": summary, "origin": origin} for name, summary, origin in rows]
    output.result({key: facts}, show)
