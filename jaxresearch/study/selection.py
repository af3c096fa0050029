"""Selection: the incumbent's gain, less what choosing it among many has flattered it by."""

from __future__ import annotations

import math

from jaxresearch.statistics.confirmation import paired_gain
from jaxresearch.statistics.selection import shrink
from jaxresearch.study.entry import Entry
from jaxresearch.study.evidence import kind_of, study_pair_noise
from jaxresearch.study.history import History
from jaxresearch.study.pairing import contest_scores


def gain_bpb(history: History) -> float | None:
    """How far the incumbent is below the baseline, on the seeds that both ran, in bits per byte."""
    baseline, best = history.baseline.experiment, history.incumbent.experiment
    if best.number == baseline.number:
        return None
    if (paired := paired_gain(baseline.scores, best.scores)) is not None:
        return paired.mean_bpb
    return None if baseline.val_bpb is None or best.val_bpb is None else baseline.val_bpb - best.val_bpb


def corrected_gain_bpb(history: History) -> float | None:
    """That gain, each step on the way counted as it is after shrinkage by all effects of the study.

    None where there is no gain, or the noise is unknown. Where no pair was replicated, as under `greedy`, differences
    count as those of unpaired runs.
    """
    gain, pairs, seeds = gain_bpb(history), study_pair_noise(history), history.noise
    if gain is None or seeds is None:
        return None
    unpaired = math.sqrt(2) * seeds.sd_bpb
    paired = pairs.sd_bpb if pairs is not None else unpaired
    effects, errors = {}, []
    for entry in history.contenders:
        rival = _rival(history, entry)
        found = paired_gain(*contest_scores(history, entry, rival)) if rival is not None and entry.believed else None
        if found is None:
            continue
        alike = rival is not None and kind_of(entry) == kind_of(rival)
        deviation = paired if alike else max(paired, unpaired)
        if deviation <= 0:
            return gain
        effects[entry.number] = found.mean_bpb
        errors.append(deviation / math.sqrt(found.pairs))
    left = dict(zip(effects, shrink(list(effects.values()), errors), strict=True))
    at: Entry | None = history.incumbent
    while at is not None:
        gain += effects.get(at.number, 0.0) - left.get(at.number, 0.0)  # both below zero where it is better
        at = _rival(history, at)
    return gain


def _rival(history: History, entry: Entry) -> Entry | None:
    """The incumbent that `entry` was judged against, an earlier experiment."""
    number = entry.decision.incumbent if entry.decision is not None else None
    return history.entries[number] if number is not None and number < entry.number else None
