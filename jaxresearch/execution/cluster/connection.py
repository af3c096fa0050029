"""The connection to a Ray cluster: Ray is imported here and nowhere else, once it is asked for."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

from jaxresearch.config import ExecutionConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.execution.base import ExecutorLostError
from jaxresearch.execution.cluster.keeper import Keeper
from jaxresearch.text import one_line

_START = "Start one (`ray start --head`) or name it with --ray-address HOST:PORT; see docs/operations.md."


_LOOPBACK = ("127.0.0.1:", "localhost:")
_REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Needs:
    """What one run takes of a node, in Ray's terms. accelerator: GPU, TPU or nothing."""

    cpus: int
    accelerator: str
    accelerators: int
    further: dict[str, float] = field(default_factory=dict)

    @property
    def resources(self) -> dict[str, float]:
        """By the names that Ray's nodes use."""
        own = {"CPU": self.cpus} | ({self.accelerator: self.accelerators} if self.accelerator else {})
        return {**own, **self.further}

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `ray.remote`."""
        gpus = self.accelerators if self.accelerator == "GPU" else 0
        others = self.further | ({"TPU": self.accelerators} if self.accelerator == "TPU" else {})
        return {"num_cpus": self.cpus, "num_gpus": gpus, "resources": others}

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())


def check_ray_is_installed() -> None:
    """Raises `ConfigurationError` where it is not; Ray itself is not imported for it."""
    if importlib.util.find_spec("ray") is None:
        raise _without_ray()


def _without_ray() -> ConfigurationError:
    return ConfigurationError("execution.executor: Ray is not installed.", fix="pip install 'jaxresearch[ray]'")


class Cluster:
    """A cluster that this process is connected to, as a driver of its own: what it starts there ends with it."""

    def __init__(self, address: str) -> None:
        """Raises `ConfigurationError` without Ray, and `ExecutorLostError` without a cluster."""
        if address.startswith("ray://"):
            raise ConfigurationError(
                "execution.ray_address: Ray Client (ray://) is not supported.",
                fix="Let the driver's machine join the cluster (`ray start --address HOST:PORT --num-cpus 0`).",
            )
        _check_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address.startswith(_LOOPBACK):  # which Ray would otherwise replace by an address of the network
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise _without_ray() from None
        self._ray, self._connected_here = ray, not ray.is_initialized()
        self._shield: _OursAlone | None = None
        if not self._connected_here:
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = one_line(str(error), 200).rstrip(".")
            raise ExecutorLostError(f"no Ray cluster at {address}: {reason}.", fix=_START) from None
        self._shield = _OursAlone(sys.stdout)
        sys.stdout = cast(TextIO, self._shield)

    def needs(self, config: ExecutionConfig) -> Needs:
        """What a run takes here. Raises `ConfigurationError` where that is not settled or no node ever has it."""
        accelerator = next((name for name in ("GPU", "TPU") if self.places(Needs(0, name, 1))), "")
        if not accelerator and config.threads is None:
            raise ConfigurationError(
                "execution.threads: not set, and the cluster has CPUs only.",
                fix="Say how many cores one run has, such as --set execution.threads=4.",
            )
        if not accelerator and config.devices > 1:
            raise ConfigurationError(
                f"execution.devices: {config.devices} were asked for, and the cluster has CPUs only."
            )
        return Needs(config.threads or 1, accelerator, config.devices, dict(config.ray_resources))

    def places(self, needs: Needs) -> int:
        """How many runs the nodes that are there have room for, if nothing else runs on them."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(int(there.get(name, 0) / amount) for name, amount in needs.resources.items() if amount)
            for there in alive
        )

    def keeper(self, needs: Needs, order: str) -> Any:
        """A new `Keeper` on some node, which may have to wait for a place. Ray never starts it again by itself."""
        remote = self._ray.remote(max_restarts=0, max_task_retries=0, **needs.options)(Keeper)
        return remote.remote(order)

    def put(self, value: Any) -> Any:
        """A reference to `value`, which nodes fetch when they await it."""
        return self._ray.put(value)

    def kill(self, keeper: Any) -> None:
        """End it without asking; its worker ends with it."""
        try:
            self._ray.kill(keeper, no_restart=True)
        except Exception:  # it, or the cluster, is gone already
            logging.getLogger(__name__).debug("a keeper could not be killed", exc_info=True)

    def disconnect(self) -> None:
        """Leave the cluster, if this object joined it."""
        if self._connected_here and self._ray.is_initialized():
            self._ray.shutdown()
        if self._shield is not None and sys.stdout is self._shield:  # else somebody else has put another in its place
            sys.stdout = self._shield.stream


def _check_reachable(address: str) -> None:
    """Ray would try for ten minutes. Raises `ExecutorLostError`, or `ConfigurationError` for what is no address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(f"execution.ray_address: {address} is not HOST:PORT.", fix=_START)
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExecutorLostError(f"no Ray cluster at {address}: {reason}.", fix=_START) from None


def pending(reference: Any) -> asyncio.Future[Any]:
    """A keeper's answer, some day: what its method returned or raised, or an error of Ray's. Nobody need look at it."""
    future = asyncio.wrap_future(reference.future())
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


async def answer(reference: Any, seconds: float) -> Any:
    """A keeper's answer. Raises TimeoutError when there is none in time."""
    future = pending(reference)
    await asyncio.wait({future}, timeout=seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


class _OursAlone:
    """Standard output without what a thread of Ray's prints there about nodes: a result must stand alone on it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
