"""What was run beside the search, in sentences: for `status`, the report and the record."""

from __future__ import annotations

from jaxresearch.study import ablation, transfer
from jaxresearch.study.history import History


def said_of_trials(history: History) -> list[str]:
    """One sentence for each ablation and transfer, in order; which experiment each was of."""
    return [
        f"{trial.event.purpose} of experiment {trial.event.experiment}: "
        + (ablation.conclusion(trial) if trial.event.purpose == "ablation" else transfer.conclusion(trial))
        for trial in history.trials
    ]
