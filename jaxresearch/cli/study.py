"""`run` and `resume`: a study from its start, and on after any stop."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import click

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.approval import approver_for
from jaxresearch.cli.common import Output, config_options, make_config, output_options, ray_option, sandbox_option
from jaxresearch.cli.hosts import hosts_options
from jaxresearch.cli.live import Display, StudyDisplay
from jaxresearch.cli.options import LLM, mesh_options, study_options
from jaxresearch.cli.show import print_study
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.text import quoted


@click.command(epilog="Example: jaxresearch run --strategy greedy --llm builtin --experiments 20 --study studies/mine")
@click.option("--strategy", metavar="NAME", help="See `jaxresearch strategies`.")
@click.option("--experiments", type=click.IntRange(0), help="Proposals to try, the baseline not counted.")
@study_options(slots={"help": "Proposals asked for, and worked on, at a time."})
@click.option("--workers", type=click.IntRange(1), help="Runs at once; one for each device up to --slots if left out.")
@click.option(
    "--executor", type=click.Choice(["local", "ray"]), help="Where runs happen: this machine, or a cluster's nodes."
)
@ray_option
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), help="Wall seconds of the study.")
@click.option(
    "--stop-after-no-gain", type=click.IntRange(0), metavar="N", help="End after N experiments in a row without a gain."
)
@click.option("--study", "folder", type=click.Path(path_type=Path), help="Folder of the study; must be new or empty.")
@click.option(
    "--program",
    "instructions",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A program.md: goals, taboos and ideas for the strategy.",
)
@click.option("--approve", type=click.Choice(["none", "code"]), help="code: ask you before a changed source is traced.")
@click.option(
    "--track", "tracks", multiple=True, metavar="NAME", help="A tracker too, such as tensorboard; repeatable."
)
@mesh_options
@sandbox_option
@click.option(
    "--from", "start_from", type=click.Path(path_type=Path), metavar="STUDY", help="Begin with another study's winner."
)
@config_options
@output_options
@hosts_options
def run(
    strategy: str | None,
    experiments: int | None,
    asked: dict[str, Any],
    workers: int | None,
    executor: str | None,
    ray_address: str | None,
    max_seconds: float | None,
    stop_after_no_gain: int | None,
    folder: Path | None,
    approve: str | None,
    tracks: tuple[str, ...],
    mesh: dict[str, Any],
    instructions: Path | None,
    require_sandbox: str | None,
    start_from: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> int:
    """Run a study: baseline first, then experiments, each kept or not for a reason that is shown."""
    from jaxresearch.study.session import create_study
    from jaxresearch.tracking import check_trackers

    config = make_config(
        config_file,
        settings,
        output,
        continues=start_from is not None,
        strategy__name=strategy,
        experiments=experiments,
        max_seconds=max_seconds,
        stop_after_no_gain=stop_after_no_gain,
        execution__workers=workers,
        execution__executor=executor,
        execution__ray_address=ray_address,
        sandbox__require=require_sandbox,
        oversight__approve=approve,
        tracking=tracks or None,
        **asked,
        **mesh,
    )
    check_trackers(config.tracking)
    approver_for(config)  # nobody to ask: refuse before anything is made
    folder = folder or Path("studies") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    with Display(output) as display:
        create_study(
            folder,
            config,
            instructions=_read_instructions(instructions),
            on_preparation=display.preparing,
            start_from=start_from,
        ).close()
    output.note(f"study {folder}")
    return _drive(folder, output, new=True)


@click.command(epilog="Example: jaxresearch resume studies/mine")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--llm", **LLM, help="Another model for what is left.")
@click.option("--experiments", type=click.IntRange(0), help="Another number of proposals, those done included.")
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), help="Of all sessions, from now on.")
@click.option("--stop-after-no-gain", type=click.IntRange(0), metavar="N", help="From now on; 0: never.")
@click.option("--max-cost", type=click.FloatRange(0), help="Another cap, in US dollars, from now on.")
@click.option("--max-tokens", type=click.IntRange(1), help="Another cap, in tokens, from now on.")
@click.option("--track", "tracks", multiple=True, metavar="NAME", help="As for `run`, instead of what the study says.")
@sandbox_option
@ray_option
@output_options
@hosts_options
def resume(
    study: Path,
    llm: str | None,
    tracks: tuple[str, ...],
    require_sandbox: str | None,
    ray_address: str | None,
    output: Output,
    **caps: float | None,
) -> int:
    """Go on with a study after any stop: Ctrl-C, kill -9, a power cut, a failed provider, a cap."""
    return _drive(
        study,
        output,
        llm=llm,
        caps=caps,
        require_sandbox=require_sandbox,
        track=tracks or None,
        ray_address=ray_address,
    )


def _drive(
    folder: Path,
    output: Output,
    *,
    llm: str | None = None,
    caps: dict[str, float | None] | None = None,
    require_sandbox: str | None = None,
    track: tuple[str, ...] | None = None,
    ray_address: str | None = None,
    new: bool = False,
) -> int:
    from jaxresearch.study.heartbeat import liveness
    from jaxresearch.study.session import drive
    from jaxresearch.study.stillborn import remove_stillborn
    from jaxresearch.study.study import Study
    from jaxresearch.study.summary import status_object
    from jaxresearch.tracking import Trackers

    study = Study.open(folder)
    try:
        ask = approver_for(study.config)
        names = study.config.tracking if track is None else track
        with StudyDisplay(output, llm) as display, Trackers(study, display, names, output.note) as trackers:
            going = drive(
                study,
                trackers,
                llm=llm,
                caps=caps,
                require_sandbox=require_sandbox,
                ray_address=ray_address,
                on_preparation=display.preparing,
                on_stop=display.stopping,
                approver=ask(display) if ask is not None else None,
            )
            ending = asyncio.run(going)
        history = study.refresh()
        facts = {**status_object(history, str(folder)), **liveness(study.layout, history).facts}
        output.result(facts, lambda console: print_study(console, history, folder))
    except KeyboardInterrupt:  # before the session heard of signals
        output.stopped(f"jaxresearch resume {quoted(folder)}")
        return INTERRUPTED
    except JaxresearchError as error:
        if new and (why := remove_stillborn(study.layout.folder, study)) is not None:
            raise why from error
        raise
    finally:
        study.close()
    if ending.interrupted:
        output.note(f"Stopped. Nothing is lost; go on with: jaxresearch resume {quoted(folder)}")
        return INTERRUPTED
    if ending.incidents:
        output.note(f"Paused: {ending.reason}. Look at them, then go on with: jaxresearch resume {quoted(folder)}")
        return 1
    if ending.paused:
        output.note(f"Paused. Nothing is lost; go on with: jaxresearch resume {quoted(folder)}")
        return INTERRUPTED
    return 0


def _read_instructions(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--program: {path} cannot be read: {error}.") from None
