"""WorkerHouse: where workers are started, confined to what their settings name, or with our rights and the reason why."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path

from jaxresearch.data import Corpus, open_sealed_test
from jaxresearch.data.cache import keep_within
from jaxresearch.data.manifest import MANIFEST_FILE, ROWS_FOLDERS, SEALED
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.pins import Pin
from jaxresearch.execution.process import Confinement, WorkerProcess, worker_environment
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.levels import meets
from jaxresearch.machine import usable_memory_bytes
from jaxresearch.program.program import read_manifest
from jaxresearch.sandbox.confinement import Box, installation
from jaxresearch.sandbox.worker_tier import WorkerTier, choose_worker_tier
from jaxresearch.scratch import Scratch

_PACKAGE = Path(__file__).resolve().parents[1]
"""A worker imports it through a folder of ours that holds nothing else. The one that it lies in may be a clone: not the
worker's to see, and Python imports from no folder that it cannot list."""
_SCRATCH_BYTES = 2**30
"""Of /tmp and of /dev/shm: compilers write their drafts there, and collectives share memory."""
_COMPILED_BYTES = 4 * 2**30
"""Of programs compiled at some time; those longest unused go. jax itself never deletes any."""
_DEVICE_NODES = ("nvidia0", "accel*", "vfio/*", "kfd", "dxg")
_DRIVER_FOLDERS = ("/opt/rocm", "/run/opengl-driver", "/run/nvidia-persistenced")


