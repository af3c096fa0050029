"""`compare`: strategies head to head, under one budget, repeated."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.common import Output, config_options, make_tournament_config, output_options, sandbox_option
from jaxresearch.cli.hosts import hosts_options
from jaxresearch.cli.live import StudyDisplay
from jaxresearch.cli.options import study_options
from jaxresearch.config import TournamentConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.text import quoted
from jaxresearch.tournament.plan import Arm


@click.command(
    epilog="Example: jaxresearch compare --strategy greedy --strategy beam --repeats 8 --tournament tournaments/mine"
)
@click.option("--strategy", "strategies", multiple=True, metavar="NAME", help="An arm; repeat for more.")
@click.option(
    "--arm", "arms", multiple=True, metavar="NAME:LLM", help="An arm with a model, as greedy:anthropic:MODEL."
)
@click.option("--repeats", type=click.IntRange(1, 900), help="Of every arm, with other seeds each time.")
@click.option("--experiments", type=click.IntRange(0), help="Proposals of one arm in one repeat.")
@click.option("--accelerator-seconds", type=click.FloatRange(0, min_open=True), help="Of one arm in one repeat.")
@click.option("--flops", type=click.FloatRange(0, min_open=True), help="Of one arm in one repeat.")
@click.option("--no-controls", is_flag=True, help="Do not add `independent` and `random_search`.")
@study_options(
    llm={"help": "As for `run`."},
    seed={"type": click.IntRange(0, 2**31 - 1_000_000), "help": "Of the first repeat."},
    max_cost={"help": "US dollars of LLM calls, of one arm in one repeat."},
    max_tokens={"help": "Tokens of LLM calls, of one arm in one repeat."},
)
@click.option("--tournament", "folder", type=click.Path(path_type=Path), help="Its folder; the same one again goes on.")
@sandbox_option
@config_options
@output_options
@hosts_options
def compare(
    strategies: tuple[str, ...],
    arms: tuple[str, ...],
    repeats: int | None,
    experiments: int | None,
    accelerator_seconds: float | None,
    flops: float | None,
    no_controls: bool,
    asked: dict[str, Any],
    folder: Path | None,
    require_sandbox: str | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> int:
    """Compare strategies under one binding budget, repeated, with intervals and corrected p-values.

    The budget that binds is --accelerator-seconds or --flops, replicates included; where no option and no file says
    either, --experiments does. With --tournament alone it goes on with the one in that folder after any stop, or shows
    the result.
    """
    from jaxresearch.study.stopping import Interrupted
    from jaxresearch.tournament.results import results
    from jaxresearch.tournament.session import run_tournament

    if (accelerator_seconds is None) != (flops is None):  # instead of the other one in the file
        other = "flops" if flops is None else "accelerator_seconds"
        settings = (f"tournament.{other}=null", *settings)
    asked |= {
        "tournament__arms": [*strategies, *arms] or None,
        "tournament__repeats": repeats,
        "tournament__accelerator_seconds": accelerator_seconds,
        "tournament__flops": flops,
        "tournament__controls": False if no_controls else None,
        "experiments": experiments,
        "sandbox__require": require_sandbox,
    }
    config, chosen = _planned(folder, config_file, settings, asked) or _wanted(config_file, settings, asked, output)
    folder = folder or Path("tournaments") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    output.note(f"tournament {folder}: {', '.join(arm.name for arm in chosen)}; {config.tournament.repeats} repeats")
    try:
        with StudyDisplay(output) as display:
            work = run_tournament(
                folder,
                config,
                chosen,
                lambda arm, repeat: _ArmDisplay(display, output, arm, repeat),
                instructions="",
                on_preparation=display.preparing,
                on_stop=display.stopping,
            )
            tournament = asyncio.run(work)
    except Interrupted:
        output.stopped(f"jaxresearch compare --tournament {quoted(folder)}")
        return INTERRUPTED
    facts = results(tournament)
    output.result(facts, lambda console: print_tournament(console, facts))
    return 0


def _planned(
    folder: Path | None, config_file: Path | None, settings: tuple[str, ...], asked: dict[str, Any]
) -> tuple[TournamentConfig, Sequence[Arm]] | None:
    """What the tournament in `folder` began with; None where settings are given. Raises `JaxresearchError` without one."""
    from jaxresearch.tournament.tournament import Tournament

    given = config_file is not None or settings or any(value is not None for value in asked.values())
    if given or folder is None:
        return None
    there = Tournament.open(folder)
    return there.config, there.arms


def _wanted(
    config_file: Path | None, settings: tuple[str, ...], asked: dict[str, Any], output: Output
) -> tuple[TournamentConfig, Sequence[Arm]]:
    """What the options say."""
    from jaxresearch.strategy import strategy_names
    from jaxresearch.tournament.plan import make_arms

    config = make_tournament_config(config_file, settings, output, **asked)
    chosen, notes = make_arms(config, strategy_names())
    if len(chosen) < 2:
        raise ConfigurationError("--strategy: one arm has nothing to be compared with.", fix="Name another.")
    for note in notes:
        output.note(note)
    return config, chosen


class _ArmDisplay:
    """The study's display with the arm's name above each of its turns."""

    _last: tuple[str, int] | None = None

    def __init__(self, display: StudyDisplay, output: Output, arm: Arm, repeat: int) -> None:
        self._display, self._output, self._arm, self._repeat = display, output, arm, repeat

    def on_event(self, stored: StoredEvent, history: History) -> None:
        from jaxresearch.study.events import RunStarted, SessionStarted, Stopped

        if isinstance(stored.event, SessionStarted | Stopped):
            return
        if _ArmDisplay._last != (self._arm.name, self._repeat) and not isinstance(stored.event, RunStarted):
            _ArmDisplay._last = (self._arm.name, self._repeat)
            self._output.note(f"{self._arm.name}, repeat {self._repeat}")
        self._display.on_event(stored, history)

    def on_progress(self, number: int, seed: int, progress: Any) -> None:
        self._display.on_progress(number, seed, progress)


def print_tournament(console: Console, facts: dict[str, Any]) -> None:
    """The arms, the contrasts, and what they show, in 80 columns: an interval stands below its mean."""
    arms = _table("arm", "val_bpb,\nfresh seeds", "test_bpb", "best\nso far", "tried", "kept", "seconds")
    for arm in facts["strategies"]:
        arms.add_row(
            Text(arm["name"]),
            _interval(arm["best_val_bpb"]),
            _interval(arm["test_bpb"]),
            f"{arm['anytime_auc']['mean']:.4f}" if arm["anytime_auc"] else "-",
            f"{arm['experiments']['mean']:.1f}" if arm["experiments"] else "-",
            f"{arm['rates']['keep']:.0%}" if arm["rates"] else "-",
            f"{arm['accelerator_seconds']:.0f}",
        )
    console.print(arms)
    told = f"{facts['repeats']} of {facts['planned_repeats']} repeats; each arm in each: {facts['budget']}. "
    console.print(f"\n{told}Intervals: 95 %. Seconds: of the accelerator, in all repeats.", markup=False)
    if facts["pairwise"]:
        contrasts = _table("contrast (below zero: the first is better)", "val_bpb", "p, corrected")
        for each in facts["pairwise"]:
            interval = _interval({"mean": each["difference"], "low": each["low"], "high": each["high"]}, sign=True)
            contrasts.add_row(Text(f"{each['a']} against {each['b']}"), interval, f"{each['p_value']:.3g}")
        console.print()
        console.print(contrasts)
    if facts["warning"]:
        console.print(f"\n{facts['warning']}", markup=False)
    console.print(f"\n{facts['conclusion']}", markup=False)


def _table(first: str, *others: str) -> Table:
    """Names are folded where they are long; figures never are."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(found: dict[str, float | None] | None, *, sign: bool = False) -> str:
    if found is None:
        return "-"
    plus = "+" if sign else ""
    mean = f"{found['mean']:{plus}.4f}"
    if found["low"] is None or found["high"] is None:
        return mean
    return f"{mean}\n{found['low']:{plus}.4f} to {found['high']:{plus}.4f}"
