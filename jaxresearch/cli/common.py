"""What commands share: options, the configuration they make, and where output goes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from jaxresearch.cli.moving import TurnConsole
from jaxresearch.config import Config, StudyConfig, TournamentConfig, load_config
from jaxresearch.errors import ConfigurationError
from jaxresearch.levels import LEVELS
from jaxresearch.subjects import load_subject
from jaxresearch.text import quoted


class Output:
    """stdout for results, stderr for people's progress. With --json, stdout holds one JSON object and nothing else."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.results = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.progress = TurnConsole(stderr=True, highlight=False, quiet=quiet, soft_wrap=not sys.stderr.isatty())
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """A line of progress, as plain text: markup in it is not interpreted."""
        self.progress.print(text, markup=False)

    def note_once(self, text: str) -> None:
        """A `note`, the first time that the command says it."""
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)

    def result(self, facts: dict[str, Any], show: Callable[[Console], None]) -> None:
        """The outcome of a command: `facts` as JSON, or `show` for people."""
        if self.as_json:
            print(json.dumps(facts, allow_nan=False))
        else:
            show(self.results)

    def stopped(self, go_on: str) -> None:
        """Say that a person, or the machine, stopped the command before its result, and how to go on."""
        self.note(f"Stopped. Nothing is lost; go on with: {go_on}")
        if self.as_json:
            print(json.dumps({"error": "Stopped.", "fix": f"Go on with: {go_on}", "exit_status": 130}))


def output_options(command: Callable) -> Callable:
    """--json, --quiet and --debug; the command receives `output`."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else.")
    @click.option("--quiet", is_flag=True, help="No progress, only results.")
    @click.option("--debug", is_flag=True, help="Show tracebacks of our own errors.")
    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, quiet: bool, debug: bool, **kwargs: Any) -> Any:
        return command(*args, output=Output(as_json=as_json, quiet=quiet), **kwargs)

    return wrapper


def config_options(command: Callable) -> Callable:
    """--config and --set; the command receives `overrides` (settings that options give) merged by `make_config`."""

    @click.option(
        "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of settings."
    )
    @click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one setting; dotted, repeatable."
    )
    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return wrapper


def sandbox_option(command: Callable) -> Callable:
    """--require-sandbox; the command receives `require_sandbox`."""
    return click.option(
        "--require-sandbox",
        type=click.Choice(LEVELS),
        metavar="LEVEL",
        help=f"Refuse to trace or to run in anything weaker; strongest first: {', '.join(LEVELS)}.",
    )(command)


def ray_option(command: Callable) -> Callable:
    """--ray-address; the command receives `ray_address`."""
    return click.option(
        "--ray-address", metavar="HOST:PORT", help="Of the Ray cluster; auto: the one that this machine belongs to."
    )(command)


def make_config(
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output | None = None,
    *,
    continues: bool = False,
    **options: object,
) -> StudyConfig:
    """The configuration of a command: the file (or the default for this machine), --set, then the named options.

    options: dotted keys with `__` for the dot; None means that the option was not given. output: is told what was left out.
    continues: the subject is another study's winner, with its values.
    """
    if config_file is not None:
        return load_config(config_file, settings, options=_given(options))
    if continues:
        return load_config(default_config_file(), settings, options=_given(options), of_subject=False)
    return _of_default(default_config_file(), settings, options, StudyConfig, output)


def make_tournament_config(
    config_file: Path | None, settings: tuple[str, ...], output: Output | None = None, **options: object
) -> TournamentConfig:
    """`make_config` for a tournament; its own default file is configs/tournament.yaml."""
    if config_file is not None:
        return load_config(config_file, settings, TournamentConfig, options=_given(options))
    return _of_default(configs_folder() / "tournament.yaml", settings, options, TournamentConfig, output)


def _of_default(
    file: Path, settings: tuple[str, ...], options: dict[str, object], kind: type[Config], output: Output | None
) -> Config:
    """Nobody asked for what a default file says of hyperparameters: it is of its own subject, and no other one gets it."""
    merged = load_config(file, settings, kind, options=_given(options))
    source, meant = merged.subject.source, load_config(file, kind=kind).subject.source
    if source == meant:
        return merged
    if output is not None:
        load_subject(source, {})  # where there is none, that is all there is to say
        output.note(
            f"{source} begins with its own hyperparameters; those in {file.name} are of {meant} "
            f"(--config {quoted(file)} sets them nevertheless)"
        )
    return load_config(file, settings, kind, options=_given(options), of_subject=False)


def _given(options: dict[str, object]) -> dict[str, object]:
    return {key.replace("__", "."): value for key, value in options.items() if value is not None}


def default_config_file() -> Path:
    """configs/cpu.yaml, or the file for the accelerator that this machine has."""
    folder = configs_folder()
    if any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists():
        return folder / "tpu.yaml"
    if Path("/dev/nvidia0").exists():
        return folder / "gpu.yaml"
    return folder / "cpu.yaml"


def configs_folder() -> Path:
    """Where the shipped configurations are: in the wheel, or at the top of a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "cpu.yaml").is_file():
            return folder
    raise ConfigurationError("--config: the shipped configs are missing.", fix="Install jaxresearch again.")
