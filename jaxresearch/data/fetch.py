"""Fetching: files of the hub onto the disk, several at a time, each whole and checked or not there at all.

A file arrives as `PATH.part`, which a later fetch goes on with, and gets its name when its SHA-256 is right.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from jaxresearch.data.cache import file_sha256, sync
from jaxresearch.data.corpus import OnProgress
from jaxresearch.data.manifest import FileFacts
from jaxresearch.errors import JaxresearchError

PARALLEL = 8
RETRIES = 4
"""Connections in a row that may bring nothing before a file is given up."""
FIRST_WAIT_SECONDS = 0.25
"""Before a dropped connection is made anew; twice as long after each one that brought nothing."""
TIMEOUT_SECONDS = 20.0
"""Without a byte, after which a connection counts as dropped."""
_LATER = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may pass."""


@dataclass(frozen=True)
class Wanted:
    """path: of the file, relative to the folder that it goes to. url: where it is. facts: what must arrive."""

    path: str
    url: str
    facts: FileFacts


class _StoppedError(Exception):
    """Another file failed, or the user gave up."""


def fetch(wanted: Sequence[Wanted], folder: Path, on_progress: OnProgress) -> None:
    """Bring all of `wanted` into `folder`; what is there and has the right SHA-256 is not asked for again.

    on_progress: "fetch: 1 of 3 files, 190 MB in all" and the part of the bytes that is here, from this thread only.
    Raises JaxresearchError for a file that arrived wrong twice, and what the client raises for a hub that is down.
    """
    missing = [file for file in wanted if not _is_here(folder / file.path, file.facts)]
    if not missing:
        return
    total = sum(file.facts.size_bytes for file in wanted)
    transfer = _Transfer(folder, total - sum(file.facts.size_bytes for file in missing))

    def report() -> None:
        count = len(wanted) - len(missing) + transfer.files
        stage = f"fetch: {count} of {len(wanted)} files, {total / 1e6:,.0f} MB in all"
        on_progress(stage, min(1.0, transfer.received_bytes / max(1, total)))

    with ThreadPoolExecutor(PARALLEL, "fetch") as pool:
        try:
            report()  # the size, before the first byte
            running = {pool.submit(transfer.bring, file) for file in missing}
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report()
        finally:
            transfer.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _is_here(path: Path, facts: FileFacts) -> bool:
    return path.is_file() and path.stat().st_size == facts.size_bytes and file_sha256(path) == facts.sha256


class _Transfer:
    """What the threads of one fetch share."""

    def __init__(self, folder: Path, here_bytes: int) -> None:
        self._folder = folder
        self._count = threading.Lock()
        self.stop = threading.Event()
        self.received_bytes = here_bytes
        self.files = 0

    def bring(self, file: Wanted) -> None:
        """One file, whole and checked. A damaged one is thrown away and fetched once more."""
        target = self._folder / file.path
        part = target.with_name(f"{target.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        found = ""
        for _ in range(2):
            self._receive(file, part)
            found = file_sha256(part)
            if found == file.facts.sha256:
                sync(part)
                part.rename(target)
                sync(target.parent)
                with self._count:
                    self.files += 1
                return
            self._add(-part.stat().st_size)
            part.unlink()
        raise JaxresearchError(
            f"{file.path} arrived damaged twice: its SHA-256 is {found[:12]}..., not {file.facts.sha256[:12]}...",
            fix="It was thrown away. Run the same command again, or set HF_ENDPOINT to another mirror.",
        )

    def _receive(self, file: Wanted, part: Path) -> None:
        """Append to `part` until it has all bytes, however many connections that takes."""
        size, fruitless = file.facts.size_bytes, 0
        have = part.stat().st_size if part.exists() else 0
        self._add(have)
        while have != size:
            if have > size:
                self._add(-have)
                part.unlink()
                have = 0
            try:
                self._stream(file, part, have)
                problem = None
            except (_StoppedError, JaxresearchError):
                raise
            except Exception as error:  # a refusal, a drop, a time-out: the client's classes differ between versions
                if not _may_pass(error):
                    raise
                problem = error
            now = part.stat().st_size
            fruitless = 0 if now > have else fruitless + 1
            have = now
            if have != size:
                if fruitless > RETRIES:
                    raise problem or ConnectionError(f"{file.path} ends after {have:,} of {size:,} bytes")
                self.stop.wait(min(8.0, FIRST_WAIT_SECONDS * 2**fruitless))
                self._check()

    def _stream(self, file: Wanted, part: Path, have: int) -> None:
        """One connection: the bytes from `have` on, as far as it holds."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with (
            part.open("ab") as out,
            http_stream_backoff("GET", file.url, max_retries=0, headers=headers, timeout=TIMEOUT_SECONDS) as response,
        ):
            hf_raise_for_status(response)
            if have and response.status_code != 206:  # the server sends it from the start
                out.truncate(0)
                self._add(-have)
            for chunk in response.iter_bytes():
                self._check()
                out.write(chunk)
                self._add(len(chunk))

    def _add(self, count: int) -> None:
        with self._count:
            self.received_bytes += count

    def _check(self) -> None:
        if self.stop.is_set():
            raise _StoppedError


def _may_pass(error: Exception) -> bool:
    """Whether trying again makes sense: not for a full disk, nor for an answer such as 404."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in _LATER
    return not (isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError))
