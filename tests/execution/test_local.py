"""The local executor: what it repeats exactly, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution import housing, local
from jaxresearch.execution.base import RunProgress, TracedCandidate
from jaxresearch.execution.process import WorkerOutgrownError, WorkerProcess, worker_environment
from jaxresearch.execution.running import _batches
from jaxresearch.execution.worker import Leaks
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.machine import held_bytes
from jaxresearch.proposal import Candidate
from jaxresearch.study.costs import accelerator_seconds
from jaxresearch.training.trainer import TrainingFailedError
from tests.laboratory import BASELINE, ROOT, TINY, Laboratory, edited, with_logits

FOREVER = "jax.lax.while_loop(lambda x: x > -1.0, lambda x: x * 0.5, {0})"


def worker_pid(laboratory: Laboratory) -> int:
    return laboratory.runner.run(laboratory.executor._ready_worker())._process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def impatient(laboratory: Laboratory, monkeypatch) -> Laboratory:
    """Two seconds for each of training and scoring, once compiled."""
    limits = laboratory.config.limits.model_copy(update={"compile_seconds": 60.0, "evaluation_seconds": 2.0})
    monkeypatch.setattr(laboratory.executor, "_limits", limits)
    monkeypatch.setattr(local, "_GRACE_SECONDS", 1.0 - limits.compile_seconds)
    return laboratory


def test_the_same_request_in_two_workers_gives_the_same_bits(laboratory, baseline, make_laboratory):
    other = make_laboratory()
    first, second = laboratory.run(baseline, seed=5), other.run(other.traced(BASELINE), seed=5)
    assert isinstance(first, CompletedRun)
    assert first.val_bpb.hex() == second.val_bpb.hex()
    assert (first.program, first.curve, first.tokens) == (second.program, second.curve, second.tokens)
    assert laboratory.run(baseline, seed=6).val_bpb != first.val_bpb
    other.close()


@pytest.mark.parametrize("at", [9, -1, None], ids=["head", "a value", "empty"])
def test_a_stored_evaluation_that_was_changed_audits_nothing(laboratory, baseline, at):
    first = laboratory.run(baseline, seed=5)
    pair = {"reference": first.identity, "reference_bpb": first.val_bpb, "budget": "12steps"}
    path = laboratory.root / "runs" / first.identity / "nats.npy"
    content = path.read_bytes()
    assert isinstance(laboratory.run(baseline, seed=5, **pair), CompletedRun)
    harmed = bytearray(content) if at is not None else bytearray()
    if at is not None:
        harmed[at] ^= 64
    path.write_bytes(harmed)
    with pytest.raises(JaxresearchError, match=r"stored evaluation of run .* (was changed|cannot be read)"):
        laboratory.run(baseline, seed=5, **pair)
    path.write_bytes(content)
    assert isinstance(laboratory.run(baseline, seed=5, **pair), CompletedRun)


def test_a_change_of_a_runtime_input_needs_no_trace_and_scores_as_if_it_had_one(laboratory, baseline, make_laboratory):
    changed = Candidate(files=BASELINE.files, config={**TINY, "matrix_lr": 0.013})
    quick = laboratory.traced(changed)
    assert (quick.program, quick.trace_seconds) == (baseline.program, 0.0)
    assert quick.traced == {**baseline.traced, "matrix_lr": 0.013}
    fresh = make_laboratory()
    traced = fresh.traced(changed)
    assert traced.trace_seconds > 0
    assert traced.model_copy(update={"trace_seconds": 0.0, "verify_seconds": 0.0}) == quick
    laboratory.run(baseline)
    changed_run = laboratory.run(quick)
    assert changed_run.compile_seconds == 0.0
    scores = changed_run.val_bpb, fresh.run(traced).val_bpb
    assert scores[0] == scores[1] != laboratory.run(baseline).val_bpb
    fresh.close()


PHASES = "trace verify compile setup train probe eval audit keep".split()


def test_the_time_of_each_phase_stands_in_the_record(laboratory, baseline):
    before = {name: getattr(baseline, name) for name in ("trace_seconds", "verify_seconds")}
    done, failed = laboratory.run(baseline, **before), laboratory.run(baseline, wall_cap_seconds=1e-6, **before)
    assert (done.status, failed.status) == ("completed", "failed")
    for run in (done, failed):
        seconds = {name: getattr(run, f"{name}_seconds") for name in PHASES}
        assert min(seconds.values()) >= 0
        assert seconds["trace"] == baseline.trace_seconds > 0
        assert seconds["verify"] == baseline.verify_seconds > 0
        assert seconds["setup"] > 0
        assert sum(seconds.values()) <= run.total_seconds + 1e-6
    assert done.eval_seconds > 0 == failed.eval_seconds


@pytest.mark.parametrize(
    "change", [{"matrix_lr": float("nan")}, {"matrix_lr": "0.1"}, {"matrix_lr": True}, {"depht": 1}]
)
def test_a_value_that_is_no_number_is_not_taken_for_a_known_trace(laboratory, baseline, change):
    outcome = laboratory.trace(Candidate(files=BASELINE.files, config={**TINY, **change}))
    assert getattr(outcome, "verdict", None) is Verdict.CRASH
    assert next(iter(change)) in outcome.reason


def test_blank_lines_and_comments_are_the_same_program(laboratory, baseline):
    text = BASELINE.files["models/gpt.py"].replace("\n\n\n", "\n\n\n# a remark\n\n\n")
    assert laboratory.traced(Candidate({**BASELINE.files, "models/gpt.py": text}, TINY)).program == baseline.program


def killing(laboratory: Laboratory, times: int) -> Callable[[RunProgress], None]:
    """Kills the worker when it begins to train, that many times."""
    left = [times]

    def kill(progress: RunProgress) -> None:
        if left[0] and progress.stage == "train":
            left[0] -= 1
            os.kill(laboratory.executor._worker._process.pid, signal.SIGKILL)

    return kill


def test_a_run_whose_worker_is_killed_begins_again_in_a_fresh_one(laboratory, baseline):
    request, pid = laboratory.request(baseline, budget="300steps"), worker_pid(laboratory)
    expected = laboratory.run(baseline, budget="300steps")
    outcome = laboratory.runner.run(laboratory.executor.run(request, killing(laboratory, 1)))
    assert isinstance(outcome, CompletedRun), outcome.reason
    assert outcome.val_bpb == expected.val_bpb
    assert worker_pid(laboratory) != pid


def test_a_run_whose_workers_are_killed_twice_gives_no_score(laboratory, baseline):
    request = laboratory.request(baseline, budget="1000000steps")
    outcome = laboratory.runner.run(laboratory.executor.run(request, killing(laboratory, 2)))
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.CRASH
    assert "SIGKILL" in outcome.reason
    assert laboratory.run(baseline).val_bpb == laboratory.run(baseline).val_bpb


def test_a_syntax_error_is_a_crash_that_names_the_line(laboratory):
    broken = laboratory.trace(edited(("gpt.py", "class GPT(nnx.Module):", "class GPT(nnx.Module:")))
    assert broken.verdict is Verdict.CRASH
    assert broken.reason.startswith("SyntaxError")
    assert "models/gpt.py, line 15" in broken.reason


def test_a_loop_without_end_in_logits_is_a_timeout_of_scoring(impatient):
    traced = impatient.traced(with_logits(f"honest + {FOREVER.format('jnp.abs(honest).sum() + 1')}"))
    outcome = impatient.run(traced)
    assert isinstance(outcome, FailedRun)
    assert (outcome.verdict, outcome.reason) == (Verdict.TIMEOUT, "score took longer than 2 s; the worker was killed")


def test_a_loop_without_end_in_init_is_a_timeout_and_a_run_that_waits_behind_it_is_not_harmed(impatient, baseline):
    search = "        params = nnx.to_pure_dict(nnx.state(new_model(seed, traced)))\n"
    spin = FOREVER.format("jnp.abs(params['head']).sum() + 1")
    spin = f"        params['head'] = params['head'] + {spin}\n"
    hanging = impatient.traced(edited(("recipe.py", search, search + spin)))
    first = impatient.request(hanging, wall_cap_seconds=1.0)
    second = impatient.request(baseline, wall_cap_seconds=30.0)

    async def both():
        run = impatient.executor.run
        return await asyncio.gather(run(first, lambda _: None), run(second, lambda _: None))

    hung, waited = impatient.runner.run(both())
    assert hung.verdict is Verdict.TIMEOUT
    assert hung.reason == "train took longer than 2 s; the worker was killed"
    assert accelerator_seconds(hung) > 2.0, "what hangs is paid for"
    assert isinstance(waited, CompletedRun), waited


def test_compiling_for_too_long_is_a_timeout(laboratory, monkeypatch):
    limits = laboratory.config.limits.model_copy(update={"compile_seconds": 0.05})
    monkeypatch.setattr(laboratory.executor, "_limits", limits)
    outcome = laboratory.run(laboratory.traced(with_logits("honest * 1.25")))
    assert isinstance(outcome, FailedRun)
    assert (outcome.verdict, outcome.reason) == (
        Verdict.TIMEOUT,
        "compile took longer than 0.05 s; the worker was killed",
    )


def test_training_past_its_wall_cap_is_cut_and_says_where(laboratory, baseline):
    outcome = laboratory.run(baseline, budget="1000000steps", wall_cap_seconds=0.3)
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.TIMEOUT
    assert "of its budget, step" in outcome.reason
    assert outcome.curve


def test_rows_longer_than_the_corpus_are_the_candidates_fault(tiny_corpus):
    """Not the laboratory's: that would stop a study. Within the verifier's bounds for a small corpus."""
    with pytest.raises(TrainingFailedError, match="seq_len 10000000 is longer than the training text") as caught:
        _batches(tiny_corpus, 0)(10_000_000)
    assert not caught.value.timeout


def test_a_worker_inherits_no_key(laboratory, monkeypatch):
    secrets = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "sk-planted")
    assert "sk-planted" not in worker_environment().values()
    os.kill(worker_pid(laboratory), signal.SIGKILL)
    laboratory.runner.run(asyncio.sleep(0.2))
    environment = Path(f"/proc/{worker_pid(laboratory)}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"sk-planted" not in environment
    assert not any(name.encode() in environment for name in secrets)


def test_a_worker_trains_on_huge_pages_where_the_machine_has_them(laboratory, baseline):
    """In its box too: malloc must be able to read there whether it may have any."""
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offered.exists() or "[never]" in offered.read_text():
        pytest.skip("this machine has no transparent huge pages")
    laboratory.run(baseline, budget="2steps")
    below = [worker_pid(laboratory)]
    for pid in below:  # the box's own processes are the first
        below += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    found = [re.search(r"AnonHugePages:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in below]
    assert int(found[-1][1]) > 0


STARTER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-m", "jaxresearch.execution.worker", sys.argv[1]], stdin=int(sys.argv[2]))
print(worker.pid, flush=True)
time.sleep(100)
"""


