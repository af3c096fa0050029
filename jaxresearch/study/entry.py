"""One experiment of a study with what the ledger says beside it: its trace, its faults, its verdict's grounds."""

from __future__ import annotations

from dataclasses import dataclass

from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.statistics.noise import Spread, spread
from jaxresearch.study.events import Decided, Quarantined, RunStarted, TraceOutcome
from jaxresearch.study.size import CodeSize


@dataclass(frozen=True)
class Entry:
    """An experiment with what the laboratory knows about it beyond the public record.

    time, anchor: when it was proposed, and that event's hash. tree: fingerprint of its candidate. key: identity of its
    runs for any seed; empty without a program. running: the run that this session has handed out.
    faults: infrastructure failures of its present step, in a row and in this session. size: of its sources.
    quarantine: why it must hold on fresh seeds before it may be kept. llm: the model that was asked for it, if any.
    places: of each of its runs, how many the study had trained before it; of a shared run, the place of the original.
    """

    experiment: Experiment
    time: float
    anchor: str
    trace: TraceOutcome | None = None
    tree: str = ""
    key: str = ""
    running: RunStarted | None = None
    faults: tuple[str, ...] = ()
    decision: Decided | None = None
    size: CodeSize | None = None
    quarantine: Quarantined | None = None
    llm: str = ""
    places: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        return self.experiment.number

    @property
    def verdict(self) -> Verdict | None:
        return self.experiment.verdict

    @property
    def believed(self) -> bool:
        """Whether its scores say anything about noise: not when it is invalid, or did not hold in quarantine."""
        held = self.quarantine is None or self.verdict in (None, Verdict.KEEP)
        return held and self.verdict is not Verdict.INVALID

    @property
    def spread(self) -> Spread:
        """Of its scores, as far as they are believed."""
        return spread(self.experiment.scores) if self.believed else Spread()
