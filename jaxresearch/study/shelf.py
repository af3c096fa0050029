"""Which checkpoints of a study stay: those of kept experiments, whatever they weigh; all others share a quota of disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.study.history import History
from jaxresearch.training import seal
from jaxresearch.training.seal import DamagedCheckpointError, checkpoint_folder

GIGABYTE = 10**9


class Shelf:
    """The checkpoints below a study's `runs`, and the quota that they share."""

    def __init__(self, runs: Path, quota_bytes: float) -> None:
        self._runs, self._quota_bytes = runs, quota_bytes

    def wants(self, experiment: Experiment) -> bool:
        """Whether the final state of the next run of `experiment` is to be kept: of its first that comes through."""
        return experiment.checkpointed is None

    def prune(self, history: History, busy: Collection[str] = ()) -> None:
        """Remove the oldest checkpoints that may go, until all of them together are within the quota.

        Those of kept experiments stay, and of those that are not decided. busy: identities of runs that are being done,
        or were done ahead of their turn.
        """
        stay = {
            run.identity
            for experiment in history.experiments
            if experiment.verdict in (Verdict.KEEP, None)
            for run in experiment.runs
        } | set(busy)
        found = {path: _size(path) for path in self._runs.glob("*/checkpoints")}
        total = sum(size for size, _ in found.values())
        for path, (size, _) in sorted(found.items(), key=lambda each: each[1][1]):
            if total <= self._quota_bytes:
                break
            if path.parent.name not in stay:
                seal.clear(path)
                total -= size


def kept_state(runs: Path, experiment: Experiment) -> Path:
    """The folder of the final state that `experiment` keeps below `runs`, not yet checked. See `seal.read_seal`.

    Raises `JaxresearchError` that says why there is none.
    """
    number, run = experiment.number, experiment.checkpointed
    if run is None:
        why = "it has no run that came through" if not experiment.scores else "its runs kept no state"
        raise JaxresearchError(f"Experiment {number} has no checkpoint: {why}.", fix=_FIX)
    state = seal.find_named(checkpoint_folder(runs, run.identity), run.checkpoint)
    if state is None and experiment.verdict is Verdict.KEEP:
        raise JaxresearchError(f"The checkpoint of experiment {number} is gone, or damaged.", fix=_RESTORE)
    if state is None:
        raise JaxresearchError(f"The checkpoint of experiment {number} was pruned.", fix=_FIX)
    return state


def check_states(runs: Path, history: History) -> int:
    """Check every checkpoint that must be there, and what else there is, byte for byte; how many.

    Raises `JaxresearchError` that names the first one that is not as the ledger has it.
    """
    checked = set()
    for experiment in history.experiments:
        run = experiment.checkpointed
        if run is None or run.identity in checked:
            continue
        folder = checkpoint_folder(runs, run.identity)
        if experiment.verdict is not Verdict.KEEP and run.steps not in seal.sealed(folder):
            continue  # pruned
        where = f"experiment {experiment.number}, seed {run.seed}"
        try:
            seal.read_seal(seal.state_folder(folder, run.steps), name=run.checkpoint)
        except DamagedCheckpointError as error:
            raise JaxresearchError(f"{where}: its checkpoint is damaged: {error}.", fix=_RESTORE) from None
        checked.add(run.identity)
    return len(checked)


_RESTORE = "Restore it from a backup."
_FIX = "Kept experiments and the baseline have one; see `jaxresearch show STUDY`."


def _size(folder: Path) -> tuple[int, float]:
    """Bytes below `folder`, and when the newest of them were written."""
    facts = [path.lstat() for path in folder.rglob("*")]
    return sum(each.st_size for each in facts), max((each.st_mtime for each in facts), default=0.0)
