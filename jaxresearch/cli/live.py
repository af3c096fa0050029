"""Live displays: a moving line on a terminal, one plain line for each event elsewhere."""

from __future__ import annotations

import contextlib
from typing import Self, assert_never

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jaxresearch.cli.common import Output
from jaxresearch.execution.base import RunProgress, TracedCandidate
from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, RunOutcome, Verdict
from jaxresearch.study.events import (
    Checked,
    Decided,
    LLMCalled,
    ProposalFailed,
    ProposalRequested,
    Proposed,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    StudyCreated,
    TestOpened,
    TestScored,
    Traced,
)
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.text import one_line

_COLOURS = {Verdict.KEEP: "green", Verdict.DISCARD: "dim", Verdict.DUPLICATE: "dim"}


class _Bar:
    """One bar on a terminal; nothing elsewhere."""

    def __init__(self, output: Output) -> None:
        self.live = output.progress.is_terminal and not output.quiet
        columns = (TextColumn("  {task.description}", markup=False), BarColumn(24), TimeElapsedColumn())
        self._progress = Progress(*columns, console=output.progress, transient=True, disable=not self.live)
        self._task: TaskID | None = None
        self._name = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, name: str, text: str, done: float | None) -> None:
        """`name` tells one activity from the next; a new one starts a new clock. done: 0 to 1, None when unknown."""
        if name != self._name and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if self._task is None:
            self._task, self._name = self._progress.add_task(text, total=1.0), name
        self._progress.update(self._task, description=text, completed=done or 0.0, total=None if done is None else 1.0)

    def clear(self) -> None:
        if self._task is not None:
            with contextlib.suppress(KeyError):
                self._progress.remove_task(self._task)
        self._task, self._name = None, ""


class StageProgress(_Bar):
    """Progress of preparing a corpus."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._output, self._said = output, ""

    def update(self, stage: str, done: float) -> None:
        if not self.live and stage != self._said:
            self._output.note(f"preparing the corpus: {stage}")
            self._said = stage
        self.show(stage, f"corpus: {stage}", done)


class RunDisplay(_Bar):
    """Progress of one run."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._output, self._said = output, ""

    def update(self, progress: RunProgress) -> None:
        if not self.live and progress.stage != self._said:
            self._output.note(f"run: {progress.stage}")
            self._said = progress.stage
        self.show(progress.stage, run_text(progress), progress.progress if progress.stage == "train" else None)


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
        case stage:
            return stage


class StudyDisplay(_Bar):
    """A study as it goes: a Reporter."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._output = output

    def on_event(self, stored: StoredEvent, history: History) -> None:
        event = stored.event
        match event:
            case SessionStarted():
                self._say_session(history)
            case Proposed():
                self.clear()
                self._line(f"{event.number:4}  {one_line(event.proposal.hypothesis, 180)}", "bold")
            case Traced():
                if history.sessions and event.number == 0 and isinstance(event.outcome, TracedCandidate):
                    self._line(f"   0  baseline: {event.outcome.parameters:,} parameters", "bold")
                self.show(f"trace {event.number}", "traced", None)
            case RunStarted():
                self.show(f"run {event.number} {event.seed}", f"seed {event.seed}: starting", None)
            case RunFinished():
                self.clear()
                shared = f"; same as experiment {event.shared_from}" if event.shared_from is not None else ""
                self._line(f"      {outcome_text(event.outcome)}{shared}")
            case Decided():
                self._say_verdict(event, history)
            case ProposalFailed():
                self._line(f"      no proposal: {one_line(event.reason, 300)}", "yellow")
            case ProposalRequested():
                self.show(f"round {event.round}", "choosing the next experiment", None)
            case Stopped():
                self.clear()
            case TestOpened():
                again = "" if event.opening == 1 else f" again (opening {event.opening})"
                self._line(f"the sealed test is opened{again}, on {len(event.seeds)} fresh seeds", "bold")
            case TestScored():
                self.clear()
                self._line(f"{event.number:4}  {outcome_text(event.outcome)}")
            case StudyCreated() | Checked() | LLMCalled():
                pass
            case _:
                assert_never(event)

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        done = progress.progress if progress.stage == "train" else None
        self.show(f"run {number} {seed} {progress.stage}", f"{number:4}  seed {seed}: {run_text(progress)}", done)

    def _say_session(self, history: History) -> None:
        config = history.config
        again = "" if history.sessions <= 1 else f", session {history.sessions}: {len(history.experiments) - 1} so far"
        self._line(
            f"{config.strategy.name} asks {config.llm.model}: {config.experiments} experiments of {config.budget}{again}"
        )

    def _say_verdict(self, event: Decided, history: History) -> None:
        experiment = history.entries[event.number].experiment
        score = f" {score_text(experiment)}" if experiment.val_bpb is not None else ""
        self._line(f"      {event.verdict}{score}: {one_line(event.reason, 300)}", _COLOURS.get(event.verdict, "red"))

    def _line(self, text: str, style: str = "") -> None:
        self._output.progress.print(text, style=style, markup=False)


def outcome_text(outcome: RunOutcome) -> str:
    """One run in one line."""
    match outcome:
        case CompletedRun():
            flags = f"  [{', '.join(outcome.flags)}]" if outcome.flags else ""
            tested = f"  test_bpb {outcome.test_bpb:.4f}" if outcome.test_bpb is not None else ""
            return (
                f"seed {outcome.seed}  val_bpb {outcome.val_bpb:.4f}{tested}  train {outcome.train_seconds:.1f} s  "
                f"score {outcome.eval_seconds + outcome.audit_seconds:.1f} s{flags}"
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
