"""RayExecutor: traces on this machine, and runs on the nodes of a Ray cluster, several at once.

Ray finds nodes and carries calls. Whether a run is tried again is for the study's ledger to decide, never for Ray.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.execution.base import ExecutorLostError, RunProgress, RunRequest, TracedCandidate, TraceFailure
from jaxresearch.execution.cluster import parcels
from jaxresearch.execution.cluster.connection import Cluster
from jaxresearch.execution.cluster.keeper import Order
from jaxresearch.execution.cluster.place import Place, PlaceLostError
from jaxresearch.execution.hosts import hosts_here
from jaxresearch.execution.local import LocalExecutor, worker_settings
from jaxresearch.experiment import CompletedRun, FailedRun, RunOutcome, Verdict
from jaxresearch.program.program import program_folder
from jaxresearch.proposal import Candidate
from jaxresearch.sandbox import Sandbox
from jaxresearch.training.seal import DamagedCheckpointError, checkpoint_folder, clear, find_named, read_seal

_PATIENCE_SECONDS = 300.0
"""How long a run waits for a node with room for it."""
_LOOK_SECONDS = 0.5
_KEPT_PARCELS = 16
_OUTCOME = TypeAdapter(RunOutcome)
_NATS = "nats.npy"
_ALIKE = ("device", "devices", "threads", "jax")
"""Facts of a worker that scores depend on: all places of a session must agree in them."""


class RayExecutor:
    """Runs on a cluster. `run` may be called several times at once: `workers` of them find a place."""

    def __init__(self, config: StudyConfig, corpus: Corpus, sandbox: Sandbox, *, programs: Path, runs: Path) -> None:
        """Join the cluster that `config` names. Raises `JaxresearchError` when there is none, or none that will do."""
        if hosts_here() is not None:
            raise ConfigurationError(
                "execution.executor: ray runs on one node each; it cannot lead the hosts of a job.",
                fix="Add --processes 1, or leave --executor ray out.",
            )
        self._config, self._corpus, self._sandbox = config, corpus, sandbox
        self._programs, self._runs = programs, runs
        self._settings = worker_settings(config, corpus, programs=programs, runs=runs)
        self._cluster = Cluster(config.execution.ray_address)
        self._idle: list[Place] = []
        self._places: set[Place] = set()
        self._like: dict[str, Any] | None = None
        self._tracer: LocalExecutor | None = None
        self._tracing = asyncio.Lock()
        self._sent: OrderedDict[Path, Any] = OrderedDict()
        try:
            self._needs = self._cluster.needs(config.execution)
            if not self._cluster.places(self._needs):
                raise ExecutorLostError(
                    f"no node of the cluster has {self._needs}.", fix="Look at `ray status`, then add such a node."
                )
        except BaseException:
            self._cluster.disconnect()
            raise

    @property
    def workers(self) -> int:
        """How many runs may go on at once: as many as the study has slots, and the cluster places at present."""
        return max(1, min(self._config.slots, self._cluster.places(self._needs)))

    async def facts(self) -> dict[str, Any]:
        """device, platform, devices, threads and jax of the workers on the nodes."""
        if self._like is None:
            self._release(await self._take())
        assert self._like is not None
        return self._like

    # Tracing, on this machine, for the cluster's devices

    async def trace(self, candidate: Candidate) -> TracedCandidate | TraceFailure:
        async with self._tracing:
            if self._tracer is None:
                platform = (await self.facts())["platform"]
                here = {"verifies_for": platform, "devices": 1, "fsdp": None}
                self._tracer = LocalExecutor(
                    self._settings.model_copy(update=here),
                    self._config.limits,
                    self._sandbox,
                    self._config.execution.keep_awake_programs,
                    require=self._config.sandbox.require,
                )
        return await self._tracer.trace(candidate)

    # Runs, on the nodes

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        def lost(reason: str) -> FailedRun:
            return FailedRun(
                identity=request.identity,
                verdict=Verdict.INFRASTRUCTURE,
                reason=reason,
                seed=request.seed,
                program=request.program,
            )

        try:
            program = self._parcel(program_folder(self._programs, request.program))
            reference = [] if request.reference is None else [self._parcel(self._runs / request.reference, _NATS)]
            place = await self._take()
        except ExecutorLostError:
            raise
        except JaxresearchError as error:
            return lost(str(error))
        try:
            answer = await place.run(request, program, reference, on_progress)
        except PlaceLostError as error:
            self._give_up(place)
            return lost(str(error))
        except BaseException:  # cancelled: what runs there must end now
            self._give_up(place)
            raise
        self._release(place)
        if "lost" in answer:
            return lost(f"on {place.node}: {answer['lost']}")
        try:
            return await asyncio.to_thread(self._accept, request, answer)
        except (JaxresearchError, OSError) as error:
            return lost(str(error))

    def _accept(self, request: RunRequest, answer: dict[str, Any]) -> RunOutcome:
        """Put a run's files where a run of this machine would have left them, and check that they are whole."""
        outcome, files = _OUTCOME.validate_python(answer["outcome"]), answer["files"]
        if not isinstance(outcome, CompletedRun):
            return outcome
        if _NATS not in files:
            raise JaxresearchError("the run came back without its evaluation.")
        folder = self._runs / request.identity
        clear(checkpoint_folder(self._runs, request.identity))
        # a seal is written after what it seals
        ordered = sorted(files, key=lambda name: (name.count("/") == 1, name))
        parcels.unpack({name: files[name] for name in ordered}, folder)
        if outcome.checkpoint:
            state = find_named(checkpoint_folder(self._runs, request.identity), outcome.checkpoint)
            try:
                read_seal(state, name=outcome.checkpoint) if state is not None else None
            except DamagedCheckpointError as error:
                raise JaxresearchError(f"the run's final state came back damaged: {error}.") from None
            if state is None:
                raise JaxresearchError("the run came back without its final state.")
        return outcome

    def _parcel(self, folder: Path, *names: str) -> Any:
        """A reference to the files of `folder` (those of `names`), sent into the cluster once."""
        if folder not in self._sent:
            try:
                files = {name: (folder / name).read_bytes() for name in names} or parcels.pack_folder(folder)
            except OSError as error:
                raise JaxresearchError(f"{folder} cannot be read: {error.strerror or error}.") from None
            self._sent[folder] = self._cluster.put(files)
            while len(self._sent) > _KEPT_PARCELS:
                self._sent.popitem(last=False)
        self._sent.move_to_end(folder)
        return self._sent[folder]

    # Places

    async def _take(self) -> Place:
        """A place that is idle and alive, or a new one.

        Raises `ExecutorLostError` when no node has room in time or one can never do, `PlaceLostError` when a new one
        is lost at once.
        """
        if (idle := await self._find_idle()) is not None:
            return idle
        place = self._new_place()
        try:
            arrival, waited = place.arrival(), 0.0
            while not arrival.done():
                await asyncio.wait({arrival}, timeout=_LOOK_SECONDS)
                waited += _LOOK_SECONDS
                if not arrival.done() and (idle := await self._find_idle()) is not None:
                    self._give_up(place)
                    return idle
                if waited > _PATIENCE_SECONDS and not arrival.done():
                    raise ExecutorLostError(
                        f"no node had room for {self._needs} within {_PATIENCE_SECONDS:g} s.",
                        fix="Look at `ray status`, then add nodes and go on with `jaxresearch resume`.",
                    )
            await place.prepare(self._arrived(arrival))
            self._check_alike(place)
        except BaseException:
            self._give_up(place)
            raise
        return place

    def _new_place(self) -> Place:
        order = Order(
            settings=self._settings,
            limits=self._config.limits,
            corpus=self._corpus.manifest,
            corpus_folder=self._corpus.folder.name,
            keep_awake=self._config.execution.keep_awake_programs,
            require=self._config.sandbox.require,
        )
        place = Place(self._cluster, self._cluster.keeper(self._needs, order.model_dump_json()), self._corpus)
        self._places.add(place)
        return place

    async def _find_idle(self) -> Place | None:
        while self._idle:
            place = self._idle.pop()
            if await place.answers():
                return place
            self._give_up(place)
        return None

    @staticmethod
    def _arrived(arrival: asyncio.Future[dict[str, str]]) -> dict[str, str]:
        try:
            return arrival.result()
        except Exception as error:
            if "ModuleNotFoundError" in str(error):
                raise ExecutorLostError(
                    "a node cannot import jaxresearch.", fix="Install the same version on every node."
                ) from None
            raise PlaceLostError(f"a keeper did not start: {' '.join(str(error).split())[-300:]}") from None

    def _check_alike(self, place: Place) -> None:
        if self._like is None:
            self._like = place.facts
        other = [name for name in _ALIKE if place.facts[name] != self._like[name]]
        if other:
            facts = ", ".join(f"{name} {place.facts[name]}, not {self._like[name]}" for name in other)
            raise ExecutorLostError(
                f"{place.node} is unlike the other nodes: {facts}. Scores of unlike machines are not comparable.",
                fix="Choose nodes of one kind, for example by execution.ray_resources.",
            )

    def _release(self, place: Place) -> None:
        self._idle.append(place)

    def _give_up(self, place: Place) -> None:
        self._places.discard(place)
        place.kill()

    async def close(self) -> None:
        """End all runs and keepers, and leave the cluster."""
        self._idle.clear()
        try:
            await asyncio.gather(*(place.close() for place in self._places))
            if self._tracer is not None:
                await self._tracer.close()
        finally:
            self._places.clear()
            self._cluster.disconnect()
