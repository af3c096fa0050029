"""TensorBoard event files, by tensorboardX: the study by experiment number, and each run's loss by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun, RunProgress
from jaxresearch.study.events import Decided, RunFinished
from jaxresearch.study.history import History
from jaxresearch.study.ledger import StoredEvent
from jaxresearch.tracking.metrics import metrics_of

FOLDER = "tensorboard"
_OF_STUDY = (
    "val_bpb",
    "difference",
    "best_val_bpb",
    "accelerator_seconds",
    "wall_seconds",
    "llm_cost_usd",
    "llm_tokens",
)


class TensorBoard:
    """Writes into STUDY/tensorboard: a Reporter. `tensorboard --logdir STUDY/tensorboard` shows it."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            raise JaxresearchError(
                "tracking: TensorBoard files need tensorboardX.", fix='Install it: pip install "jaxresearch[tracking]".'
            ) from None
        self._make, self._root = SummaryWriter, folder / FOLDER
        self.wants_past = not self._root.exists()
        self._study = self._make(str(self._root / "study"))
        self._runs: dict[tuple[int, int], Any] = {}

    def on_event(self, stored: StoredEvent, history: History) -> None:
        match stored.event:
            case RunFinished() as event:
                self._end_run(event.number, event.outcome, stored.time)
            case Decided() as event:
                facts = metrics_of(stored, history) or {}
                for name in _OF_STUDY:
                    if name in facts:
                        self._study.add_scalar(f"study/{name}", facts[name], event.number, stored.time)
                self._study.add_text(
                    "verdict", f"{event.verdict}: {facts.get('reason', '')}", event.number, stored.time
                )
                self._study.flush()

    def on_progress(self, number: int, seed: int, progress: RunProgress) -> None:
        if progress.stage == "train" and progress.loss is not None:
            self._writer(number, seed).add_scalar("run/loss", progress.loss, progress.step)

    def close(self) -> None:
        for writer in (self._study, *self._runs.values()):
            writer.close()

    def _end_run(self, number: int, outcome: object, at: float) -> None:
        """A run that was not watched, such as one from before, gets its curve from its record."""
        if not isinstance(outcome, CompletedRun):
            seed = getattr(outcome, "seed", 0)
        else:
            seed = outcome.seed
            if (number, seed) not in self._runs:
                for progress, loss in outcome.curve:
                    self._writer(number, seed).add_scalar("run/loss", loss, round(progress * outcome.steps), at)
            self._writer(number, seed).add_scalar("run/val_bpb", outcome.val_bpb, outcome.steps, at)
        writer = self._runs.pop((number, seed), None)
        if writer is not None:
            writer.close()

    def _writer(self, number: int, seed: int) -> Any:
        if (number, seed) not in self._runs:
            self._runs[number, seed] = self._make(str(self._root / f"experiment-{number:04}-seed-{seed}"))
        return self._runs[number, seed]
