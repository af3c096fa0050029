"""`run` and `resume`: a study from its start, and on after any stop."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import click

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.approval import approver_for
from jaxresearch.cli.common import Output, config_options, make_config, output_options, sandbox_option
from jaxresearch.cli.hosts import hosts_options
from jaxresearch.cli.live import Display, StudyDisplay
from jaxresearch.cli.show import print_study
from jaxresearch.errors import ConfigurationError


@click.command(epilog="Example: jaxresearch run --strategy greedy --llm builtin --experiments 20 --study studies/mine")
@click.option("--strategy", metavar="NAME", help="See `jaxresearch strategies`.")
@click.option(
    "--llm", metavar="MODEL", help="builtin (no key) or PROVIDER:MODEL; 'A@2, B' take turns, 'A | B' falls back."
)
@click.option("--experiments", type=click.IntRange(0), help="Proposals to try, the baseline not counted.")
@click.option("--budget", help="Of one run: 300s, 5m, 2000steps, 50Mtok, 1e15flop.")
@click.option("--corpus", metavar="NAME_OR_PATH", help="As for `prepare`.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the study: run seeds and the strategy's choices.")
@click.option("--slots", type=click.IntRange(1), help="Proposals asked for, and worked on, at a time.")
@click.option("--workers", type=click.IntRange(1), help="Runs at once; one for each device up to --slots if left out.")
@click.option("--executor", type=click.Choice(["local"]), help="Where runs happen: a warm worker on this machine.")
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), help="Wall seconds of the study.")
@click.option("--max-cost", type=click.FloatRange(0), help="US dollars of LLM calls; never exceeded.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens of LLM calls, both ways; never exceeded.")
@click.option("--study", "folder", type=click.Path(path_type=Path), help="Folder of the study; must be new or empty.")
@click.option(
    "--program",
    "instructions",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A program.md: goals, taboos and ideas for the strategy.",
)
@click.option("--approve", type=click.Choice(["none", "code"]), help="code: ask you before a changed source is traced.")
@click.option("--devices", type=click.IntRange(1), help="Devices that one run is spread over.")
@sandbox_option
@click.option(
    "--fsdp", type=click.IntRange(1), help="Devices that hold one state together; chosen by its size if left out."
)
@click.option(
    "--from", "start_from", type=click.Path(path_type=Path), metavar="STUDY", help="Begin with another study's winner."
)
@config_options
@output_options
@hosts_options
def run(
    strategy: str | None,
    llm: str | None,
    experiments: int | None,
    budget: str | None,
    corpus: str | None,
    seed: int | None,
    slots: int | None,
    workers: int | None,
    executor: str | None,
    max_seconds: float | None,
    max_cost: float | None,
    max_tokens: int | None,
    folder: Path | None,
    approve: str | None,
    devices: int | None,
    fsdp: int | None,
    instructions: Path | None,
    require_sandbox: str | None,
    start_from: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> int:
    """Run a study: baseline first, then experiments, each kept or not for a reason that is shown."""
    from jaxresearch.study.session import create_study

    config = make_config(
        config_file,
        settings,
        strategy__name=strategy,
        llm__model=llm,
        experiments=experiments,
        budget=budget,
        corpus__source=corpus,
        seed=seed,
        slots=slots,
        max_seconds=max_seconds,
        max_cost=max_cost,
        max_tokens=max_tokens,
        execution__devices=devices,
        execution__workers=workers,
        execution__fsdp=fsdp,
        execution__executor=executor,
        sandbox__require=require_sandbox,
        oversight__approve=approve,
    )
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
    return _drive(folder, output)


@click.command(epilog="Example: jaxresearch resume studies/mine")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--llm", metavar="MODEL", help="Another model for what is left.")
@click.option("--max-cost", type=click.FloatRange(0), help="Another cap, in US dollars, from now on.")
@click.option("--max-tokens", type=click.IntRange(1), help="Another cap, in tokens, from now on.")
@sandbox_option
@output_options
@hosts_options
def resume(
    study: Path,
    llm: str | None,
    max_cost: float | None,
    max_tokens: int | None,
    require_sandbox: str | None,
    output: Output,
) -> int:
    """Go on with a study after any stop: Ctrl-C, kill -9, a power cut, a failed provider, a cap."""
    return _drive(study, output, llm=llm, max_cost=max_cost, max_tokens=max_tokens, require_sandbox=require_sandbox)


def _drive(
    folder: Path,
    output: Output,
    *,
    llm: str | None = None,
    max_cost: float | None = None,
    max_tokens: int | None = None,
    require_sandbox: str | None = None,
) -> int:
    from jaxresearch.study.session import drive
    from jaxresearch.study.study import Study
    from jaxresearch.study.summary import status_object

    study = Study.open(folder)
    try:
        ask = approver_for(study.config)
        with StudyDisplay(output) as display:
            going = drive(
                study,
                display,
                llm=llm,
                max_cost=max_cost,
                max_tokens=max_tokens,
                require_sandbox=require_sandbox,
                on_preparation=display.preparing,
                approver=ask(display) if ask is not None else None,
            )
            ending = asyncio.run(going)
        history = study.refresh()
        output.result(status_object(history, str(folder)), lambda console: print_study(console, history, folder))
    finally:
        study.close()
    if ending.interrupted:
        output.note(f"Stopped. Nothing is lost; go on with: jaxresearch resume {folder}")
        return INTERRUPTED
    if ending.incidents:
        output.note(f"Paused: {ending.reason}. Look at them, then go on with: jaxresearch resume {folder}")
        return 1
    if ending.paused:
        output.note(f"Paused. Nothing is lost; go on with: jaxresearch resume {folder}")
        return INTERRUPTED
    return 0


def _read_instructions(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--program: {path} cannot be read: {error}.") from None
