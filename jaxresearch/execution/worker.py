"""The worker: a warm, expendable process that verifies, trains and scores programs, one request at a time.

Started by `LocalExecutor` as `python -m jaxresearch.execution.worker`. One JSON object a line on standard input asks; on
standard output come {"progress": ...} lines and then one {"result": ...} or {"error": ...}. It holds no key and no secret.
With `settings.hosts` it leads the workers of other hosts, which do the same runs: see `jaxresearch.execution.peers`.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, ConfigDict

from jaxresearch.config import CorpusConfig
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest, SampleRequest, StateRequest
from jaxresearch.execution.hosts import Hosts
from jaxresearch.execution.peers import Alone, Peers, lead
from jaxresearch.execution.pins import Pin, run_on_own_cores
from jaxresearch.files import DiskFullError, is_full
from jaxresearch.machine import held_bytes, usable_memory_bytes

if TYPE_CHECKING:
    import numpy as np

_KEPT_PROGRAMS = 4
_USABLE_SHARE = 0.9
"""Of the machine's memory, for a program on the CPU, and for what any worker may come to hold."""
_WATCH_SECONDS = 0.2
_PROGRESS_INTERVAL_SECONDS = 0.25
_LEAKED_SHARE, _LEAKED_BYTES, _MOST_LEAKED_SHARE = 0.25, 2 * 10**9, 0.4
"""What a worker may hold between two runs beyond what it held after its first: a share of the memory that it may use, or
what programs that it keeps compiled, and an allocator's pools, may come to if that is more and a small machine has it."""


class WorkerSettings(BaseModel):
    """What a worker is told at its start.

    verifies_for: a platform. Such a worker runs nothing: it verifies programs for that platform, on the CPU: beside
    another one that trains, or for the nodes of a cluster. None: programs run where they are verified.
    memory_bytes: of the machine that it runs on, for all of that machine's workers; None where nobody has said.
    """

    model_config = ConfigDict(frozen=True)

    corpus: Path
    programs: Path
    runs: Path
    compilation_cache: Path
    context: int
    vocab_size: int
    evaluation_tokens: int
    evaluation_batch: int
    unigram_bpb: float
    threads: int | None
    devices: int
    fsdp: int | None
    attention: str = "auto"
    program_bytes: int
    constant_bytes: int
    parameters: int
    attribute_bytes: int = 65_536
    checkpoint_seconds: float | None = None
    corpus_config: CorpusConfig = CorpusConfig()
    hosts: Hosts | None = None
    pin: Pin = Pin()
    verifies_for: str | None = None
    memory_bytes: int | None = None

    @property
    def own_memory_bytes(self) -> int:
        """This worker's part of the machine's memory."""
        return int(self.pin.share * (self.memory_bytes or usable_memory_bytes()))


