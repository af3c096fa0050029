"""Summaries of a study for people and scripts: the object of `status --json`, and the rows of `export --format tsv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from jaxresearch.experiment import CompletedRun, Experiment, Verdict
from jaxresearch.statistics.rules import make_rule
from jaxresearch.study.beside import said_of_trials
from jaxresearch.study.confirm import said_of_test
from jaxresearch.study.cuts import cut_run, cuts
from jaxresearch.study.drift import drift, drift_warning
from jaxresearch.study.entry import Entry
from jaxresearch.study.evidence import study_pair_noise, tested
from jaxresearch.study.history import History
from jaxresearch.study.incidents import incidents_object
from jaxresearch.study.predictions import calibration, predictions
from jaxresearch.study.selection import corrected_gain_bpb, gain_bpb
from jaxresearch.text import one_line

TSV_COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
"""Of autoresearch's results.tsv, in its order; its analysis notebook reads exactly these."""

_BEGIN_A_FORMULA = "=+-@"
"""Spreadsheets run what begins so, and some start other programs for it; behind a quote it is text for all of them."""

_TSV_STATUS = {
    Verdict.KEEP: "keep",
    Verdict.DISCARD: "discard",
    Verdict.DUPLICATE: "discard",
    Verdict.CRASH: "crash",
    Verdict.INVALID: "crash",
    Verdict.TIMEOUT: "crash",
    Verdict.INFRASTRUCTURE: "crash",
}


def status_object(history: History, study: str) -> dict[str, Any]:
    """What `run --json` and `status --json` print; `study` is the folder.

    Figures that do not exist yet are None. `utilisation` is the share of the sessions' wall seconds that trained.
    """
    noise, costs, config, incumbent = history.noise, history.costs, history.config, history.incumbent
    pairs, steady = study_pair_noise(history), drift(history)
    p_value = incumbent.decision.p_value if incumbent.decision is not None else None
    return {
        "study": study,
        "strategy": config.strategy.name,
        "llm": config.llm.model,
        "experiments": sum(entry.verdict is not None for entry in history.contenders),
        "verdicts": {str(verdict): count for verdict, count in history.verdicts.items()},
        "baseline": _score(history.baseline.experiment),
        "incumbent": {"experiment": incumbent.number, **_score(incumbent.experiment), "p_value": p_value},
        "gain": gain_bpb(history),
        "gain_corrected": corrected_gain_bpb(history),
        "noise_floor": noise.sd_bpb if noise is not None else None,
        "accelerator_seconds": costs.paid_seconds,
        "discarded_seconds": costs.discarded_seconds,
        "wall_seconds": costs.wall_seconds,
        "utilisation": costs.train_seconds / costs.wall_seconds if costs.wall_seconds > 0 else None,
        "llm_cost_usd": costs.llm_cost_usd,
        "llm_tokens": costs.llm_tokens,
        "finished": history.stopped is not None and history.stopped.finished,
        "planned_experiments": history.planned,
        "max_seconds": history.max_seconds,
        "stop_after_no_gain": history.stop_after_no_gain,
        "without_gain": history.without_gain,
        "from": history.created.origin.model_dump() if history.created.origin is not None else None,
        "noise": asdict(noise) if noise is not None else None,
        "pair_noise": asdict(pairs) if pairs is not None else None,
        "expected_false_keeps": expected_false_keeps(history),
        "early_stopping": asdict(cuts(history)),
        "test": said_of_test(history),
        "trials": said_of_trials(history),
        "machine": {**(asdict(steady) if steady is not None else {}), "warning": drift_warning(history)},
        "llm_calls": costs.llm_calls,
        "llm_unpriced_tokens": costs.llm_unpriced_tokens,
        "llm_possible_cost_usd": costs.llm_possible_cost_usd,
        "max_cost": history.max_cost,
        "max_tokens": history.max_tokens,
        "failed_proposals": history.failed_proposals,
        "repairs": repairs(history),
        "calibration": calibration([predictions(history)]),
        "pending": history.pending.number if history.pending is not None else None,
        "stopped": one_line(history.stopped.reason) if history.stopped is not None else None,
        "events": history.seq,
        "head": history.head,
        "improvements": sum(entry.verdict is Verdict.KEEP and not is_simpler(entry) for entry in history.contenders),
        "simpler_keeps": sum(is_simpler(entry) for entry in history.contenders),
        "reference": history.reference_number,
        "quarantined": [entry.number for entry in history.contenders if entry.quarantine is not None],
        "constraints": config.constraints.binding,
        "incidents": incidents_object(history.incidents),
    }


def is_simpler(entry: Entry) -> bool:
    """Whether `entry` was kept because it is simpler: no improvement."""
    return entry.decision is not None and entry.decision.simpler


def repairs(history: History) -> dict[str, int]:
    """Crashed ideas that got a second chance, and how many of these were kept."""
    found = [each for each in history.contenders if each.experiment.proposal and each.experiment.proposal.repairs]
    return {"tried": len(found), "kept": sum(each.verdict is Verdict.KEEP for each in found)}


def expected_false_keeps(history: History) -> float:
    """How many keeps to expect by chance, at most: if none of the contenders judged so far had any effect."""
    return make_rule(history.config).false_keep_rate * tested(history.entries)


def tsv(history: History) -> str:
    """The log as autoresearch writes it: a header, the baseline, then one row for each decided experiment."""
    rows = (TSV_COLUMNS, *tsv_rows(history))
    return "".join("\t".join(row) + "\n" for row in rows)


def tsv_rows(history: History) -> Iterator[tuple[str, ...]]:
    """One row of `TSV_COLUMNS` for each experiment with a verdict.

    Our verdicts become autoresearch's three. A duplicate shows the figures of what it repeats, so that a `discard`
    never has the score of a crash, 0, in a search where lower is better; a run that was cut shows what it scored then.
    """
    for entry in history.entries:
        if entry.verdict is not None:
            yield _row(entry, _measured(history, entry))


def _row(entry: Entry, measured: Entry) -> tuple[str, ...]:
    status, experiment = _tsv_status(entry, measured), measured.experiment
    cut = cut_run(experiment)
    score = cut.probes[-1][1] if cut is not None else experiment.val_bpb
    crashed = status == "crash" or score is None
    val_bpb = 0.0 if crashed else score
    memory_gb = 0.0 if crashed else _peak_memory_bytes(experiment) / 2**30
    # A reader of tables would take an opening quote for the beginning of a field, and the next rows for the rest of it.
    description = one_line(entry.experiment.title).replace('"', "'") or "no description"
    if description[0] in _BEGIN_A_FORMULA:
        description = f"'{description}"
    return (entry.experiment.commit[:7], f"{val_bpb:.6f}", f"{memory_gb:.1f}", status, description)


def _tsv_status(entry: Entry, measured: Entry) -> str:
    assert entry.verdict is not None
    assert measured.verdict is not None
    repeated = _TSV_STATUS[measured.verdict]
    return repeated if repeated == "crash" else _TSV_STATUS[entry.verdict]


def _measured(history: History, entry: Entry) -> Entry:
    """The entry whose figures stand for `entry`'s."""
    if entry.decision is None or entry.decision.same_as is None:
        return entry
    return history.entries[entry.decision.same_as]


def _peak_memory_bytes(experiment: Experiment) -> int:
    return max((run.peak_memory_bytes for run in experiment.runs if isinstance(run, CompletedRun)), default=0)


def _score(experiment: Experiment) -> dict[str, Any]:
    return {"val_bpb": experiment.val_bpb, "sem": experiment.sem, "runs": len(experiment.scores)}
