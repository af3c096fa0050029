"""One run inside a worker: compile, train, score, audit; a RunOutcome in the end, whatever the program does."""

from __future__ import annotations

import io
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxresearch.budget import Budget
from jaxresearch.data.batches import Batches
from jaxresearch.data.dataset import Corpus
from jaxresearch.data.npy import read_npy
from jaxresearch.data.prefetch import Prefetched
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.execution.peers import Peers
from jaxresearch.execution.utilisation import model_flops_utilisation
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.experiment import MACHINE, Audit, CompletedRun, FailedRun, Verdict
from jaxresearch.files import write_whole
from jaxresearch.scoring.audits import AuditSubject, gain_audits, probe_audit, routine_audits
from jaxresearch.scoring.scorer import CompiledScorer, NotFiniteError, Score, bits_per_byte, score
from jaxresearch.text import one_line
from jaxresearch.training.checkpoints import Checkpoints
from jaxresearch.training.probing import Probing
from jaxresearch.training.seal import Owner, checkpoint_folder
from jaxresearch.training.trainer import CompiledProgram, Trained, TrainingFailedError, train

_ROUNDING_BPB = 1e-6
"""How far a stored evaluation may add up otherwise on another machine."""
_NOT_COMMON = "no checkpoints: not all hosts see the study's folder; give them one that they share, under the same path"


class RunHost(Protocol):
    """The worker, as a run sees it."""

    settings: WorkerSettings
    corpus: Corpus
    rows: np.ndarray
    memory_bytes: int
    peers: Peers

    def sealed_rows(self) -> np.ndarray: ...
    def facts(self) -> dict: ...
    def runs_are_common(self) -> bool: ...
    def spoken_to(self) -> bool: ...
    def progress(self, progress: RunProgress, *, force: bool = False) -> None: ...
    def executables(self, program: str) -> tuple[CompiledProgram, CompiledScorer, float]: ...


def run_program(host: RunHost, request: RunRequest) -> CompletedRun | FailedRun:
    """Do what `request` asks. A program that fails is a FailedRun with the reason; our own failures raise.

    A run that was cut, and is asked for again, goes on from its last checkpoint.
    Over several processes each runs this, and all must take the same way: what only one knows (a file, a clock, what
    is random) is shared before anything depends on it. Checkpoints need a folder that all see; without one the run's
    record says that there are none.
    """
    if host.settings.checkpoint_seconds is None and not request.keep_state:
        return _run(host, request, None)
    if not host.runs_are_common():
        return _run(host, request, None).model_copy(update={"checkpoint_note": _NOT_COMMON})
    checkpoints = _checkpoints(host, request)
    name, ran = "", time.monotonic()
    try:
        outcome = _run(host, request, checkpoints)
        ran = time.monotonic()
        if not host.peers.spoilt:
            name = checkpoints.end(outcome.steps if isinstance(outcome, CompletedRun) else None)
    finally:
        if not host.peers.spoilt:  # else one would wait for processes that will not come; this one ends soon
            checkpoints.close()
    keep_seconds = time.monotonic() - ran
    facts = {"resumed": checkpoints.resumed, "checkpoint_note": checkpoints.note, "keep_seconds": keep_seconds}
    facts |= {"total_seconds": outcome.total_seconds + keep_seconds}
    return outcome.model_copy(update=facts | ({"checkpoint": name} if name else {}))


def _checkpoints(host: RunHost, request: RunRequest) -> Checkpoints:
    facts = host.facts()
    owner = Owner(
        program=request.program,
        traced=Owner.exact(request.traced),
        seed=request.seed,
        budget=request.budget,
        corpus=host.corpus.fingerprint,
        tokenizer=host.corpus.tokenizer_fingerprint,
    )
    return Checkpoints(
        checkpoint_folder(host.settings.runs, request.identity),
        owner,
        every_seconds=host.settings.checkpoint_seconds,
        keeps_final=request.keep_state,
        machine={name: facts[name] for name in MACHINE},
        give_up=host.spoken_to,
        company=host.peers,
    )


