"""`cloud`: a SkyPilot task for a study, and the study's copy in a bucket."""

from __future__ import annotations

from pathlib import Path

import click

from jaxresearch.cli.app import Group
from jaxresearch.cli.common import Output, output_options
from jaxresearch.errors import JaxresearchError
from jaxresearch.files import write_whole
from jaxresearch.text import quoted

_OURS = ("folder", "coordinator", "processes", "process_id", "executor", "ray_address")
"""Options of `run` that the task gives itself; with --devices-per-run `devices` too."""


@click.group(cls=Group, epilog="Example: jaxresearch cloud render --accelerator H100:1 -o night.yaml")
def cloud() -> None:
    """Studies on rented machines."""


@cloud.command(
    epilog="Example: jaxresearch cloud render --accelerator tpu-v5e-8 --spot --bucket my-studies -o night.yaml "
    "-- --experiments 200 --max-seconds 28800"
)
@click.option("--accelerator", required=True, metavar="NAME", help="H100:1, A100-80GB:8, tpu-v5e-8, tpu-v5p-32 ...")
@click.option("--spot", is_flag=True, help="A machine that may be taken away at any time; needs --bucket.")
@click.option("--nodes", type=click.IntRange(1, 256), default=1, show_default=True, help="Machines.")
@click.option(
    "--devices-per-run",
    type=click.IntRange(1),
    metavar="N",
    help="Left out, all devices do each run together; fewer: several runs at once.",
)
@click.option("--bucket", metavar="NAME", help="Where the study is copied to, and comes back from after a preemption.")
@click.option("--study", default="study", show_default=True, metavar="NAME", help="The study's name there.")
@click.option("--save-seconds", type=click.IntRange(10), default=60, show_default=True, help="Between two copies.")
@click.option(
    "--idle-minutes", type=click.IntRange(1), default=10, show_default=True, help="Idle, before it goes down."
)
@click.option("-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Else standard output.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF run]")
@output_options
def render(
    accelerator: str,
    spot: bool,
    nodes: int,
    devices_per_run: int | None,
    bucket: str | None,
    study: str,
    save_seconds: int,
    idle_minutes: int,
    file: Path | None,
    arguments: tuple[str, ...],
    output: Output,
) -> None:
    """Write a SkyPilot task that installs, runs the study, resumes it after a preemption, and stops when it is done."""
    from jaxresearch.cloud.accelerators import parse_accelerator
    from jaxresearch.cloud.task import Task
    from jaxresearch.cloud.task import render as rendered

    _check(arguments, _OURS if devices_per_run is None else (*_OURS, "devices"))
    chosen = parse_accelerator(accelerator)
    task = Task(chosen, study, arguments, spot, nodes, bucket, save_seconds, idle_minutes, devices_per_run)
    text = rendered(task)
    if file is not None:
        try:
            write_whole(file, text.encode())
        except OSError as error:
            raise JaxresearchError(
                f"--output: {file} cannot be written: {error.strerror}.", fix="Choose another."
            ) from None
    facts = {"file": str(file) if file is not None else None, "accelerator": chosen.sky, "hosts": task.hosts}
    facts |= {"devices": task.devices, "devices_per_run": task.per_run, "runs_at_once": task.runs_at_once, "task": text}
    said = f"{file} is written; its first lines say how to launch it." if file is not None else text
    output.result(facts, lambda console: console.print(said, markup=False, highlight=False, soft_wrap=True))


def _check(arguments: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Refuse now what `jaxresearch run` would refuse on a machine that is paid for."""
    from jaxresearch.cli.study import run

    with run.make_context("jaxresearch run", list(arguments)) as context:
        taken = [
            parameter
            for parameter in run.params
            if parameter.name in ours
            and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
        ]
    if taken:
        raise click.UsageError(f"{taken[0].opts[0]} is the task's to give: leave it out.")


@cloud.command(epilog="Example: jaxresearch cloud save studies/night /bucket/night")
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@output_options
def save(study: Path, target: Path, output: Output) -> None:
    """Copy what is new of a study to a mounted bucket or another disk, also while it is being driven."""
    from jaxresearch.cloud.copying import save

    files = save(study, target)
    output.result(
        {"study": str(study), "target": str(target), "files": files},
        lambda console: console.print(f"{files} files of {study} copied to {target}", markup=False),
    )


@cloud.command(epilog="Example: jaxresearch cloud fetch /bucket/night studies/night")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("study", type=click.Path(path_type=Path))
@output_options
def fetch(source: Path, study: Path, output: Output) -> None:
    """Make a study from its copy, to go on with it here."""
    from jaxresearch.cloud.copying import fetch

    fetch(source, study)
    output.result(
        {"source": str(source), "study": str(study)},
        lambda console: console.print(f"Go on with: jaxresearch resume {quoted(study)}", markup=False),
    )
