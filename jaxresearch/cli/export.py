"""`export`: a study's log in a format that others read."""

from __future__ import annotations

from pathlib import Path

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.errors import JaxresearchError


@click.command(epilog="Example: jaxresearch export studies/mine --format tsv -o results.tsv")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["tsv"]), default="tsv", show_default=True, help="autoresearch's log."
)
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file; standard output otherwise.")
@output_options
def export(study: Path, kind: str, out: Path | None, output: Output) -> None:
    """Write the log of a study."""
    from jaxresearch.study.study import Study
    from jaxresearch.study.summary import tsv

    opened = Study.open(study)
    try:
        text = tsv(opened.history)
    finally:
        opened.close()
    if out is not None:
        try:
            out.write_text(text, "utf-8")
        except OSError as error:
            raise JaxresearchError(f"--out: {out} cannot be written: {error.strerror}.") from None
    rows = text.count("\n") - 1
    facts = {"study": str(study), "format": kind, "rows": rows, "file": str(out) if out else None}
    if out is None:
        facts["text"] = text
    if output.as_json:
        output.result(facts, lambda _: None)
    elif out is None:
        click.echo(text, nl=False)
    else:
        output.note(f"{rows} rows written to {out}")
