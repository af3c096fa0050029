"""Verification: does what a study stored still say what its ledger says?

The ledger's hash chain and its anchors in the workspace; every stored program against its name; every score against the
stored cross-entropies of its tokens, added up again; every checkpoint against its hash. Training a run again is the last
word; `verify_run` does that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxresearch.budget import Budget
from jaxresearch.data import Corpus, evaluation_rows, prepare_corpus
from jaxresearch.data.npy import read_npy
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress
from jaxresearch.execution.process import worker_environment
from jaxresearch.experiment import MACHINE, CompletedRun, RunOutcome
from jaxresearch.study.shelf import check_states
from jaxresearch.study.study import Study

ROUNDING_BPB = 1e-3
"""How far a run may come out elsewhere: on another device, with other threads, or with another jax."""


@dataclass(frozen=True)
class Verified:
    """What was found in order."""

    events: int
    programs: int
    scores: int
    checkpoints: int = 0


@dataclass(frozen=True)
class Repeated:
    """A run that was trained, or scored, again. exact: on a like machine, so that the bits must agree; and they did."""

    seed: int
    recorded_bpb: float
    repeated_bpb: float
    exact: bool


def verify_study(study: Study, on_preparation: Callable[[str, float], None]) -> Verified:
    """Raises `JaxresearchError` that names the first thing that does not agree."""
    events = study.verify()
    config = study.config
    corpus = prepare_corpus(config, on_preparation, study.begun_with)
    study.check_corpus(corpus=corpus.fingerprint, tokenizer=corpus.tokenizer_fingerprint)
    runs = list(_scored_runs(study))
    programs = sorted({run.program for _, run in runs})
    _check_programs(study, programs)
    _check_scores(study, corpus, runs)
    checkpoints = check_states(study.layout.runs, study.history)
    return Verified(events=events, programs=len(programs), scores=len(runs), checkpoints=checkpoints)


def _scored_runs(study: Study) -> Iterator[tuple[int, CompletedRun]]:
    seen = set()
    for experiment in study.history.experiments:
        for run in experiment.runs:
            if isinstance(run, CompletedRun) and run.identity not in seen:
                seen.add(run.identity)
                yield experiment.number, run


def _check_programs(study: Study, programs: list[str]) -> None:
    if not programs:
        return
    command = [sys.executable, "-m", "jaxresearch.program.check", str(study.layout.programs), *programs]
    done = subprocess.run(
        command, env={**worker_environment(), "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"a stored program cannot be parsed (exit {done.returncode})"]
        raise JaxresearchError(lines[0])


def _check_scores(study: Study, corpus: Corpus, runs: list[tuple[int, CompletedRun]]) -> None:
    from jaxresearch.scoring.scorer import bits_per_byte

    config = study.config
    rows = evaluation_rows(corpus, config.context, config.evaluation.tokens, config.evaluation.batch)
    for number, run in runs:
        where = f"experiment {number}, seed {run.seed}"
        path = study.layout.runs / run.identity / "nats.npy"
        try:
            nats = read_npy(path)
        except (OSError, ValueError) as error:
            raise JaxresearchError(f"{where}: its stored evaluation cannot be read: {error}.") from None
        found = bits_per_byte(nats, rows[..., 1:], corpus.byte_lengths) if nats.shape == rows[..., 1:].shape else None
        if found != run.val_bpb:
            raise JaxresearchError(f"{where}: the ledger says {run.val_bpb}, its stored evaluation adds up to {found}.")


async def verify_run(
    study: Study,
    number: int,
    on_preparation: Callable[[str, float], None],
    on_progress: Callable[[RunProgress], None],
) -> list[Repeated]:
    """Train every scored run of experiment `number` again. Raises `JaxresearchError` where it comes out differently.

    Under a budget in seconds no two runs are alike, and that is refused.
    """
    from jaxresearch.execution.single import train_once

    if Budget.parse(study.config.budget).unit == "seconds":
        raise JaxresearchError(
            "A run under a budget in seconds cannot be repeated exactly.", fix="Leave EXPERIMENT out."
        )
    candidate = study.candidate(number)
    repeated = []
    for run in study.history.experiments[number].runs:
        if isinstance(run, CompletedRun):
            again = await train_once(study.config, candidate, run.seed, on_preparation, on_progress, study.begun_with)
            repeated.append(_compare(number, run, again))
    return repeated


def _compare(number: int, run: CompletedRun, again: RunOutcome) -> Repeated:
    where = f"experiment {number}, seed {run.seed}"
    if not isinstance(again, CompletedRun):
        raise JaxresearchError(f"{where}: trained again it is {again.verdict}: {again.reason}.")
    like = again.program == run.program and all(each.alike for each in run.resumed)
    return compare_scores(where, run, again.val_bpb, again.model_dump(), what="trained again", like=like)


def compare_scores(
    where: str, run: CompletedRun, bpb: float, machine: Mapping[str, Any], *, what: str, like: bool = True
) -> Repeated:
    """`run` as recorded against `bpb` found on `machine`, whose `MACHINE` facts it has: the bits, where they are alike.

    Raises `JaxresearchError` when they do not agree.
    """
    alike = like and all(getattr(run, name) == machine[name] for name in MACHINE)
    if abs(run.val_bpb - bpb) > (0 if alike else ROUNDING_BPB):
        raise JaxresearchError(f"{where}: recorded as {run.val_bpb}, {what} {bpb}.")
    return Repeated(run.seed, run.val_bpb, bpb, exact=alike)