def test_a_worker_ends_with_a_driver_that_was_killed(laboratory):
    """Even while its standard input stays open: a program that never returns would not see that it ended."""
    reading, writing = os.pipe()
    settings = laboratory.executor._settings.model_dump_json()
    command = [sys.executable, "-c", STARTER, settings, str(reading)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(reading,), cwd=ROOT) as starter:
        worker = int(starter.stdout.readline())
        assert b"device" in starter.stdout.readline()
        assert alive(worker)
        starter.kill()
        assert wait_for(lambda: not alive(worker), 10)
    os.close(reading)
    os.close(writing)


def test_a_worker_that_died_idle_is_no_fault_of_the_next_program(laboratory, baseline):
    worker = laboratory.runner.run(laboratory.executor._ready_worker())
    os.kill(worker._process.pid, signal.SIGKILL)  # the driver has not noticed yet
    assert isinstance(laboratory.run(baseline, seed=41), CompletedRun)


def test_a_worker_is_replaced_after_many_programs_or_a_leak(laboratory, baseline, monkeypatch):
    first, score = worker_pid(laboratory), laboratory.run(baseline, seed=42).val_bpb
    assert worker_pid(laboratory) == first
    monkeypatch.setattr(laboratory.executor, "_keep_awake", len(laboratory.executor._worker.programs))
    assert (second := worker_pid(laboratory)) != first
    assert not alive(first)
    monkeypatch.setattr(laboratory.executor, "_keep_awake", 32)
    assert worker_pid(laboratory) == second
    laboratory.runner.run(_told(laboratory.executor._worker, {"result": {}, "leaks": True}))
    assert worker_pid(laboratory) != second
    assert laboratory.run(baseline, seed=42).val_bpb == score


