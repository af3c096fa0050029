"""Two processes on loopback, joined by jax.distributed: they agree with one, and the loss of one is never a score."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.hosts import Hosts, ask_jax, find_hosts, placed
from jaxresearch.execution.process import worker_environment
from jaxresearch.experiment import CompletedRun, FailedRun, Verdict
from jaxresearch.study.events import RunFinished
from jaxresearch.study.ledger import Ledger
from jaxresearch.training.seal import checkpoint_folder, find_named, read_seal, sealed, state_folder
from tests.execution.test_resuming import write_every
from tests.laboratory import BASELINE, ROOT, Laboratory

SLURM = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_slurm(process_id: int) -> dict[str, str]:
    return {**SLURM, "SLURM_JOB_ID": str(free_port()), "SLURM_PROCID": str(process_id)}


def flags(port: int, process_id: int, join_seconds: int = 60) -> list[str]:
    place = ["--processes", "2", "--process-id", str(process_id), "--join-seconds", str(join_seconds)]
    return ["--coordinator", f"127.0.0.1:{port}", *place]


@pytest.fixture
def command(cache_root: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`jaxresearch ARGUMENTS` as a process of its own, which ends with the test."""
    started: list[subprocess.Popen] = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen:
        started.append(start_command(cache_root, *arguments, **environment))
        return started[-1]

    yield start
    for process in started:
        end(process)


def start_command(cache_root: Path, *arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxresearch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAXRESEARCH_CACHE": str(cache_root), **environment},
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def worker_of(process: subprocess.Popen) -> int:
    """Its follower's process; waits until there is one."""
    while True:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if b"execution.follower" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        time.sleep(0.05)


# Where a process stands


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("10.0.0.1:9911", None, None), "belong together"),
        ((None, 2, 1), "belong together"),
        (("10.0.0.1", 2, 1), "not HOST:PORT"),
        (("10.0.0.1:99999", 2, 1), "not HOST:PORT"),
        (("10.0.0.1:9911", 2, 2), "--process-id: 2 is not below --processes 2"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(given, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        find_hosts(*given, environment={})


def test_flags_and_slurm_say_where_a_process_stands():
    given = find_hosts("[::1]:9911", 4, 3, environment={})
    assert given is not None
    assert (given.address, given.processes, given.process_id) == (("::1", 9911), 4, 3)
    found = find_hosts(None, None, None, environment=on_slurm(1))
    assert found is not None
    assert (found.coordinator, found.processes, found.process_id) == (None, 2, 1)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, {**on_slurm(0), "SLURM_NTASKS": "1"}]
)
def test_a_process_of_its_own_is_no_job(environment):
    """A batch script without srun, and a job of one task, are alone; so is whoever says so."""
    alone = {**environment, "JAX_PLATFORMS": "cpu"}
    assert find_hosts(None, None, None, environment=alone) is None
    assert find_hosts(None, 1, None, environment=on_slurm(1)) is None


def test_jax_is_asked_where_no_variable_says_it():
    """As on a TPU pod, whose hosts jax asks the cloud for. Here Slurm's variables stand for that."""
    port = free_port()
    places = [{**worker_environment(), **on_slurm(number), "SLURM_JOB_ID": str(port)} for number in (0, 1)]
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda environment: ask_jax(60, environment), places)
    assert first is not None
    assert second is not None
    assert (first.process_id, second.process_id, first.processes, second.processes) == (0, 1, 2, 2)
    assert ask_jax(60, worker_environment()) is None


