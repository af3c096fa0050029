"""Peers: the workers of one run over several hosts. Process 0's leads, the others do as it says.

`jax.distributed` makes the devices of all hosts one mesh, and gives its users no other channel. Between two requests an
LLM may think for minutes, which no collective on the devices should wait for, so requests and programs go over a plain
socket from the leader to each follower. Its address, and a random token that a follower must show, are told once, over
the devices. A socket that ends tells at once that a peer is gone, when the others may be stuck in a collective.
Like the channels of jax, NCCL and gloo it is not encrypted: it is for a network that you trust.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import BaseModel

import jaxresearch
from jaxresearch.data.dataset import Corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunRequest
from jaxresearch.execution.hosts import Hosts
from jaxresearch.program.program import program_folder
from jaxresearch.training.company import Company, Sole

if TYPE_CHECKING:
    from jaxresearch.execution.worker import WorkerSettings

LEFT_STATUS = 75
"""Exit status of a worker whose peers are gone: start it again, they may come back."""
_GREETING_BYTES = 1024
_GRACE_SECONDS = 5.0
"""How long a peer's loss or failure may take to be noticed after an error of our own, and the other way round."""
_CONNECT_SECONDS = 20.0


class Peers(Company, Protocol):
    """What a run shares with the other processes that do it.

    spoilt: a run ended in an error of the runtime, after which the processes may no longer be in step.
    """

    spoilt: bool

    def after_error(self) -> None:
        """Called when a run ended in an error of the runtime. Does not return if that was the loss of a peer."""
        ...


class Alone(Sole):
    """One process is the whole job."""

    spoilt = False

    def after_error(self) -> None:
        pass


class Link:
    """One JSON object a line, over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # a host without power sends no end: 25 s, before jax's own 100
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        self._connection, self._file = connection, connection.makefile("rb")

    def send(self, **message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, limit: int = -1) -> dict[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            line = self._file.readline(limit)
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def join(hosts: Hosts, refuse: Callable[[str], None]) -> None:
    """Make this process one of the job, with public jax only. `refuse` is told why when the others do not come, and ends
    the process: jax itself would abort it."""
    import jax

    seconds = hosts.join_seconds
    if hosts.process_id == 0:
        late = f"not all of {hosts.processes} processes joined within {seconds} s"
    else:
        late = f"process 0 of {hosts.processes} was not there within {seconds} s"
    timer = threading.Timer(seconds, refuse, [late])
    timer.daemon = True
    timer.start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    patience = seconds + 60
    if hosts.address is None:
        jax.distributed.initialize(initialization_timeout=patience)
    else:
        host, port = hosts.address
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.processes,
            hosts.process_id,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{_listening_host(host)}:{port}",
            initialization_timeout=patience,
        )
    _broadcast(np.zeros(1, np.int32))  # all are there, and the devices reach each other
    timer.cancel()


def _listening_host(host: str) -> str:
    """An address is listened on alone; a name may stand for other addresses elsewhere than here."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return "0.0.0.0"


def _broadcast(value: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value))