async def _told(worker: WorkerProcess, message: dict) -> None:
    """The worker says this."""
    worker._process.stdout.feed_data(json.dumps(message).encode() + b"\n")
    await worker._answer({"run": 5.0}, "run", lambda _: None)


def test_a_verifier_beside_a_run_is_replaced_after_a_leak(laboratory, monkeypatch):
    executor = laboratory.executor
    monkeypatch.setattr(executor, "_running", 1)

    async def verifier() -> WorkerProcess:
        async with executor._verifier() as worker:
            return worker

    first = laboratory.runner.run(verifier())
    assert isinstance(laboratory.trace(edited(config={"mlp_ratio": 7})), TracedCandidate)
    assert laboratory.runner.run(verifier()) is first
    laboratory.runner.run(_told(first, {"result": {}, "leaks": True}))
    second = laboratory.runner.run(verifier())
    assert second is not first
    assert not first.alive
    assert isinstance(laboratory.trace(edited(config={"mlp_ratio": 6})), TracedCandidate)
    assert laboratory.runner.run(verifier()) is second


def test_what_stays_after_a_run_is_a_leak_when_it_grows():
    tiny, small, large = Leaks(10**9), Leaks(5 * 10**9), Leaks(64 * 10**9)
    assert [tiny.grew(tenths * 10**8) for tenths in (3, 6, 7, 8)] == [False, False, False, True]
    assert [small.grew(gigabytes * 10**9) for gigabytes in (3, 1, 5, 6, 3)] == [False, False, False, True, False]
    assert [large.grew(gigabytes * 10**9) for gigabytes in (1, 16, 17, 18)] == [False, False, False, True]
    before, block = held_bytes(), bytearray(os.urandom(50_000_000))
    if sys.platform == "linux":
        assert held_bytes() - before > 40_000_000
    del block