def _run(host: RunHost, request: RunRequest, checkpoints: Checkpoints | None) -> CompletedRun | FailedRun:
    started = time.monotonic()
    spent = {"trace_seconds": request.trace_seconds, "verify_seconds": request.verify_seconds}

    def total() -> float:
        return time.monotonic() - started + request.trace_seconds + request.verify_seconds

    def failed(verdict: Verdict, reason: str, **facts) -> FailedRun:
        return FailedRun(
            identity=request.identity,
            verdict=verdict,
            reason=reason,
            seed=request.seed,
            program=request.program,
            total_seconds=total(),
            **spent,
            **facts,
        )

    def broke(error: Exception, stage: str, **facts) -> FailedRun:
        host.peers.after_error()
        return failed(*_judge_runtime_error(error, stage), **facts)

    host.progress(RunProgress("compile"), force=True)
    try:
        compiled, scorer, spent["compile_seconds"] = host.executables(request.program)
    except JaxresearchError:
        raise
    except Exception as error:  # XLA's word on a module that it cannot compile
        return broke(error, "compiling")
    needed, there = max(compiled.peak_memory_bytes, scorer.peak_memory_bytes), host.memory_bytes
    if needed > there:
        return failed(
            Verdict.CRASH, f"out of memory: XLA plans {needed / 1e9:.1f} GB, and there are {there / 1e9:.1f} GB"
        )
    host.progress(RunProgress("train"), force=True)
    probing, training = _probing(host, request, scorer), time.monotonic()

    def end_of_training(train_seconds: float) -> None:
        off_clock = time.monotonic() - training - train_seconds - probing.seconds
        spent.update(probe_seconds=probing.seconds, setup_seconds=max(0.0, off_clock))

    try:
        trained = train(
            compiled,
            traced=request.traced,
            budget=Budget.parse(request.budget),
            seed=request.seed,
            batches=_batches(host.corpus, request.seed),
            wall_cap_seconds=request.wall_cap_seconds,
            on_progress=host.progress,
            checkpoints=checkpoints,
            probing=probing,
        )
    except TrainingFailedError as error:
        verdict = Verdict.TIMEOUT if error.timeout else Verdict.DISCARD if error.hopeless else Verdict.CRASH
        end_of_training(error.seconds)
        until = {"train_seconds": error.seconds, "flops": error.flops, "step": error.step, "curve": error.curve}
        if probing.broken is not None:
            return failed(Verdict.INVALID, _said_of(probing.broken), audits=(probing.broken,), **until)
        return failed(verdict, error.reason, probes=tuple(probing.points), **until)
    except JaxresearchError:
        raise
    except Exception as error:
        return broke(error, "training")
    end_of_training(trained.train_seconds)
    host.progress(RunProgress("score", 1.0, trained.loss, trained.steps), force=True)
    so_far = {"train_seconds": trained.train_seconds, "flops": trained.flops, "curve": trained.curve}
    so_far["step"] = trained.steps
    sealed, randomness = host.sealed_rows() if request.split == "test" else None, _secret_randomness(host)
    evaluation = (host.corpus.byte_lengths, randomness)
    try:
        scored = score(scorer, trained.leaves, host.rows, *evaluation)
        tested = score(scorer, trained.leaves, sealed, *evaluation) if sealed is not None else None
    except NotFiniteError as error:
        return failed(Verdict.INVALID, f"not finite: {error}", **so_far)
    except Exception as error:
        return broke(error, "scoring", **so_far)
    spent["eval_seconds"] = scored.seconds + (tested.seconds if tested is not None else 0.0)
    audit_started = time.monotonic()
    audits = _audit(host, request, AuditSubject(scorer, trained.leaves, host.rows), scored, randomness)
    if sealed is not None and tested is not None:
        audits += routine_audits(AuditSubject(scorer, trained.leaves, sealed), tested, randomness)
    spent["audit_seconds"] = time.monotonic() - audit_started
    broken = next((audit for audit in audits if not audit.passed), None)
    if broken is not None:
        return failed(Verdict.INVALID, _said_of(broken), audits=audits, **so_far)
    if request.probe_at:
        first = bits_per_byte(scored.nats[:1], host.rows[:1, :, 1:], host.corpus.byte_lengths)
        probing.points.append((1.0, first))
    if host.peers.leads:
        _save(host.settings.runs / request.identity, scored.nats)
    machine = host.facts()
    return CompletedRun(
        identity=request.identity,
        val_bpb=scored.val_bpb,
        loss=trained.loss,
        steps=trained.steps,
        tokens=trained.tokens,
        flops=trained.flops,
        train_seconds=trained.train_seconds,
        total_seconds=total(),
        **spent,
        tokens_per_second=trained.tokens / trained.train_seconds if trained.train_seconds else 0.0,
        mfu=model_flops_utilisation(
            machine["device"],
            machine["devices"],
            0.0 if None in compiled.program.manifest.step_flops else trained.flops,
            trained.train_seconds,
        ),
        peak_memory_bytes=max(compiled.peak_memory_bytes, scorer.peak_memory_bytes),
        parameters=compiled.program.manifest.parameters,
        program=request.program,
        corpus=host.corpus.fingerprint,
        tokenizer=host.corpus.tokenizer_fingerprint,
        seed=request.seed,
        budget=request.budget,
        **{name: machine[name] for name in MACHINE},
        attention=compiled.program.attention,
        sandbox=request.sandbox,
        flags=(*compiled.flags, *_flags(trained, scored, host.settings.unigram_bpb)),
        audits=audits,
        test_bpb=tested.val_bpb if tested is not None else None,
        curve=trained.curve,
        probes=tuple(probing.points),
    )


