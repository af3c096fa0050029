"""`report`: a study as one self-contained page, and as a figure for a paper."""

from __future__ import annotations

from pathlib import Path

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.errors import JaxresearchError
from jaxresearch.files import write_whole


@click.command(epilog="Example: jaxresearch report studies/mine -o report.html --figure progress.svg")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; STUDY/report.html if left out."
)
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), help="The progress chart too, as .svg, .png or .pdf."
)
@output_options
def report(study: Path, out: Path | None, figure: Path | None, output: Output) -> None:
    """Write a study as one HTML page that needs nothing else: charts, diffs, verdicts, costs, integrity."""
    from jaxresearch.report.build import read_record
    from jaxresearch.report.figure import check_figure, write_progress
    from jaxresearch.report.page import render_report

    if figure is not None:
        check_figure(figure)
    record = read_record(study)
    out = out or study / "report.html"
    page = render_report(record)
    try:
        write_whole(out, page.encode())
    except OSError as error:
        raise JaxresearchError(f"--out: {out} cannot be written: {error.strerror}.", fix="Choose another.") from None
    if figure is not None:
        write_progress(record, figure)
    facts = {
        "study": str(study),
        "file": str(out),
        "bytes": len(page.encode()),
        "figure": str(figure) if figure else None,
        "experiments": len(record.experiments) - 1,
    }
    written = f"{out} ({facts['bytes'] / 1e6:.1f} MB)" + (f" and {figure}" if figure else "")
    output.result(facts, lambda console: console.print(f"Written: {written}. Open it in a browser.", markup=False))