LEAKING = """
from jaxresearch.execution import worker
worker.Leaks.grew = lambda self, held_bytes: True
worker.main()
"""


@pytest.mark.parametrize("verifies_for", ["cpu", None])
def test_only_a_process_that_does_no_runs_is_judged_by_its_verifications(laboratory, tmp_path, verifies_for):
    settings = laboratory.executor._settings.model_copy(update={"verifies_for": verifies_for})
    (tmp_path / "0").write_bytes(b"no module")
    asked = {"folder": str(tmp_path), "count": 1, "traced": [], "phases": [], "leaves": [], "metrics": []}
    done = subprocess.run(
        [sys.executable, "-c", LEAKING, settings.model_dump_json()],
        input=json.dumps({"do": "verify", "request": asked}) + "\n",
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    _, verified = map(json.loads, done.stdout.splitlines())
    assert "refused" in verified["result"], verified
    assert verified["leaks"] is (verifies_for is not None)


WATCHED = """
import sys
from jaxresearch.execution.follower import watch_memory
from jaxresearch.execution.worker import WorkerSettings
watch_memory(WorkerSettings.model_validate_json(sys.argv[1]), lambda **said: print(said, flush=True))
"""


def test_a_follower_that_outgrows_its_memory_says_so_and_ends(laboratory):
    settings = laboratory.executor._settings.model_copy(update={"memory_bytes": 1_000_000})
    command = [sys.executable, "-c", WATCHED, settings.model_dump_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"{'error': 'out of memory: .* GB were held, and there are 0.0 GB'}\n", done.stdout)


def test_a_program_larger_than_the_memory_is_a_crash_with_sizes(laboratory):
    """3 million hidden units for 16,384 tokens: XLA's plan says so, and nothing is allocated."""
    huge = laboratory.traced(edited(config={"mlp_ratio": 100_000, "batch": 1024}))
    outcome = laboratory.run(huge)
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.CRASH
    assert "out of memory: XLA plans" in outcome.reason


@pytest.mark.skipif(sys.platform != "linux", reason="no other system says what a process holds")
def test_a_program_that_takes_all_memory_to_compile_is_a_crash_with_sizes(make_laboratory, monkeypatch):
    """XLA writes each of 3^60 sums out where a fusion reads its operands in several orders."""
    monkeypatch.setattr(housing, "usable_memory_bytes", lambda: 1_200_000_000)
    step = "honest[::-1] * honest + jnp.roll(honest, 1, 1) * jnp.tanh(honest)"
    small = make_laboratory()
    outcome = small.run(small.traced(with_logits("honest", f"for _ in range(60): honest = {step}")))
    assert isinstance(outcome, FailedRun)
    assert outcome.verdict is Verdict.CRASH
    assert re.fullmatch(r"out of memory while compiling: 1\.\d GB were held, and there are 1\.1 GB", outcome.reason)
    honest = small.run(small.traced(BASELINE))
    assert isinstance(honest, CompletedRun), "another worker does the next"


@pytest.mark.parametrize(("ran", "outgrows", "verdict"), [(True, 1, None), (True, 2, "crash"), (False, 1, "crash")])
def test_what_earlier_programs_left_is_no_fault_of_the_next(laboratory, baseline, monkeypatch, ran, outgrows, verdict):
    """A worker that had run others may have been full before: another tries, once."""
    laboratory.run(baseline, seed=50)
    laboratory.executor._worker.programs = {"another"} if ran else set()
    asked, ask = [], WorkerProcess.ask

    async def outgrown(worker, do, request, **kwargs):
        asked.append(do)
        if len(asked) > outgrows:
            return await ask(worker, do, request, **kwargs)
        kwargs["on_progress"](RunProgress("compile"))
        await worker.kill()
        raise WorkerOutgrownError("2.0 GB were held, and there are 1.8 GB")

    monkeypatch.setattr(WorkerProcess, "ask", outgrown)
    outcome = laboratory.run(baseline, seed=51)
    if verdict is None:
        assert isinstance(outcome, CompletedRun)
    else:
        assert (outcome.verdict, outcome.reason) == (
            verdict, "out of memory while compiling: 2.0 GB were held, and there are 1.8 GB",
        )  # fmt: skip


def test_probes_change_no_bit_and_a_hopeless_run_is_cut(laboratory: Laboratory, baseline):
    at = (0.3, 0.5)
    plain, probed = laboratory.run(baseline, seed=7), laboratory.run(baseline, seed=7, probe_at=at)
    assert isinstance(probed, CompletedRun)
    assert probed.val_bpb.hex() == plain.val_bpb.hex()
    assert [share for share, _ in probed.probes] == [0.3, 0.5, 1.0]
    assert plain.probes == ()
    assert probed.probe_seconds > 0 == plain.probe_seconds
    let = laboratory.run(baseline, seed=7, probe_at=at, cut_above=((0.3, 100.0), (0.5, probed.probes[1][1])))
    assert isinstance(let, CompletedRun)
    cut = laboratory.run(baseline, seed=7, probe_at=at, cut_above=((0.3, 100.0), (0.5, probed.probes[1][1] - 1e-6)))
    assert isinstance(cut, FailedRun)
    assert (cut.verdict, cut.step, cut.probes) == (Verdict.DISCARD, 3, probed.probes[:2])
    assert cut.reason.startswith("cut at 50% of its budget")
    assert 0 < cut.flops < plain.flops
    again = laboratory.run(baseline, seed=7)
    assert again.val_bpb.hex() == plain.val_bpb.hex(), "the worker goes on as if nothing had been"
