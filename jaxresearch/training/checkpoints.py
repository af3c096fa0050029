"""Checkpoints of one run: written while it trains, found again when it was cut. Orbax writes and reads the arrays."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxresearch.experiment import Resumption
from jaxresearch.text import one_line
from jaxresearch.training import seal
from jaxresearch.training.company import SOLE, Company, share_bytes
from jaxresearch.training.hosts import Wish
from jaxresearch.training.seal import DamagedCheckpointError, Owner, Position, Seal

if TYPE_CHECKING:
    from jaxresearch.training.joint import Writer

_SHARE_OF_FREE = 0.5
"""Of what a disk has left, the share that one state may take."""

Targets = Sequence[jax.ShapeDtypeStruct]
"""Leaves of a state by shape, dtype and sharding, in the program's order."""


@dataclass(frozen=True)
class TrainingState:
    """All that a training is, between two steps. Batches and randomness follow from the seed and the cursors.

    Names and units are those of `Position`; curve: (progress, loss) of every step.
    """

    leaves: list[jax.Array]
    progress: float
    steps: int
    tokens: int
    flops: float
    seconds: float
    cursors: Mapping[int, int]
    loss: float
    curve: Sequence[tuple[float, float]]
    probes: tuple[tuple[float, float], ...] = ()


class Checkpoints:
    """Writes the state of one run into `folder` every so often, and takes the run up from the last one.

    A checkpoint never fails a run: one that cannot be written, or is not to be trusted, is left out, and `note` says why.
    owner: whose they are; one that belongs to another run is not used. every_seconds: of training between two; None
    for none on the way. keeps_final: write the last state too. machine: device, devices, threads, processes and jax.
    give_up: asked after each step whether to write one and end there.

    company: the processes that hold the state together. All must see `folder`, and call `take_up`, `save` and `end` at
    the same step: process 0 chooses what is taken up, says when one is due, and seals it when every part is written.
    After a failure several write no more: each could cost them minutes.
    """

    def __init__(
        self,
        folder: Path,
        owner: Owner,
        *,
        every_seconds: float | None,
        keeps_final: bool = False,
        machine: Mapping[str, str | int] | None = None,
        give_up: Callable[[], bool] = lambda: False,
        company: Company = SOLE,
    ) -> None:
        self._company, self._stopped = company, False
        self.folder, self.keeps_final, self.note = folder, keeps_final, ""
        self.resumed: tuple[Resumption, ...] = ()
        self._owner, self._every, self._machine = owner, every_seconds, dict(machine or {})
        self._last_seconds, self._give_up = 0.0, give_up
        self._names: dict[int, str] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    # Taking up

    def take_up(self, targets: Targets) -> TrainingState | None:
        """The last state that was written, placed as `targets` say; None when there is none to go on from."""
        steps, found = self._choose()
        state = None
        if found is not None:
            try:
                state = self._read(steps, found, targets)
            except DamagedCheckpointError as error:
                self._not_used(steps, str(error))
            if not self._company.agree(state is not None):
                if state is not None:
                    self._not_used(steps, "another process cannot read it")
                state, self.resumed, self._names = None, (), {}
        self._clear(but=steps if state is not None else None)
        self._last_seconds = state.seconds if state is not None else 0.0
        return state

    def _choose(self) -> tuple[int, Seal | None]:
        """Process 0's last checkpoint, on every process: its number of steps, and its seal where it may be used."""
        steps, text = 0, b""
        if self._company.leads and (there := seal.sealed(self.folder)):
            steps = there[-1]
            try:
                found = seal.read_seal(seal.state_folder(self.folder, steps))
                differing = [name for name, value in self._owner if value != getattr(found.owner, name)]
                if differing:
                    raise DamagedCheckpointError(f"it belongs to a run with another {', '.join(differing)}")
                text = found.model_dump_json().encode()
            except DamagedCheckpointError as error:
                self._not_used(steps, str(error))
        steps = int(self._company.share(np.array([steps], np.int64))[0])
        text = share_bytes(self._company, text)
        return steps, Seal.model_validate_json(text) if text else None

    def _not_used(self, steps: int, why: str) -> None:
        self.note = f"the checkpoint at step {steps} was not used: {why}; the run began again"

    def _read(self, steps: int, found: Seal, targets: Targets) -> TrainingState:
        path, position = seal.state_folder(self.folder, steps), found.position
        leaves, curve = read_state(path, found, targets)
        self.resumed = (
            *found.resumed,
            Resumption(progress=position.progress, steps=position.steps, alike=found.machine == self._machine),
        )
        if self._company.leads:
            self._names[steps] = seal.name_of(path)
        return TrainingState(
            leaves=leaves,
            curve=[(float(progress), float(loss)) for progress, loss in curve],
            **position.model_dump(exclude={"points"}),
        )

    # Writing

    def wish(self, seconds: float) -> Wish:
        """What process 0 wants after `seconds` of training: to save where the last one is long ago, and is written."""
        if not self._company.leads:
            return Wish.NOTHING
        if self._give_up():
            return Wish.LEAVE
        if self._every is None or self._stopped or seconds - self._last_seconds < self._every:
            return Wish.NOTHING
        return Wish.SAVE if self._writing is None or self._writing.done() else Wish.NOTHING

    def save(self, state: TrainingState) -> None:
        """Copy `state` off the devices, and write it while training goes on. The arrays may be donated afterwards."""
        self.wait()
        self._last_seconds = state.seconds
        if self._company.share(np.array([state.steps in self._names]))[0]:
            return  # it is the one that this training was taken up from
        path = seal.state_folder(self.folder, state.steps)
        seal_facts = {
            "owner": self._owner,
            "machine": self._machine,
            "leaves": _described(state.leaves),
            "resumed": self.resumed,
            "position": Position(
                progress=state.progress,
                steps=state.steps,
                tokens=state.tokens,
                flops=state.flops,
                seconds=state.seconds,
                cursors=dict(state.cursors),
                loss=state.loss,
                points=len(state.curve),
                probes=state.probes,
            ),
        }
        problem = self._problem(sum(leaf.nbytes for leaf in state.leaves))
        if not self._company.agree(problem is None):
            self._failed(problem or OSError("another process cannot write there"))
            return
        try:
            self._writer.save(path, _tree(state.leaves, state.curve))
        except Exception as error:  # whatever a disk, or an array that Orbax cannot write, may bring
            self._failed(error)
            return
        self._writing = self._thread.submit(self._finish, path, seal_facts, state.steps)

    def _problem(self, state_bytes: int) -> OSError | None:
        """What keeps us from writing. A process that finds out alone, inside `_writer.save`, leaves the others waiting.

        A state has the size that its candidate gave it, and who else writes there needs room too.
        """
        if self._stopped:
            return OSError("an earlier one could not be written")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
            free = shutil.disk_usage(self.folder).free
            if state_bytes > _SHARE_OF_FREE * free:
                return OSError(f"the state has {state_bytes / 1e9:.3g} GB, and the disk has {free / 1e9:.3g} GB left")
        except OSError as error:
            return error
        return None

    def _finish(self, path: Path, facts: Mapping[str, Any], steps: int) -> None:
        try:
            self._writer.finish()
            if self._company.leads:
                self._names[steps] = seal.write_seal(path, facts)
                self._clear(but=steps)
        except Exception as error:
            self._failed(error)

    def wait(self) -> None:
        """Until what is being written is written."""
        if self._writing is not None:
            self._writing.result()

    def end(self, final_steps: int | None) -> str:
        """The run has come to its end: remove what is no longer needed.

        final_steps: of the state that stays, None for none. Returns its name, or "" where it was not written.
        """
        self.wait()
        name = self._names.get(final_steps, "") if final_steps is not None and self.keeps_final else ""
        self._clear(but=final_steps if name else None)
        return name

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()
        if "_writer" in self.__dict__:
            self._writer.close()

    def _clear(self, *, but: int | None) -> None:
        if self._company.leads:
            seal.clear(self.folder, but=[but] if but is not None else [])

    def _failed(self, error: Exception) -> None:
        if not self._stopped:
            self.note = one_line(f"a checkpoint could not be written: {type(error).__name__}: {one_line(str(error))}")
        self._stopped = self._company.processes > 1

    @cached_property
    def _writer(self) -> Writer:
        from jaxresearch.training.joint import Writer  # here, so that a run without checkpoints does not wait for Orbax

        return Writer(self._company)


