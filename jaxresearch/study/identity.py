"""What names things in a study: seeds, run identities, fingerprints. All of it is computed, none of it is chosen."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import RunSplit, TracedCandidate, run_identity
from jaxresearch.proposal import Candidate
from jaxresearch.study.events import StudyCreated

ANY_SEED = -1
"""The seed in the identity of a run whatever its seed: equal for two candidates that are `duplicate`s."""


def run_seeds(config: StudyConfig) -> tuple[int, ...]:
    """Seeds of every experiment's runs, in order: `seed`, `seed` + 1, ...; scores are paired on them."""
    return tuple(config.seed + each for each in range(config.acceptance.runs))


def round_seed(config: StudyConfig, round_number: int) -> int:
    """Seed of the view in round `round_number`; independent of the runs' seeds."""
    return int(np.random.SeedSequence([config.seed, round_number]).generate_state(1)[0])


def identity_of(
    trace: TracedCandidate, created: StudyCreated, seed: int, split: RunSplit = "validation", own: str = ""
) -> str:
    """The identity of the run of `trace` with `seed` in the study that `created` began.

    own: what else makes it a run of its own; see `pairing.search_identity`.
    """
    return run_identity(
        program=trace.program,
        traced=trace.traced,
        phases=trace.phases,
        budget=created.config.budget,
        corpus=created.corpus,
        tokenizer=created.tokenizer,
        evaluation=created.config.evaluation_text + own,
        seed=seed,
        split=split,
    )


def candidate_fingerprint(candidate: Candidate) -> str:
    """SHA-256 of a candidate's sources and config, byte for byte; a blank line more is another fingerprint."""
    facts = {"files": dict(candidate.files), "config": dict(candidate.config)}
    return text_fingerprint(json.dumps(facts, sort_keys=True))


def text_fingerprint(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
