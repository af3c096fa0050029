"""`confirm`: the sealed test, for the baseline and the best that was found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.hosts import hosts_options
from jaxresearch.cli.live import StudyDisplay
from jaxresearch.errors import JaxresearchError
from jaxresearch.text import quoted


@click.command(epilog="Example: jaxresearch confirm studies/mine --seeds 5")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--seeds", type=click.IntRange(2, 1000), default=5, show_default=True, help="Fresh seeds for each.")
@click.option("--again", is_flag=True, help="Open the test once more; the result says that it was open before.")
@click.option(
    "--transfer", metavar="NAME=FACTORx,...", help="Another size or time instead, as depth=2x,budget=2x; on validation."
)
@output_options
@hosts_options
def confirm(study: Path, seeds: int, again: bool, transfer: str | None, output: Output) -> int:
    """Open the sealed test split, once, for the baseline and the incumbent, on fresh seeds.

    An opening that was cut short goes on. After a whole one, its result is shown again, unless --again is given.
    With --transfer the test stays sealed: baseline and incumbent run with those hyperparameters and that budget, each from
    its own values, on fresh seeds and the validation split.
    """
    if transfer is not None:
        return _transfer(study, transfer, seeds, again, output)
    from jaxresearch.study.confirm import confirmation_object, is_confirmed
    from jaxresearch.study.session import confirm_study
    from jaxresearch.study.stopping import Interrupted
    from jaxresearch.study.study import Study

    opened = Study.open(study)
    try:
        if again or not is_confirmed(opened.history):
            with StudyDisplay(output) as display:
                asyncio.run(
                    confirm_study(
                        opened, display, count=seeds, on_preparation=display.preparing, on_stop=display.stopping
                    )
                )
        else:
            output.note("The test was opened before; this is what it said. Open it once more with --again.")
        facts = confirmation_object(opened.refresh(), str(study))
    except Interrupted:
        output.stopped(f"jaxresearch confirm {quoted(study)}")
        return INTERRUPTED
    finally:
        opened.close()
    if facts["gain"] is None and not facts["baseline"]["runs"]:
        raise JaxresearchError("no run came through on the sealed test.", fix="See `jaxresearch confirm --json`.")
    output.result(facts, lambda console: _print(console, facts))
    return 0


def _transfer(study: Path, text: str, seeds: int, again: bool, output: Output) -> int:
    from jaxresearch.study.session import transfer_study
    from jaxresearch.study.stopping import Interrupted
    from jaxresearch.study.study import Study
    from jaxresearch.study.transfer import check_scale, parse_scale, transfer_object
    from jaxresearch.study.trials import refuse_without_winner

    scale = parse_scale(text)
    opened = Study.open(study)
    try:
        refuse_without_winner(opened.history)
        check_scale(opened.history, opened.workspace, scale)
        known = transfer_object(opened.history, str(study), scale)
        if known is not None and known["finished"] and not again:
            output.note("This was run before; this is what came out. Run it once more with --again.")
        else:
            with StudyDisplay(output) as display:
                work = transfer_study(
                    opened,
                    display,
                    scale=scale,
                    count=seeds,
                    again=again,
                    on_preparation=display.preparing,
                    on_stop=display.stopping,
                )
                asyncio.run(work)
        facts = transfer_object(opened.refresh(), str(study), scale)
        assert facts is not None
    except Interrupted:
        output.stopped(f"jaxresearch confirm {quoted(study)} --transfer {quoted(text)}")
        return INTERRUPTED
    finally:
        opened.close()
    output.result(facts, lambda console: _print_transfer(console, facts))
    return 0 if facts["gain"] is not None else 1


def _print_transfer(console: Console, facts: dict[str, Any]) -> None:
    for name in ("baseline", "incumbent"):
        arm = facts[name]
        if arm["val_bpb"] is not None:
            spread = f" ± {arm['sem']:.4f}" if arm["sem"] is not None else ""
            where = f"{arm['runs']} fresh seeds of {facts['budget']} (experiment {arm['experiment']})"
            console.print(f"{name:12}val_bpb {arm['val_bpb']:.4f}{spread}, {where}", markup=False)
        for reason in arm["failed"]:
            console.print(f"{'':12}failed: {reason}", markup=False)
    if facts["claimed_gain_bpb"] is not None:
        console.print(f"{'claimed':12}{facts['claimed_gain_bpb']:.4f} bpb at the study's own scale", markup=False)
    console.print(f"\n{facts['conclusion']}", markup=False)


def _print(console: Console, facts: dict[str, Any]) -> None:
    for name in ("baseline", "incumbent"):
        arm = facts[name]
        if arm["test_bpb"] is None or (name == "incumbent" and arm["experiment"] == 0):
            continue
        spread = f" ± {arm['test_sem']:.4f}" if arm["test_sem"] is not None else ""
        console.print(
            f"{name:12}test_bpb {arm['test_bpb']:.4f}{spread}, {arm['gap_bpb']:+.4f} against validation, "
            f"{arm['runs']} fresh seeds (experiment {arm['experiment']})",
            markup=False,
        )
        for reason in arm["failed"]:
            console.print(f"{'':12}failed: {reason}", markup=False)
    for key, text in (("gain", "on the test"), ("validation_gain", "on validation, same runs")):
        gain = facts[key]
        if gain is not None and gain["low_bpb"] is not None:
            interval = f"{gain['mean_bpb']:.4f} bpb, 95 %: {gain['low_bpb']:.4f} to {gain['high_bpb']:.4f}"
            console.print(f"{'gain':12}{interval}, {text}", markup=False)
    if facts["claimed_gain_bpb"] is not None:
        console.print(f"{'claimed':12}{facts['claimed_gain_bpb']:.4f} bpb by the search itself", markup=False)
    if not facts["finished"]:
        console.print(f"{'note':12}the study had not reached its end; going on now means searching with the test known")
    console.print(f"\n{facts['conclusion']}", markup=False)