class VerifyRequest(BaseModel):
    """Modules as the sandbox wrote them, in `folder`, named 0, 1, ... in order."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    count: int
    traced: tuple[str, ...]
    phases: tuple[tuple[float, int, int], ...]
    leaves: tuple[str, ...]
    metrics: tuple[str, ...]


def main() -> None:
    settings = WorkerSettings.model_validate_json(sys.argv[1])
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ.update(settings.pin.environment)  # before jax looks for devices

    speaking = threading.Lock()

    def say(**message: Any) -> None:
        with speaking:
            out.write(json.dumps(message) + "\n")

    threading.Thread(target=end_outgrown, args=(settings, say), daemon=True).start()

    def lost(why: str) -> NoReturn:
        say(error=why)
        os._exit(1)

    try:
        run_on_own_cores(settings.pin, settings.threads)
    except ConfigurationError as error:
        lost(str(error))
    peers, leader = Alone(), None
    if settings.hosts is not None:
        try:
            peers = leader = lead(settings.hosts, settings, lost)
        except JaxresearchError as error:
            lost(str(error))
    try:
        worker = Worker(settings, say, peers)
    except JaxresearchError as error:
        lost(str(error))
    say(result=worker.facts())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "verify":
                    verified = worker.verify(VerifyRequest.model_validate(request["request"]))
                    # What trains is asked after its runs; what only verifies has no others.
                    say(result=verified, leaks=settings.verifies_for is not None and worker.leaks())
                case "run":
                    asked = RunRequest.model_validate(request["request"])
                    if leader is not None:
                        leader.ask(settings.programs, asked)
                    say(result=worker.run(asked), leaks=worker.leaks())
                    if leader is not None and leader.spoilt:
                        os._exit(1)  # the driver starts another worker, and so does every host
                case "sample":
                    say(result=worker.sample(SampleRequest.model_validate(request["request"])))
                case "give up":
                    pass  # the run that was meant heard of it, or has ended meanwhile
                case "rescore":
                    say(result=worker.rescore(StateRequest.model_validate(request["request"])))
                case "end":
                    if leader is not None:
                        leader.end()
                    os._exit(0)  # without waiting for the others, as jax would
                case unknown:
                    say(error=f"unknown request {unknown!r}")
        except Exception as error:
            import traceback

            traceback.print_exc()
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"
            if isinstance(error, JaxresearchError):
                say(error=line, stop=str(error))  # what is stored cannot be read: no candidate would fare better
            else:
                say(error=line, stop=str(DiskFullError(error)) if is_full(error) else "")
            if leader is not None:
                os._exit(1)  # the others may be waiting for what will not come


class Leaks:
    """What is held after each run, in memory of one kind, of which there are `there_bytes`."""

    def __init__(self, there_bytes: int) -> None:
        most = min(_LEAKED_BYTES, _MOST_LEAKED_SHARE * there_bytes)
        self._allowed, self._first = max(_LEAKED_SHARE * there_bytes, most), None

    def grew(self, held_bytes: int) -> bool:
        """Whether it is far more than after the first run: what a run took should have gone with it."""
        if self._first is None:
            self._first = held_bytes
        return held_bytes - self._first > self._allowed


def end_with(driver: int) -> None:
    """A driver that was killed cannot kill us, and a program may never return to see that standard input has ended."""
    while os.getppid() == driver:
        time.sleep(1.0)
    os._exit(1)


def end_outgrown(settings: WorkerSettings, say: Callable[..., None]) -> None:
    """XLA plans what a program holds when it runs, and nobody what compiling it takes: some programs take all there is,
    and the machine stands still for minutes before the system kills something."""
    allowed = int(_USABLE_SHARE * settings.own_memory_bytes)
    while (held := held_bytes()) <= allowed:
        time.sleep(_WATCH_SECONDS)
    say(outgrown=f"{held / 1e9:.1f} GB were held, and there are {allowed / 1e9:.1f} GB")
    os._exit(1)


class Worker:
    """One process's part in verifying, training and scoring. `peers` are the other processes of the job."""

    def __init__(self, settings: WorkerSettings, say: Callable[..., None], peers: Peers) -> None:
        import jax
        import numpy as np

        if settings.verifies_for is not None:
            jax.config.update("jax_platforms", "cpu")  # an accelerator that is here may be a run's
        jax.config.update("jax_compilation_cache_dir", str(settings.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

        from jaxresearch.data.dataset import Corpus, evaluation_rows

        self.settings, self.say, self.peers = settings, say, peers
        if os.environ.get("JAX_PLATFORMS", "") == "cpu" and settings.devices > 1 and peers.processes == 1:
            jax.config.update("jax_num_cpu_devices", settings.devices)
        self.devices = jax.devices() if peers.processes > 1 else jax.devices()[: settings.devices]
        if settings.devices > 1 and len(self.devices) != settings.devices:
            found = f"{len(self.devices)} of platform {self.devices[0].platform}"
            raise ConfigurationError(f"execution.devices: {settings.devices} were asked for and jax sees {found}.")
        self.device = jax.local_devices()[0]
        self.corpus = Corpus.open(settings.corpus)
        self.rows = evaluation_rows(
            self.corpus, settings.context, settings.evaluation_tokens, settings.evaluation_batch
        )
        limit = int((self.device.memory_stats() or {}).get("bytes_limit", 0))
        there = np.array([limit, limit or int(_USABLE_SHARE * settings.own_memory_bytes)], np.int64)
        self.device_bytes, self.memory_bytes = map(int, peers.share(there))  # process 0's: all must decide alike
        self.compiled: OrderedDict[str, Any] = OrderedDict()
        self.verified: OrderedDict[str, Any] = OrderedDict()
        self._own_memory = Leaks(settings.own_memory_bytes)
        self._device_memory = Leaks(self.device_bytes)
        self._last_progress = 0.0
        self._runs_are_common = None if peers.processes > 1 else True

    def sealed_rows(self) -> np.ndarray:
        """Rows of the sealed test split. Read only when a confirmation asks, and not kept."""
        from jaxresearch.data.batches import evaluation_rows
        from jaxresearch.data.dataset import open_sealed_test

        settings = self.settings
        sealed = open_sealed_test(self.corpus, settings.context)
        return evaluation_rows(sealed, settings.evaluation_tokens, settings.evaluation_batch)

    def facts(self) -> dict[str, Any]:
        import jax

        platform = "cuda" if self.device.platform == "gpu" else self.device.platform
        return {
            "device": self.device.platform if self.device.platform == "cpu" else self.device.device_kind,
            "platform": self.settings.verifies_for or platform,
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "devices": len(self.devices),
            "processes": self.peers.processes,
            "jax": jax.__version__,
        }

    def runs_are_common(self) -> bool:
        """Whether all processes see process 0's `settings.runs`. All must ask; it is tried out at the first time."""
        from jaxresearch.execution.common_folder import is_common

        if self._runs_are_common is None:
            self._runs_are_common = is_common(self.settings.runs, self.peers)
        return self._runs_are_common

    def spoken_to(self) -> bool:
        """Whether the driver has said something, or is gone, while a run is going: then it is to be given up."""
        return bool(select.select([sys.stdin], [], [], 0.0)[0])

    def progress(self, progress: RunProgress, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.peers.leads and (force or now - self._last_progress >= _PROGRESS_INTERVAL_SECONDS):
            self._last_progress = now
            self.say(progress=vars(progress))

    def verify(self, request: VerifyRequest) -> dict[str, Any]:
        """{"manifest": ...} of the stored program, or {"refused": why}."""
        from jaxresearch.program.program import store
        from jaxresearch.program.verifier import InvalidProgramError, ProgramLimits, Signature, verify

        settings = self.settings
        wanted = Signature(settings.evaluation_batch, settings.context, settings.vocab_size)
        try:
            verified = verify(
                [(request.folder / str(index)).read_bytes() for index in range(request.count)],
                traced=request.traced,
                phases=request.phases,
                metrics=request.metrics,
                wanted=wanted,
                limits=ProgramLimits(
                    settings.program_bytes, settings.constant_bytes, settings.parameters, settings.attribute_bytes
                ),
            )
        except InvalidProgramError as error:
            return {"refused": str(error)}
        manifest = store(
            settings.programs,
            verified,
            platform=self.facts()["platform"],
            traced=request.traced,
            phases=request.phases,
            leaves=request.leaves,
            metrics=request.metrics,
            signature=(wanted.batch, wanted.context, wanted.vocab_size),
        )
        if settings.verifies_for is None:
            _keep(self.verified, manifest.program, verified)
        return {"manifest": manifest.model_dump()}

    def run(self, request: RunRequest) -> dict[str, Any]:
        """A RunOutcome as JSON."""
        from jaxresearch.execution.running import run_program

        return run_program(self, request).model_dump(mode="json")

    def leaks(self) -> bool:
        """To be asked after each run, or verification where there are none: whether another process should do the next."""
        on_device = int((self.device.memory_stats() or {}).get("bytes_in_use", 0))
        return any([self._own_memory.grew(held_bytes()), self._device_memory.grew(on_device)])

    def sample(self, request: SampleRequest) -> dict[str, Any]:
        """{"text", "tokens", "ended"}, or {"refused": why}."""
        from jaxresearch.execution.sampling import sample

        try:
            return sample(self, request)
        except JaxresearchError as error:
            return {"refused": str(error)}

    def rescore(self, request: StateRequest) -> dict[str, Any]:
        """{"val_bpb"} of a kept state, or {"refused": why}."""
        from jaxresearch.execution.rescoring import rescore

        try:
            return {"val_bpb": rescore(self, request)}
        except JaxresearchError as error:
            return {"refused": str(error)}

    def executables(self, program: str) -> tuple[Any, Any, float]:
        """Compiled trainer and scorer of a program, and the seconds that compiling took now."""
        from jaxresearch.execution.executables import compile_executables
        from jaxresearch.program.fused import choose_kernel

        seconds = 0.0
        if program not in self.compiled:
            started = time.monotonic()
            settings, platform = self.settings, self.facts()["platform"]
            kernel, plainly = choose_kernel(settings.attention, platform, len(self.devices))
            compiled = compile_executables(
                settings.programs,
                program,
                self.devices,
                fsdp=settings.fsdp,
                device_bytes=self.device_bytes,
                kernel=kernel,
                plainly=plainly,
                verified=self.verified.pop(program, None),
            )
            _keep(self.compiled, program, compiled)
            seconds = time.monotonic() - started
        self.compiled.move_to_end(program)
        return *self.compiled[program], seconds


def _keep(kept: OrderedDict[str, Any], program: str, what: Any) -> None:
    """For the next runs of that program; the oldest make room."""
    kept[program] = what
    while len(kept) > _KEPT_PROGRAMS:
        kept.popitem(last=False)


if __name__ == "__main__":
    main()
