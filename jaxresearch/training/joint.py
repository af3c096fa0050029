"""Orbax over one process or several: each writes its own part of a checkpoint, and none waits long for one that cannot.

All of Orbax's barriers go through the service of `jax.distributed`, not over the devices: Orbax waits beside the steps of
the training, and processes that queue collectives in different orders wait for ever.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxresearch.training.company import Company

_BARRIERS = 2
"""That Orbax has behind a `save`: all parts are written, and process 0 has put them together."""
_STRAGGLER_SECONDS = 20
"""How long after these all may take to say that theirs was well."""


class PartMissingError(Exception):
    """Another process could not write its part."""


class Writer:
    """Writes checkpoints, one after the other. All processes must make it, and call `save`, at the same point."""

    def __init__(self, company: Company) -> None:
        self._several = company.processes > 1
        self._label = company.share(np.frombuffer(secrets.token_bytes(8), np.uint8)).tobytes().hex()
        self._saves = self._met = 0
        together = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes=set(range(company.processes)), barrier_sync_key_prefix=self._label
        )
        self._barrier = ocp.multihost.get_barrier_sync_fn(processes=together.active_processes)
        # Orbax tells of a folder that it makes behind `save` by numbered signals, which a failure puts out of step.
        behind = ocp.options.AsyncOptions(
            barrier_sync_fn=self._meet, create_directories_asynchronously=not self._several
        )
        self._orbax = ocp.AsyncCheckpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=together),
            multiprocessing_options=together,
            async_options=behind,
        )

    def save(self, path: Path, tree: dict[str, Any]) -> None:
        """Copy `tree` off the devices; `finish` waits until it lies at `path`."""
        self._saves += 1
        self._orbax.save(path.absolute(), args=ocp.args.StandardSave(tree))

    def finish(self) -> None:
        """Until every process has written its part. Raises what kept ours from it, or `PartMissingError`."""
        try:
            self._orbax.wait_until_finished()
        except Exception:
            self._give_way()
            raise
        if self._several:
            try:
                self._barrier(key=f"{self._label}/well/{self._saves}", timeout_ms=1000 * _STRAGGLER_SECONDS)
            except jax.errors.JaxRuntimeError:
                raise PartMissingError("another process could not write its part") from None

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's barriers by number, so that one that failed can pass those that it does not come to."""
        self._met += 1
        self._barrier(key=f"{self._label}/met/{self._met}", timeout_ms=timeout_ms)

    def _give_way(self) -> None:
        """Let the others by at the barriers of this save. They miss us at the last one, and seal nothing."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while self._several and self._met < _BARRIERS * self._saves:
                self._meet(key="", timeout_ms=1000 * _STRAGGLER_SECONDS)

    def close(self) -> None:
        self._orbax.close()


def read_tree(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """What lies at `path`, placed as `tree` says: of arrays that several processes hold only our parts. Waits for none.

    Raises what Orbax and TensorStore like.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as orbax:
        return orbax.restore(path.absolute(), args=ocp.args.StandardRestore(tree))