def read_state(path: Path, found: Seal, targets: Targets) -> tuple[list[jax.Array], np.ndarray]:
    """Leaves as `targets` say, whatever devices had written them, and the curve f64[points, 2].

    found: what `seal.read_seal(path)` gave. Raises `DamagedCheckpointError` when it is the state of another program.
    """
    from jaxresearch.training.joint import read_tree

    if found.leaves != _described(targets):
        raise DamagedCheckpointError("its arrays are not those of the program")
    wanted = {_key(at): target for at, target in enumerate(targets) if math.prod(target.shape)}
    tree = {"leaves": wanted, "curve": np.zeros((found.position.points + 1, 2))}
    try:
        read = read_tree(path, tree)
    except Exception as error:  # Orbax and TensorStore raise what they like
        raise DamagedCheckpointError(f"it cannot be read: {one_line(str(error))}") from None
    empty = {
        _key(at): jax.make_array_from_callback(
            target.shape, target.sharding, np.zeros(target.shape, target.dtype).__getitem__
        )
        for at, target in enumerate(targets)
        if _key(at) not in wanted
    }
    return [leaf for _, leaf in sorted({**read["leaves"], **empty}.items())], read["curve"][1:]


def _tree(leaves: Sequence[jax.Array], curve: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What Orbax writes. It takes no array of size zero, so those are left out, and the curve begins with a blank."""
    return {
        "leaves": {_key(at): leaf for at, leaf in enumerate(leaves) if leaf.size},
        "curve": np.array([(0.0, 0.0), *curve], np.float64),
    }


def _key(at: int) -> str:
    return f"{at:05d}"


def _described(leaves: Sequence[jax.Array] | Targets) -> tuple[str, ...]:
    return tuple(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves)
