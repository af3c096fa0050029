"""Live displays: a moving line on a terminal, one plain line for each event elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Self, assert_never

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from jaxresearch.cli.board import Board
from jaxresearch.cli.common import Output
from jaxresearch.cli.moving import Moving
from jaxresearch.execution.base import RunProgress, TracedCandidate
from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, RunOutcome, Verdict
from jaxresearch.strategy import asks_model
from jaxresearch.study.events import (
    Approval,
    Checked,
    Decided,
    LLMCalled,
    ProposalFailed,
    ProposalRequested,
    Proposed,
    Quarantined,
    RunDiscarded,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    StudyCreated,
    TestOpened,
    TestScored,
    Traced,
    TrialClosed,
    TrialJudged,
    TrialOpened,
    TrialRun,
    TrialTraced,
)
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.study.reporter import run_ended_by
from jaxresearch.text import one_line

_COLOURS = {Verdict.KEEP: "green", Verdict.DISCARD: "dim", Verdict.DUPLICATE: "dim"}


class Display:
    """One bar on a terminal; elsewhere a plain line when something new begins."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._said, self._warned_of_worker = "", False
        self._task: TaskID | None = None
        self._name = ""
        self.live = output.progress.is_terminal and not output.quiet
        columns = (TextColumn("  {task.description}", markup=False), BarColumn(24), TimeElapsedColumn())
        self._progress = Progress(*columns, console=output.progress, auto_refresh=False)
        self._moving = Moving(output.progress, self._now)

    def __enter__(self) -> Self:
        if self.live:
            self._moving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._moving.stop()

    def _now(self) -> RenderableType:
        """What is drawn in place below the lines that stay."""
        return self._progress.get_renderable() if self._task is not None else ""

    @property
    def console(self) -> Console:
        return self._output.progress

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Without the moving line, while a person is asked something."""
        self.clear()
        self._moving.stop()
        try:
            yield
        finally:
            if self.live:
                self._moving.start()

    def show(self, name: str, text: str, done: float | None) -> None:
        """`name` tells one activity from the next; a new one starts a new clock. done: 0 to 1, None when unknown."""
        if name != self._name and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if self._task is None:
            self._task, self._name = self._progress.add_task(text, total=1.0), name
        self._progress.update(self._task, description=text, completed=done or 0.0, total=None if done is None else 1.0)

    def preparing(self, stage: str, done: float) -> None:
        """Progress of preparing a corpus."""
        self.show(f"corpus {stage.partition(':')[0]}", f"corpus: {stage}", done)
        if not self.live:
            self._output.note_once(f"preparing the corpus: {stage}")

    def stopping(self, said: str) -> None:
        """A request to stop was heard; `said`: what it leads to."""
        self._output.progress.print(said, style="yellow", markup=False)

    def say_once(self, text: str) -> None:
        """`text` as a plain line, where there is no bar and it was not just said."""
        if not self.live and text != self._said:
            self._output.note(text)
            self._said = text

    def warn_of(self, sandbox: str) -> None:
        """Say loudly that candidates are traced in a tier that stops no attacker."""
        if sandbox == "subprocess":
            text = f"WARNING: sandbox tier {sandbox}: a candidate's code can read your files and reach the network. "
            self._output.progress.print(text + "Install bubblewrap; see `jaxresearch doctor`.", style="bold yellow")

    def warn_of_worker(self, worker: str) -> None:
        """Say once why the process that runs programs has our rights, where it does."""
        if worker.startswith("unsandboxed") and not self._warned_of_worker:
            self._warned_of_worker = True
            self._output.progress.print(f"WARNING: worker {worker}.", style="bold yellow", markup=False)

    def clear(self) -> None:
        if self._task is not None:
            with contextlib.suppress(KeyError):
                self._progress.remove_task(self._task)
        self._task, self._name = None, ""


class RunDisplay(Display):
    """Progress of one run."""

    def update(self, progress: RunProgress) -> None:
        self.show(progress.stage, run_text(progress), progress.progress if progress.stage == "train" else None)
        self.say_once(f"run: {progress.stage}")


def run_text(progress: RunProgress) -> str:
    """What a run is doing, in a few words."""
    match progress.stage:
        case "train":
            loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
            return f"training: step {progress.step}{loss}"
        case "score":
            return "scoring and auditing"
        case "compile":
            return "compiling"
        case "sample":
            return f"sampling: token {progress.step}"
        case stage:
            return stage


class StudyDisplay(Display):
    """A study as it goes: a Reporter. llm: the model of this session, when it is not the study's own."""

    def __init__(self, output: Output, llm: str | None = None) -> None:
        self._board, self._llm = Board(), llm
        super().__init__(output)

    def _now(self) -> RenderableType:
        return super()._now() if self._task is not None else self._board

    def clear(self) -> None:
        super().clear()
        self._board.activity = ""

    def doing(self, text: str) -> None:
        """What goes on while no run has anything to tell."""
        self.clear()
        self._board.activity = text

    def on_event(self, stored: StoredEvent, history: History) -> None:
        event = stored.event
        self._board.learn(history)
        if (ended := run_ended_by(event, history)) is not None:
            self._board.end(*ended)
        self._several = sum(entry.running is not None for entry in history.entries) > 1 or history.config.slots > 1
        match event:
            case SessionStarted():
                self._say_session(history)
            case Proposed():
                self.clear()
                self._line(one_line(event.proposal.hypothesis, 180), "bold", number=event.number)
            case Traced():
                if history.sessions and event.number == 0 and isinstance(event.outcome, TracedCandidate):
                    self._line(f"baseline: {event.outcome.parameters:,} parameters", "bold", number=0)
                    self.warn_of(event.outcome.sandbox)
                self.doing(f"{event.number} is traced")
            case RunStarted():
                self.doing(f"{event.number}, seed {event.seed}: starting")
            case RunFinished():
                self.clear()
                self.warn_of_worker(getattr(event.outcome, "worker", ""))
                told = outcome_text(event.outcome)
                if event.shared_from is not None:
                    told += f"; same as experiment {event.shared_from}"
                if event.number < len(history.entries) - 1 and not self._several:
                    told += f"  (experiment {event.number}, to compare with)"  # the incumbent on a contender's seed
                self._line(told, number=event.number if self._several else None)
            case Quarantined():
                self._line(f"quarantined: {one_line(event.reason, 300)}; it runs again on fresh seeds", "bold yellow")
            case Decided():
                self._say_verdict(event, history)
            case Approval():
                answer = "approved" if event.approved else f"refused: {one_line(event.reason, 200)}"
                self._line(f"the change is {answer}", "" if event.approved else "yellow")
            case ProposalFailed():
                self._line(f"no proposal: {one_line(event.reason, 300)}", "yellow")
            case ProposalRequested():
                self.doing("choosing the next experiment")
            case Stopped():
                self.clear()
                self._board.end_all()
            case TestOpened():
                again = "" if event.opening == 1 else f" again (opening {event.opening})"
                self._line(f"the sealed test is opened{again}, on {len(event.seeds)} fresh seeds", "bold")
            case TestScored():
                self.clear()
                self._line(f"{event.number:4}  {outcome_text(event.outcome)}")
            case TrialOpened():
                self._line(
                    f"{event.purpose} of experiment {event.experiment}, on {len(event.seeds)} fresh seeds", "bold"
                )
            case TrialTraced():
                self.doing(f"traced: {event.arm}")
            case TrialRun():
                self.clear()
                self._line(f"      {event.arm}: {outcome_text(event.outcome)}")
            case TrialJudged():
                verdict = "needed" if event.needed else "not needed"
                self._line(f"change {event.number} is {verdict}: {one_line(event.reason, 300)}")
            case StudyCreated() | Checked() | LLMCalled() | RunDiscarded() | TrialClosed():
                pass
            case _:
                assert_never(event)

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        self.clear()
        self._board.move(number, seed, progress)

    def _say_session(self, history: History) -> None:
        config = history.config
        again = "" if history.sessions <= 1 else f", session {history.sessions}: {len(history.experiments) - 1} so far"
        who = config.strategy.name
        if asks_model(who):
            who += f" asks {self._llm or config.llm.model}"
        count = f"{history.planned} experiment{'s' * (history.planned != 1)}"
        self._output.note(f"{who}: {count} of {config.budget}{again}")

    def _say_verdict(self, event: Decided, history: History) -> None:
        style = _COLOURS.get(event.verdict, "red")
        if event.number == 0:
            self._line(one_line(event.reason, 300), "green" if event.verdict is Verdict.KEEP else "red")
            return
        experiment = history.entries[event.number].experiment
        score = f" {score_text(experiment)}" if experiment.val_bpb is not None else ""
        number = event.number if self._several else None
        self._line(f"{event.verdict}{score}: {one_line(event.reason, 300)}", style, number=number)

    def _line(self, text: str, style: str = "", number: int | None = None) -> None:
        """A line that belongs to an experiment; what does not fit goes on below its beginning."""
        label = "" if number is None else f"{number:4}"
        if self._output.progress.is_terminal:
            grid = Table.grid(Column(width=6), Column(ratio=1))
            grid.add_row(Text(label, style), Text(text, style))
            self._output.progress.print(grid)
        else:
            self._output.note(f"{label:6}{text}")


def outcome_text(outcome: RunOutcome) -> str:
    """One run in one line."""
    match outcome:
        case CompletedRun():
            flags = f"  [{', '.join(outcome.flags)}]" if outcome.flags else ""
            taken_up = f"  resumed at {outcome.resumed[-1].progress:.0%}" if outcome.resumed else ""
            tested = f"  test_bpb {outcome.test_bpb:.4f}" if outcome.test_bpb is not None else ""
            return (
                f"seed {outcome.seed}  val_bpb {outcome.val_bpb:.4f}{tested}  train {outcome.train_seconds:.1f} s  "
                f"score {outcome.eval_seconds + outcome.audit_seconds:.1f} s{taken_up}{flags}"
            )
        case FailedRun():
            return f"seed {outcome.seed}  {outcome.verdict}: {one_line(outcome.reason, 200)}"
        case _:
            assert_never(outcome)


def score_text(experiment: Experiment) -> str:
    """Mean val_bpb, with its standard error when there is one."""
    if experiment.val_bpb is None:
        return "-"
    return f"{experiment.val_bpb:.4f}" + (f" ± {experiment.sem:.4f}" if experiment.sem is not None else "")