def test_a_worker_inherits_what_jax_reads_of_slurm_and_no_token(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_JWT", "secret")
    assert worker_environment()["SLURM_PROCID"] == "1"
    assert "SLURM_JWT" not in worker_environment()


# Runs over two processes


@dataclasses.dataclass
class Pair:
    """A laboratory that leads, and the command that follows it."""

    laboratory: Laboratory
    follower: subprocess.Popen


@contextmanager
def joined(make_laboratory: Callable[..., Laboratory], cache_root: Path, config_file: Path) -> Iterator[Pair]:
    port, corpus = free_port(), yaml.safe_load(config_file.read_text())["corpus"]
    follower = start_command(cache_root, "train", *flags(port, 1))
    with placed(Hosts(coordinator=f"127.0.0.1:{port}", processes=2, process_id=0, join_seconds=60)):
        laboratory = make_laboratory(corpus=corpus)
    yield Pair(laboratory, follower)
    laboratory.close()
    assert follower.wait(30) == 0, follower.communicate()
    assert "process 0 is done" in follower.communicate()[1]


@pytest.fixture(scope="module")
def pair(make_laboratory: Callable[..., Laboratory], cache_root: Path, config_file: Path) -> Iterator[Pair]:
    with joined(make_laboratory, cache_root, config_file) as pair:
        yield pair


def test_two_processes_agree_with_one_in_training_evaluation_and_audits(pair, laboratory, baseline):
    traced = pair.laboratory.traced(BASELINE)
    assert traced.program == baseline.program
    alone, together = laboratory.run(baseline, seed=3), pair.laboratory.run(traced, seed=3)
    assert isinstance(together, CompletedRun), together
    assert (together.processes, together.devices, alone.processes) == (2, 2, 1)
    assert together.val_bpb == pytest.approx(alone.val_bpb, abs=2e-4)
    assert [loss for _, loss in together.curve] == pytest.approx([loss for _, loss in alone.curve], abs=1e-4)
    assert (together.steps, together.tokens) == (alone.steps, alone.tokens)
    better = pair.laboratory.run(traced, seed=3, budget="30steps", reference=together.identity)
    assert isinstance(better, CompletedRun), better
    assert better.val_bpb < together.val_bpb
    assert {"causality by gain", "batch independence by gain"} <= {audit.name for audit in better.audits}
    assert all(audit.passed for audit in better.audits)


def test_a_budget_in_seconds_ends_on_both_at_one_step(pair):
    """Had the two decided by their own clocks, one would wait for a step that the other does not do."""
    traced = pair.laboratory.traced(BASELINE)
    run = pair.laboratory.run(traced, budget="2s")
    assert isinstance(run, CompletedRun), run
    assert run.train_seconds > 1  # the clock that both go by is carried on from a step before
    assert run.steps > 3
    cut = pair.laboratory.run(traced, budget="1000000steps", wall_cap_seconds=1.0)
    assert isinstance(cut, FailedRun)
    assert cut.verdict is Verdict.TIMEOUT
    assert isinstance(pair.laboratory.run(traced), CompletedRun)


def test_a_killed_peer_is_infrastructure_and_its_successor_goes_on(pair):
    traced = pair.laboratory.traced(BASELINE)
    expected = pair.laboratory.run(traced, seed=7)
    assert isinstance(expected, CompletedRun), expected
    worker = worker_of(pair.follower)

    def kill(progress):
        if progress.stage == "train" and progress.step > 2:
            os.kill(worker, signal.SIGKILL)

    request = pair.laboratory.request(traced, budget="1000000steps")
    work = asyncio.wait_for(pair.laboratory.executor.run(request, kill), 60)
    lost = pair.laboratory.runner.run(work)
    assert isinstance(lost, FailedRun)
    assert (lost.verdict, lost.reason) == (Verdict.INFRASTRUCTURE, "process 1 was lost")
    assert pair.laboratory.run(traced, seed=7).val_bpb == expected.val_bpb


# Checkpoints of two processes


@pytest.fixture(scope="module")
def writing(make_laboratory: Callable[..., Laboratory], cache_root: Path, config_file: Path) -> Iterator[Pair]:
    """They hold the state together, and write a checkpoint after every 0.2 s of training."""
    with joined(make_laboratory, cache_root, config_file) as pair:
        write_every(pair.laboratory, 0.2, fsdp=2)
        yield pair


@pytest.mark.timeout(900)
def test_a_run_whose_processes_are_all_killed_goes_on_to_the_very_same_score(writing):
    """As a machine does that goes away. The state is sharded: each process has written what the other does not hold."""
    laboratory = writing.laboratory
    traced = laboratory.traced(BASELINE)
    whole = laboratory.run(traced, budget="60steps")
    assert isinstance(whole, CompletedRun), whole
    assert (whole.processes, whole.resumed, whole.checkpoint_note) == (2, (), "")
    request = laboratory.request(traced, budget="60steps", keep_state=True)
    folder, killed = checkpoint_folder(laboratory.executor._settings.runs, request.identity), []

    def kill(_) -> None:
        if not killed and (there := sealed(folder)):
            killed.append(there)
            for worker in (worker_of(writing.follower), laboratory.executor._worker._process.pid):
                os.kill(worker, signal.SIGKILL)

    cut = laboratory.runner.run(asyncio.wait_for(laboratory.executor.run(request, kill), 600))
    assert isinstance(cut, CompletedRun), cut
    assert killed
    assert [each.alike for each in cut.resumed] == [True]
    assert 0 < cut.resumed[0].steps < 60
    assert (cut.val_bpb.hex(), cut.loss, cut.curve) == (whole.val_bpb.hex(), whole.loss, whole.curve)
    assert (cut.tokens, cut.flops, cut.checkpoint_note) == (whole.tokens, whole.flops, "")
    state = find_named(folder, cut.checkpoint)
    assert state is not None
    files = read_seal(state, name=cut.checkpoint).files
    assert {name.split("/")[0] for name in files} > {"ocdbt.process_0", "ocdbt.process_1"}


@pytest.mark.timeout(900)
def test_a_training_of_two_that_is_given_up_is_written_whole_and_goes_on_from_there(writing):
    """SIGTERM, or a second Ctrl-C, of process 0. The other stays until its part is sealed."""
    laboratory = writing.laboratory
    executor = laboratory.executor
    executor._parting_seconds = 120.0
    request = laboratory.request(laboratory.traced(BASELINE), budget="60steps")
    folder = checkpoint_folder(executor._settings.runs, request.identity)

    async def cancelled() -> None:
        reached = asyncio.Event()
        work = asyncio.ensure_future(executor.run(request, lambda p: reached.set() if p.step >= 2 else None))
        await asyncio.wait([work, asyncio.ensure_future(reached.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert not work.done(), work.result()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    laboratory.runner.run(cancelled())
    (steps,) = sealed(folder)
    assert 2 <= steps < 60
    read_seal(state_folder(folder, steps))
    outcome = laboratory.runner.run(executor.run(request, lambda _: None))
    assert isinstance(outcome, CompletedRun), outcome
    assert [each.steps for each in outcome.resumed] == [steps]


# Through the command line


@pytest.mark.slow
def test_train_needs_no_argument_under_slurm(command, config_file, laboratory, baseline):
    job = str(free_port())
    processes = [
        command("train", "--config", config_file, "--json", **on_slurm(number) | {"SLURM_JOB_ID": job})
        for number in (0, 1)
    ]
    (first, notes), (second, _) = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], notes
    run = json.loads(first)
    assert (run["processes"], run["devices"], run["steps"]) == (2, 2, 6)
    assert run["worker"] == f"{run['sandbox']}+network", "it is confined where tracing is"
    assert run["val_bpb"] == pytest.approx(laboratory.run(baseline, seed=0).val_bpb, abs=2e-4)
    assert json.loads(second) == {"process_id": 1, "processes": 2, "done": True}


def test_a_host_that_has_found_nobody_ends_at_the_first_sigterm(command):
    alone = command("train", *flags(free_port(), 1))
    worker_of(alone)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(60) == 130


@pytest.mark.slow
def test_doctor_shows_whether_the_hosts_find_each_other(command):
    port = free_port()
    doctors = [command("doctor", "--json", *flags(port, number)) for number in (0, 1)]
    found = [json.loads(doctor.communicate(timeout=120)[0]) for doctor in doctors]
    assert [each["process_id"] for each in found] == [0, 1]
    assert [each["devices"].partition("; ")[2] for each in found] == [
        "process 0 of 2, 1 of them here",
        "process 1 of 2, 1 of them here",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_whose_host_is_gone_stops_with_one_line_and_is_resumed(command, config_file, tmp_path):
    """The host's command is killed, so that nobody starts its worker again."""
    study, port = tmp_path / "study", free_port()
    settings = ["--config", config_file, "--experiments", 0, "--set", "acceptance.runs=2"]
    follower = command("run", *flags(port, 1, 20))
    leader = command("run", "--study", study, *settings, "--budget", "300steps", *flags(port, 0, 20))
    for line in leader.stderr:
        if "train" in line:
            os.killpg(follower.pid, signal.SIGKILL)
            break
    _, notes = leader.communicate(timeout=120)
    assert leader.returncode == 1
    error = notes.strip().splitlines()[-1]
    assert error.startswith("Error: the worker did not start: not all of 2 processes joined within 20 s")
    ledger = Ledger.open(study / "ledger.sqlite")
    outcomes = [stored.event.outcome for stored in ledger.read() if isinstance(stored.event, RunFinished)]
    ledger.close()
    assert [outcome.verdict for outcome in outcomes if isinstance(outcome, FailedRun)] == [Verdict.INFRASTRUCTURE]
    alone = command("resume", study, "--json")
    output, notes = alone.communicate(timeout=200)
    assert alone.returncode == 0, notes
    assert json.loads(output)["finished"]