class WorkerHouse:
    """Starts workers. The tier is chosen at the first one; `tier` says it, or why there is none."""

    def __init__(self, settings: WorkerSettings, *, require: str | None = None, network: bool = False) -> None:
        paths = {name: value.absolute() for name, value in settings if isinstance(value, Path)}
        facts = paths | {"memory_bytes": usable_memory_bytes()}  # a sandbox may not show the limits of control groups
        self._settings, self._require, self._network = settings.model_copy(update=facts), require, network
        self._inbox = Scratch("jaxresearch-inbox-")
        self._scratch, self._imports = self.inbox / "scratch", self.inbox / "imports"
        self._sees_devices = False
        self._neighbour: WorkerHouse | None = None
        self.tier: WorkerTier | None = None

    @property
    def inbox(self) -> Path:
        """A folder of ours that workers may read: modules to be verified lie there."""
        return self._inbox.folder

    def share_with(self, house: WorkerHouse) -> None:
        """Take the tier that `house` has found by its self-test, once it has; the machine is the same."""
        self._neighbour = house

    async def start(self, *, sealed: bool, verifies_for: str | None = None) -> WorkerProcess:
        """A worker. sealed: it may read the sealed test split, for a run that is to be scored there.

        verifies_for: a platform, for a worker that only verifies programs, without a device or cores of its own.

        Raises `JaxresearchError` when it does not start, or not in the tier that is required.
        """
        settings = self._settings
        if verifies_for is not None:
            alone = {"verifies_for": verifies_for, "hosts": None, "pin": Pin(), "threads": None, "devices": 1}
            settings = settings.model_copy(update=alone)
        if self.tier is None and self._neighbour is not None:
            self.tier = self._neighbour.tier
        if self.tier is None:
            accelerators = self._wants_accelerators()
            self.tier = await choose_worker_tier(self._require, network=self._network, accelerators=accelerators)
        await asyncio.to_thread(self._prepare, sealed)
        if self.tier.tier == "subprocess":
            return await WorkerProcess.start(settings)
        confinement = Confinement(self.tier.tier, self._box(sealed))
        try:
            worker = await WorkerProcess.start(settings, confinement)
        except JaxresearchError as error:
            return await self._without(f"{self.tier.level}: {error.message.rstrip('.')}", error, settings)
        if confinement.box.accelerators and not self._sees_devices and worker.facts["platform"] == "cpu":
            return await self._compare(worker, confinement)
        self._sees_devices = True
        return worker

    async def provide_rows(self, program: str) -> None:
        """Pack the rows of training text that a stored program asks for: workers may read them, and not write there.

        Raises `JaxresearchError` when the cache cannot hold them.
        """
        try:
            manifest = read_manifest(self._settings.programs, program)
        except JaxresearchError:
            return  # the worker, which parses the whole program, says what is wrong with it
        lengths = {length for _, _, length in manifest.phases}
        await asyncio.to_thread(Corpus.open(self._settings.corpus).provide_rows, lengths)

    async def _without(self, reason: str, error: JaxresearchError, settings: WorkerSettings) -> WorkerProcess:
        """A worker with our rights, where that is allowed and helps; from then on all are so."""
        assert self.tier is not None
        if not meets("subprocess", self._require):
            raise JaxresearchError(
                f"sandbox.require: {self._require} is required, and the worker does not start in it: {reason}.",
                fix="Run `jaxresearch doctor`.",
            )
        try:
            worker = await WorkerProcess.start(settings)
        except JaxresearchError:
            raise error from None  # not the sandbox's fault
        self.tier = replace(self.tier, tier="subprocess", reason=reason)
        return worker

    async def _compare(self, worker: WorkerProcess, confinement: Confinement) -> WorkerProcess:
        """jax goes to the CPU without a word when a driver does not answer: is that the sandbox's doing?"""
        await worker.kill()
        reason = "the confined worker sees no accelerator"
        error = JaxresearchError(f"the worker did not start: {reason}.", fix="Run `jaxresearch doctor`.")
        if meets("subprocess", self._require):
            free = await WorkerProcess.start(self._settings)
            if free.facts["platform"] != "cpu":
                assert self.tier is not None
                self.tier = replace(self.tier, tier="subprocess", reason=reason)
                return free
            await free.kill()
        elif os.environ.get("JAX_PLATFORMS"):
            raise error
        self._sees_devices = True
        return await WorkerProcess.start(self._settings, confinement)

    def _prepare(self, sealed: bool) -> None:
        """Make what the worker is given but may not make: the folders it writes to, the rows it scores."""
        for folder in (*_writable(self._settings), self._scratch, self._imports):
            folder.mkdir(parents=True, exist_ok=True)
        keep_within(self._settings.compilation_cache, _COMPILED_BYTES)
        with contextlib.suppress(FileExistsError):  # made for an earlier worker, or for one that starts meanwhile
            (self._imports / _PACKAGE.name).symlink_to(_PACKAGE)
        corpus = Corpus.open(self._settings.corpus)
        corpus.provide_evaluation(self._settings.context)
        if sealed:
            open_sealed_test(corpus, self._settings.context)

    def _box(self, sealed: bool) -> Box:
        environment = worker_environment()
        given = [Path(p).resolve() for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
        paths = [self._imports, *given]
        libraries = [Path(p) for p in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
        accelerators = self._wants_accelerators()
        libraries += map(Path, _DRIVER_FOLDERS) if accelerators else []
        assert self.tier is not None
        scratch = "/tmp" if self.tier.tier == "bubblewrap" else str(self._scratch)
        environment |= {"HOME": scratch, "TMPDIR": scratch, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        if accelerators and not self._network:  # libtpu would ask the cloud's metadata server, and wait
            environment.setdefault("TPU_SKIP_MDS_QUERY", "1")
        return Box(
            readable=(
                *installation(_PACKAGE.name),
                *(path for path in libraries if path.is_dir()),
                *_corpus_files(self._settings.corpus, sealed),
                self.inbox,
            ),
            writable=(*_writable(self._settings), self._scratch),
            environment=environment,
            scratch_bytes=_SCRATCH_BYTES,
            accelerators=accelerators,
            network=self._network,
        )

    def _wants_accelerators(self) -> bool:
        return self._settings.verifies_for is None and has_accelerators()

    def close(self) -> None:
        self._inbox.close()


def _writable(settings: WorkerSettings) -> list[Path]:
    """Every folder that the settings name, but the corpus."""
    return [value for name, value in settings if isinstance(value, Path) and name != "corpus"]


def _corpus_files(folder: Path, sealed: bool) -> list[Path]:
    """What a worker reads of a corpus. The sealed part is there only when it is wanted."""
    names = {name.split("/")[0] for name in Corpus.open(folder).manifest.files if not name.startswith(SEALED)}
    names |= {MANIFEST_FILE, ROWS_FOLDERS["validation"], ROWS_FOLDERS["train"]} | ({SEALED} if sealed else set())
    return [folder / name for name in sorted(names)]


def has_accelerators() -> bool:
    """Whether a worker here must be given device nodes: some are there, and jax is not told to use the CPU."""
    nodes = any(any(Path("/dev").glob(name)) for name in _DEVICE_NODES)
    return nodes and os.environ.get("JAX_PLATFORMS", "").split(",")[0] != "cpu"
