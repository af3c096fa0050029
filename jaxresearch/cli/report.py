"""`report`: a study or a tournament as one self-contained page, and as a figure for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.uncollected import uncollected
from jaxresearch.errors import JaxresearchError
from jaxresearch.files import write_whole


@click.command(epilog="Example: jaxresearch report studies/mine -o report.html --figure progress.svg")
@click.argument("folder", metavar="STUDY_OR_TOURNAMENT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; report.html in it if left out."
)
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Its chart too, as .svg, .png or .pdf.")
@output_options
@uncollected()
def report(folder: Path, out: Path | None, figure: Path | None, output: Output) -> None:
    """Write a study as one HTML page that needs nothing else: charts, diffs, verdicts, costs, integrity.

    Of a tournament: best-so-far curves with bands over experiments, accelerator time and dollars, and the contrasts.
    """
    from jaxresearch.report.figure import check_figure
    from jaxresearch.tournament.plan import PLAN_FILE

    if figure is not None:
        check_figure(figure)
    write = _tournament if (folder / PLAN_FILE).is_file() else _study
    page, facts = write(folder, figure)
    out = out or folder / "report.html"
    try:
        write_whole(out, page.encode())
    except OSError as error:
        raise JaxresearchError(f"--out: {out} cannot be written: {error.strerror}.", fix="Choose another.") from None
    facts |= {"file": str(out), "bytes": len(page.encode()), "figure": str(figure) if figure else None}
    written = f"{out} ({facts['bytes'] / 1e6:.1f} MB)" + (f" and {figure}" if figure else "")
    output.result(facts, lambda console: console.print(f"Written: {written}. Open it in a browser.", markup=False))


def _study(folder: Path, figure: Path | None) -> tuple[str, dict[str, Any]]:
    from jaxresearch.report.build import read_record
    from jaxresearch.report.figure import write_progress
    from jaxresearch.report.page import render_report

    record = read_record(folder)
    if figure is not None:
        write_progress(record, figure)
    return render_report(record), {"study": str(folder), "experiments": len(record.experiments) - 1}


def _tournament(folder: Path, figure: Path | None) -> tuple[str, dict[str, Any]]:
    from jaxresearch.report.figure import write_curves
    from jaxresearch.report.page import render_tournament
    from jaxresearch.tournament.results import results
    from jaxresearch.tournament.tournament import Tournament

    found = results(Tournament.open(folder))
    if figure is not None:
        write_curves(found, figure)
    return render_tournament(found), {"tournament": str(folder), "repeats": found["repeats"]}
