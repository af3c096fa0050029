"""The board: what a study is doing, on a terminal, redrawn in place below the lines that stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxresearch.execution.base import RunProgress
from jaxresearch.experiment import Verdict
from jaxresearch.study.history import History
from jaxresearch.text import one_line

ROWS = 6
"""Of runs at a time; the others are counted."""


@dataclass
class Run:
    """A run on its way. since: when its present stage was first heard of, and how far it was then."""

    progress: RunProgress
    since: float
    start: float


class Board:
    """What it shows comes from `history`, and from the progress of runs, told apart by experiment and seed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._history: History | None = None
        self._heard = clock()
        self._runs: dict[tuple[int, int], Run] = {}
        self.activity = ""

    def learn(self, history: History) -> None:
        """The study as it is now."""
        self._history, self._heard = history, self._clock()

    def move(self, number: int, seed: int, progress: RunProgress) -> None:
        before = self._runs.get((number, seed))
        if before is None or before.progress.stage != progress.stage:
            self._runs[number, seed] = Run(progress, self._clock(), progress.progress)
        else:
            before.progress = progress

    def end(self, number: int, seed: int) -> None:
        """The run is over."""
        self._runs.pop((number, seed), None)

    def end_all(self) -> None:
        self._runs.clear()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._runs or self.activity:
            yield from self._now(options.max_width)
        if self._history is not None:
            for line in standing(self._history, since=self._clock() - self._heard):
                yield Text(f"      {line}", style="dim", no_wrap=True, overflow="ellipsis")

    def _now(self, width: int) -> RenderResult:
        if not self._runs:
            yield Text(f"      {self.activity}", no_wrap=True, overflow="ellipsis")
        for (number, seed), run in list(self._runs.items())[:ROWS]:
            why = self._title(number)
            if why:
                yield Text(f"{number:4}  {why}", style="bold", no_wrap=True, overflow="ellipsis")
            row = Table.grid(padding=(0, 1))
            row.add_column(width=5)
            row.add_column(width=min(20, max(8, width // 5)))
            row.add_column(no_wrap=True, overflow="ellipsis")
            share = run.progress.progress if run.progress.stage == "train" else None
            bar = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None)
            row.add_row("", bar, Text(self._doing(number, seed, run), no_wrap=True, overflow="ellipsis"))
            yield row
        if len(self._runs) > ROWS:
            yield Text(f"      and {len(self._runs) - ROWS} more runs")

    def _title(self, number: int) -> str:
        entries = self._history.entries if self._history is not None else ()
        proposal = entries[number].experiment.proposal if number < len(entries) else None
        if proposal is None:
            return ""
        return f"on {proposal.parent}: {one_line(proposal.hypothesis, 160)}"

    def _doing(self, number: int, seed: int, run: Run) -> str:
        progress, elapsed = run.progress, self._clock() - run.since
        if progress.stage != "train":
            name = {"score": "scoring and auditing", "compile": "compiling"}.get(progress.stage, progress.stage)
            return f"{number}, seed {seed}: {name}, {short(elapsed)}"
        moved = progress.progress - run.start
        left = f", {short(elapsed * (1 - progress.progress) / moved)} left" if moved > 0.02 and elapsed > 1 else ""
        loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        return f"{number}, seed {seed}: {progress.progress:.0%}, step {progress.step}{loss}{left}"


def standing(history: History, *, since: float = 0.0) -> list[str]:
    """Where the study stands in three short lines. since: seconds after its last event."""
    costs, best = history.costs, history.incumbent.experiment
    done = sum(entry.verdict is not None for entry in history.contenders)
    wall = costs.wall_seconds + since
    if best.val_bpb is None:
        first = "the baseline is being measured"
    else:
        spread = f" ± {best.sem:.4f}" if best.sem is not None else ""
        which = f"experiment {best.number}" if best.number else "the baseline"
        noise = f"; noise {history.noise.sd_bpb:.4f} sd" if history.noise is not None else ""
        first = f"best {best.val_bpb:.4f}{spread}, {which}{noise}"
    kept = history.verdicts[Verdict.KEEP]
    rate, ahead = "", ""
    begun = history.contenders[0].time if history.contenders else None
    if done and begun is not None:
        pace = max(1e-9, wall * (history.time - begun) / max(1e-9, history.time - history.entries[0].time)) / done
        if history.sessions > 1:  # the time between sessions is not the study's
            pace = wall / done
        rate = f", {3600 / pace:.1f} an hour"
        seconds = pace * (history.planned - done)
        if history.max_seconds is not None:
            seconds = min(seconds, history.max_seconds - wall)
        ahead = f", about {short(max(0.0, seconds))} to go"
    planned = f"{history.planned} experiment{'s' * (history.planned != 1)}"
    second = f"{done} of {planned}, {kept} kept{rate}{ahead}"
    cap = f" of {short(history.max_seconds)}" if history.max_seconds is not None else ""
    third = f"{short(wall)}{cap}"
    if costs.train_seconds > 0 and wall > 0:  # a run counts when it is over: until then nobody can say
        third += f", {costs.train_seconds / wall:.0%} training"
    third += f"; LLM ${costs.llm_cost_usd:.2f}" + (
        f" of ${history.max_cost:.2f}" if history.max_cost is not None else ""
    )
    if history.max_tokens is not None:
        third += f", {costs.capped_tokens:,} of {history.max_tokens:,} tokens"
    return [first, second, third]


def short(seconds: float) -> str:
    """A length of time in at most two units.

    >>> short(3725)
    '1 h 2 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