def _probing(host: RunHost, request: RunRequest, scorer: CompiledScorer) -> Probing:
    """Scores and audits states on the first validation batch: three passes cost about a training step of its size."""
    randomness = _secret_randomness(host) if request.probe_at else np.random.default_rng()

    def of_first_batch(leaves: list) -> float | None:
        try:
            return score(scorer, leaves, host.rows[:1], host.corpus.byte_lengths).val_bpb
        except NotFiniteError:
            return None  # the whole evaluation at the end has the word on that

    def audit(leaves: list) -> Audit:
        return probe_audit(AuditSubject(scorer, leaves, host.rows), randomness)

    return Probing(of_first_batch, request.probe_at, dict(request.cut_above), audit)


def _batches(corpus: Corpus, seed: int) -> Callable[[int], Prefetched]:
    def batches(length: int) -> Prefetched:
        if corpus.manifest.splits["train"].tokens <= length:
            reason = f"phases: seq_len {length} is longer than the training text"
            raise TrainingFailedError(reason, step=0, seconds=0.0, curve=(), timeout=False)
        return Prefetched(Batches(corpus.rows("train", length), 1, seed))

    return batches


def _judge_runtime_error(error: Exception, stage: str) -> tuple[Verdict, str]:
    text = one_line(str(error), 300)
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return Verdict.CRASH, f"out of memory while {stage}: {text}"
    return Verdict.CRASH, f"{type(error).__name__} while {stage}: {text}"


def _said_of(broken: Audit) -> str:
    return f"{broken.name}: {broken.detail} (by up to {broken.max_deviation:.3g} nats)"


def _audit(
    host: RunHost, request: RunRequest, subject: AuditSubject, scored: Score, randomness: np.random.Generator
) -> tuple[Audit, ...]:
    """The cheap audits always; the strong ones, by its gain, when there is a reference run."""
    audits = routine_audits(subject, scored, randomness)
    if request.reference is None or not all(audit.passed for audit in audits):
        return audits
    reference = _reference(host, request, scored.nats.shape)
    lengths = host.corpus.byte_lengths[host.rows[..., 1:]]
    return audits + gain_audits(
        subject,
        scored.nats,
        reference,
        lengths > 0,
        randomness,
        thorough=request.thorough,
        simpler=request.simpler,
        least=request.least_gain_bpb * math.log(2) * float(lengths.sum()),
    )


def _secret_randomness(host: RunHost) -> np.random.Generator:
    """A generator that nobody could foresee, the same on every process."""
    entropy = host.peers.share(np.frombuffer(secrets.token_bytes(16), np.uint32))
    return np.random.default_rng(entropy)


def _reference(host: RunHost, request: RunRequest, shape: tuple[int, ...]) -> np.ndarray:
    """The per-token cross-entropies of the run that `request` refers to, which only process 0 has on disk."""
    assert request.reference is not None
    nats, name = np.zeros(shape, np.float32), request.reference[:12]
    if host.peers.leads:
        nats = load_nats(host.settings.runs / request.reference).astype(np.float32)
        if nats.shape != shape:
            raise JaxresearchError(f"run {name} was scored on other rows than this one.")
        found = bits_per_byte(nats, host.rows[..., 1:], host.corpus.byte_lengths)
        if request.reference_bpb is not None and not abs(found - request.reference_bpb) <= _ROUNDING_BPB:
            raise JaxresearchError(
                f"the stored evaluation of run {name} was changed: it adds up to {found}, not {request.reference_bpb}.",
                fix="Restore it from a backup.",
            )
    return host.peers.share(nats)


def _flags(trained: Trained, scored: Score, unigram_bpb: float) -> tuple[str, ...]:
    flags = []
    if not trained.changed or scored.val_bpb >= unigram_bpb:
        flags.append("did not learn")
    if not trained.seed_matters:
        flags.append("two seeds give one init")
    return tuple(flags)


def load_nats(folder: Path) -> np.ndarray:
    """The per-token cross-entropies of a finished run, f32[batches, b, T]."""
    try:
        return read_npy(folder / "nats.npy")
    except (OSError, ValueError) as error:
        raise JaxresearchError(
            f"the stored evaluation of run {folder.name[:12]} cannot be read: {error}.", fix="Restore it from a backup."
        ) from None


def _save(folder: Path, nats: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, nats.astype(np.float32))  # not into the file: numpy's error would not say that the disk is full
    write_whole(folder / "nats.npy", content.getvalue())
