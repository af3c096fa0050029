"""Keeper: stands on a node of a cluster, and does one run at a time there in a warm, confined worker of that node.

It knows nothing of Ray, which only carries its calls. All that it is given and gives back is JSON and bytes.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from jaxresearch.config import LimitsConfig
from jaxresearch.data import default_cache_root
from jaxresearch.data.dataset import Corpus
from jaxresearch.data.manifest import Manifest
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.execution.cluster import parcels
from jaxresearch.execution.local import LocalExecutor
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.program.program import program_folder

_SHIPPED = "shipped"
"""Folder of a node's cache for what drivers brought: corpora and programs, by hash, for all keepers of the node."""
_MOST_KEEPERS = 1024


class Order(BaseModel):
    """What a driver tells its keepers. settings: its folders are replaced by the node's own."""

    model_config = ConfigDict(frozen=True)

    settings: WorkerSettings
    limits: LimitsConfig
    corpus: Manifest
    corpus_folder: str
    keep_awake: int
    require: str | None


class Keeper:
    """One place for runs on this node, with cores of its own where runs have a thread count."""

    def __init__(self, order: str) -> None:
        self._order = Order.model_validate_json(order)
        cache = default_cache_root()
        self._shipped = cache / _SHIPPED
        self._place = _take_place(cache / "keepers")
        self._folder = self._place.folder / secrets.token_hex(8)  # a worker of a killed keeper may linger a moment
        self._folder.mkdir()
        self._cores = _own_cores(self._place.number, self._order.settings.threads)
        self._corpus = self._find_corpus(cache)
        self._receiving: int | None = None
        self._progress: RunProgress | None = None
        folders = {
            "corpus": self._corpus,
            "programs": self._shipped / "programs",
            "runs": self._folder / "runs",
            "compilation_cache": cache / "xla",
        }
        settings = self._order.settings.model_copy(update=folders)
        self._runner = LocalExecutor(
            settings, self._order.limits, None, self._order.keep_awake, require=self._order.require
        )

    async def hello(self) -> dict[str, str]:
        """node, and what must be equal on all: code, python and jax."""
        import jax

        python = ".".join(map(str, sys.version_info[:2]))
        return {"node": socket.gethostname(), "code": code_fingerprint(), "python": python, "jax": jax.__version__}

    # The corpus comes file by file, in pieces

    async def lacks(self, *, sealed: bool) -> list[str] | None:
        """Files of the corpus to be sent here; None while another keeper of this node receives it: ask again.

        sealed: those of the sealed test split too.
        """
        if not await self._missing(sealed):
            return []
        self._corpus.mkdir(parents=True, exist_ok=True)
        if self._receiving is None:
            self._receiving = _try_lock(self._corpus.parent / f".lock-{self._corpus.name}")
        if self._receiving is None:
            return None
        return await self._missing(sealed)

    async def _missing(self, sealed: bool) -> list[str]:
        return await asyncio.to_thread(parcels.missing_files, self._corpus, self._order.corpus, sealed=sealed)

    async def receive(self, name: str, offset: int, piece: bytes, *, last: bool) -> None:
        """A piece of a file that was lacking. Raises `JaxresearchError` when the whole is not what it should be."""
        part = parcels.part_path(self._corpus, name)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)
            file.truncate()
        if last:
            await asyncio.to_thread(parcels.accept_file, self._corpus, name, self._order.corpus)

    async def received(self) -> None:
        """All has been sent: other keepers of the node may look."""
        if self._receiving is not None:
            os.close(self._receiving)
            self._receiving = None

    # Runs

    async def facts(self) -> dict[str, str | int]:
        """device, platform, threads, devices and jax of the worker here, or {"lost": why}."""
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread, which starts the workers
        try:
            return await self._runner.facts()
        except JaxresearchError as error:
            return {"lost": str(error)}

    async def run(self, request: dict[str, Any], program: list[Any], reference: list[Any]) -> dict[str, Any]:
        """{"outcome": ..., "files": of the run's folder}, or {"lost": why} where the fault is ours or the machine's.

        program, reference: one awaitable each of the program's parcel, fetched only when it is not here, and of the
        reference run's; empty when there is no reference.
        """
        asked, self._progress = RunRequest.model_validate(request), None
        runs = self._folder / "runs"
        try:
            root = self._shipped / "programs"
            if not await asyncio.to_thread(parcels.has_program, root, asked.program):
                parcels.unpack_whole(await program[0], program_folder(root, asked.program))
            if asked.reference is not None:
                parcels.unpack(await reference[0], runs / asked.reference)
            outcome = await self._runner.run(asked, self._note)
            files = await asyncio.to_thread(parcels.pack_folder, runs / asked.identity)
            return {"outcome": outcome.model_dump(mode="json"), "files": files}
        except (JaxresearchError, OSError) as error:
            return {"lost": str(error)}
        finally:
            self._progress = None
            shutil.rmtree(runs / asked.identity, ignore_errors=True)
            if asked.reference is not None:
                shutil.rmtree(runs / asked.reference, ignore_errors=True)

    async def progress(self) -> dict[str, Any] | None:
        """Of the run that is going on. An answer also says that this node is alive."""
        return None if self._progress is None else vars(self._progress)

    async def close(self) -> None:
        await self._runner.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _note(self, progress: RunProgress) -> None:
        self._progress = progress

    def _find_corpus(self, cache: Path) -> Path:
        """Where the corpus is, or will be: the node may have prepared the same one by itself."""
        wanted = self._order.corpus
        prepared = cache / Path(self._order.corpus_folder).name
        try:
            found = Corpus.open(prepared)
            if found.manifest.files == wanted.files:
                found.check_bytes(sealed=False)
                return prepared
        except JaxresearchError:
            pass
        return self._shipped / parcels.corpus_name(wanted)


@functools.cache
def code_fingerprint() -> str:
    """The SHA-256 of this package's sources: driver and nodes must run the same."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _Place:
    """A number that no other keeper on this node holds, and an empty folder. The kernel frees a dead one's."""

    def __init__(self, number: int, folder: Path, lock: int) -> None:
        self.number, self.folder, self._lock = number, folder, lock


def _take_place(root: Path) -> _Place:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(_MOST_KEEPERS):
        lock = _try_lock(root / f".lock-{number}")
        if lock is not None:
            folder = root / str(number)
            shutil.rmtree(folder, ignore_errors=True)  # what a killed keeper left
            folder.mkdir(exist_ok=True)
            return _Place(number, folder, lock)
    raise JaxresearchError(f"{_MOST_KEEPERS} keepers are on this node already.")


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock until it is closed; None while another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _own_cores(number: int, threads: int | None) -> list[int]:
    """Cores beside those of other keepers; none where there is no thread count, or fewer cores than keepers want."""
    if threads is None or not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[number * threads : (number + 1) * threads]
    return cores if len(cores) == threads else []