class _Several:
    def __init__(self, hosts: Hosts) -> None:
        self.processes, self.process, self.leads = hosts.processes, hosts.process_id, hosts.process_id == 0
        self.spoilt = False

    def share(self, value: np.ndarray) -> np.ndarray:
        """Bits are told, in words of 32: jax would round a number of 64."""
        bits = value.tobytes()
        words = np.frombuffer(bits.ljust(-(-len(bits) // 4) * 4, b"\0"), np.int32)
        told = _broadcast(words).tobytes()[: len(bits)]
        return np.frombuffer(told, value.dtype).reshape(value.shape).copy()

    def agree(self, yes: bool) -> bool:
        from jax.experimental import multihost_utils

        return bool(np.all(multihost_utils.process_allgather(np.array([yes], np.int32))))


class Leader(_Several):
    """The leader's end. `lost` is told of a peer that went or failed, and ends this process."""

    def __init__(self, hosts: Hosts, lost: Callable[[str], None]) -> None:
        super().__init__(hosts)
        self._lost, self._ending = lost, False
        self._told: set[str] = set()
        self._watches: list[threading.Thread] = []
        known = hosts.address
        listening = "" if known is None else _listening_host(known[0]).strip("[]")
        family = socket.AF_INET6 if ":" in listening else socket.AF_INET
        token = secrets.token_hex(16)
        with socket.create_server((listening, 0), family=family) as server:
            port = server.getsockname()[1]
            addresses = [known[0]] if known is not None else _own_addresses()
            greeting = json.dumps({"addresses": addresses, "port": port, "token": token}).encode()
            if len(greeting) > _GREETING_BYTES:
                raise JaxresearchError("the name of this host is too long to tell the other hosts.")
            self.share(np.frombuffer(greeting.ljust(_GREETING_BYTES), np.uint8))
            self._links = self._accept(server, token)

    def _accept(self, server: socket.socket, token: str) -> dict[int, Link]:
        links: dict[int, Link] = {}
        deadline = time.monotonic() + _CONNECT_SECONDS + 10
        while len(links) < self.processes - 1:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
                link = Link(connection)
                connection.settimeout(5.0)
                hello = link.receive(_GREETING_BYTES) or {}
                connection.settimeout(None)
            except ValueError:
                continue
            except TimeoutError:
                missing = sorted(set(range(1, self.processes)) - links.keys())
                raise JaxresearchError(
                    f"process {missing[0]} cannot reach process 0 on port {server.getsockname()[1]}."
                ) from None
            if secrets.compare_digest(str(hello.get("token")), token):
                links[int(hello["process"])] = link
            else:
                link.close()
        return links

    def start(self, settings: BaseModel, **facts: Any) -> None:
        """Tell all followers what they need, and wait until they are ready for requests."""
        self.tell(do="start", settings=settings.model_dump(mode="json"), **facts)
        for number, link in self._links.items():
            answer = link.receive() or {"error": "its worker ended"}
            if "error" in answer:
                raise JaxresearchError(f"process {number}: {answer['error']}")
        for number, link in self._links.items():
            watch = threading.Thread(target=self._watch, args=(number, link), daemon=True)
            watch.start()
            self._watches.append(watch)

    def tell(self, **message: Any) -> None:
        for number, link in self._links.items():
            try:
                link.send(**message)
            except OSError:
                self._lost(f"process {number} was lost")

    def _watch(self, number: int, link: Link) -> None:
        message = link.receive()
        if self._ending:
            return
        if message is None:
            self._lost(f"process {number} was lost")
        time.sleep(3 * _GRACE_SECONDS)  # an error of the program is every process's, and ours to tell
        self._lost(f"process {number} failed: {(message or {}).get('error')}")

    def ask(self, programs: Path, request: RunRequest) -> None:
        """Have every follower do `request`, whose program lies below `programs`."""
        if request.program not in self._told:
            folder = program_folder(programs, request.program)
            files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(folder.iterdir())}
            self.tell(do="keep", program=request.program, files=files)
            self._told.add(request.program)
        self.tell(do="run", request=request.model_dump(mode="json"))

    def after_error(self) -> None:
        time.sleep(_GRACE_SECONDS)  # in which the loss of a peer ends this process
        self.spoilt = True

    def end(self) -> None:
        """Send the followers home, and see them off: jax aborts a process whose process 0 goes first."""
        self._ending = True
        self.tell(do="end")
        deadline = time.monotonic() + _GRACE_SECONDS
        for watch in self._watches:
            watch.join(max(0.0, deadline - time.monotonic()))


def lead(hosts: Hosts, settings: WorkerSettings, lost: Callable[[str], None]) -> Leader:
    """Join the job as its process 0, and bring every follower to where it can do runs. Raises `JaxresearchError`."""
    import jax

    join(hosts, lost)
    leader = Leader(hosts, lost)
    corpus = Corpus.open(settings.corpus).fingerprint
    leader.start(settings, corpus=corpus, jax=jax.__version__, jaxresearch=jaxresearch.__version__)
    return leader


def _own_addresses() -> list[str]:
    """Where other hosts may reach this one, the likeliest first."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; names the interface that leads outside
        found.append(probe.getsockname()[0])
    return [*found, socket.gethostname(), "127.0.0.1"]


class Follower(_Several):
    """A follower's end."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts)
        greeting = json.loads(self.share(np.zeros(_GREETING_BYTES, np.uint8)).tobytes())
        self.link = _connect(greeting["addresses"], greeting["port"])
        self.link.send(token=greeting["token"], process=hosts.process_id)

    def after_error(self) -> None:
        """The leader learns of it, and ends us: after an error inside a collective nothing can be shared any more."""
        self.link.send(error="the program failed here while it ran")
        time.sleep(4 * _GRACE_SECONDS)
        os._exit(LEFT_STATUS)


def _connect(addresses: list[str], port: int) -> Link:
    deadline, problem = time.monotonic() + _CONNECT_SECONDS, ""
    for address in addresses:
        try:
            return Link(socket.create_connection((address, port), timeout=max(1.0, (deadline - time.monotonic()) / 2)))
        except OSError as error:
            problem = f"{address}:{port}: {error}"
    raise JaxresearchError(f"process 0 cannot be reached at {problem}.")
