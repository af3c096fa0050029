"""`strategies` and `subjects`: what is installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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

    _list(output, "strategies", installed_strategies().values(), asks_model="asks a model")


@click.command(epilog="Example: jaxresearch subjects --json")
@output_options
def subjects(output: Output) -> None:
    """List the installed subjects: what a study may edit."""
    from jaxresearch.subjects import installed_subjects

    _list(output, "subjects", installed_subjects().values())


def _list(output: Output, key: str, installed: Iterable[Any], **flags: str) -> None:
    """Of each: name, summary, origin, and what is a yes or a no, `flags`: attribute -> its column's head."""

    def show(console: Console) -> None:
        table = Table("name", "what it does", *flags.values(), "from", box=None, header_style="bold", pad_edge=False)
        for row in rows:
            answers = ["yes" if row[flag] else "no" for flag in flags]
            table.add_row(row["name"], Text(row["summary"]), *answers, row["origin"])
        console.print(table)

    rows = [{name: getattr(each, name) for name in ("name", "summary", "origin", *flags)} for each in installed]
    output.result({key: rows}, show)
