"""The worker of a process that follows: it does the runs that process 0's worker asks for, step for step with it.

Started by `jaxresearch.execution.follow` as `python -m jaxresearch.execution.follower`. It verifies nothing, scores for
nobody and writes no ledger: its results are process 0's, which shares every figure that a decision depends on.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jaxresearch
from jaxresearch.data.dataset import Corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import RunRequest
from jaxresearch.execution.hosts import Hosts
from jaxresearch.execution.peers import LEFT_STATUS, Follower, join
from jaxresearch.execution.worker import Worker, WorkerSettings, end_outgrown, end_with
from jaxresearch.machine import usable_memory_bytes
from jaxresearch.program.program import program_folder
from jaxresearch.scratch import Scratch
from jaxresearch.training.trainer import TrainingGivenUp


def main() -> None:
    hosts = Hosts.model_validate_json(sys.argv[1])
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    def refuse(why: str) -> NoReturn:
        say(error=why)
        os._exit(1)

    try:
        join(hosts, refuse)
        peers = Follower(hosts)
    except JaxresearchError as error:
        refuse(str(error))
    say(joined=True)
    with Scratch("jaxresearch-follower-") as scratch:
        try:
            settings = _settings(peers, scratch, say)
        except JaxresearchError as error:
            peers.link.send(error=str(error))
            refuse(str(error))
        threading.Thread(target=watch_memory, args=(settings, say), daemon=True).start()
        peers.link.send(ready=True)
        requests = _requests(peers)
        worker = Worker(settings, say, peers)
        while (message := requests.get()) is not None:
            match message["do"]:
                case "keep":
                    _keep(settings.programs, message["program"], message["files"])
                case "run":
                    try:
                        worker.run(RunRequest.model_validate(message["request"]))
                    except TrainingGivenUp:
                        continue  # process 0 ends once it has sealed the checkpoint, and that ends us: not before
                    say(ran=True)
    say(done=True)
    out.close()
    os._exit(0)  # without waiting for the others, as jax would


def _settings(peers: Follower, scratch: Path, say: Any) -> WorkerSettings:
    """Process 0's settings, with the folders of this host. Raises `JaxresearchError` where the two do not fit.

    `runs` stays process 0's: nothing is written there before both are found to see the same folder.
    """
    import jax

    told = peers.link.receive()
    if told is None:
        os._exit(LEFT_STATUS)
    for name, version in (("jaxresearch", jaxresearch.__version__), ("jax", jax.__version__)):
        if told[name] != version:
            raise JaxresearchError(f"process 0 has {name} {told[name]}, and this one {version}.", fix="Install alike.")
    settings = WorkerSettings.model_validate(told["settings"])
    wanted = settings.corpus_config.model_copy(update={"vocab_size": settings.vocab_size})
    say(prepare=wanted.model_dump(mode="json"))
    answer = json.loads(sys.stdin.readline() or "{}")
    if "folder" not in answer:
        raise JaxresearchError(answer.get("error", "this host's corpus was not prepared."))
    if Corpus.open(answer["folder"]).fingerprint != told["corpus"]:
        raise JaxresearchError(
            f"corpus.source: {settings.corpus_config.source!r} is another text here than on process 0.",
            fix="Give every host the same files, and for python-stdlib the same Python.",
        )
    folders = {"corpus": answer["folder"], "compilation_cache": answer["cache"], "programs": scratch}
    facts: dict[str, Any] = {name: Path(folder) for name, folder in folders.items()}
    return settings.model_copy(update=facts | {"memory_bytes": usable_memory_bytes()})


def watch_memory(settings: WorkerSettings, say: Callable[..., None]) -> None:
    """End this process, with the reason, before a program that it compiles takes all the memory of its machine."""
    end_outgrown(settings, lambda *, outgrown: say(error=f"out of memory: {outgrown}"))


def _requests(peers: Follower) -> queue.SimpleQueue[dict[str, Any] | None]:
    """What process 0 asks, in order; None at the end. Read beside the run: its loss must end one that waits for it."""
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        while True:
            message = peers.link.receive()
            if message is None:
                os._exit(LEFT_STATUS)
            if message["do"] == "end":
                return requests.put(None)
            requests.put(message)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _keep(root: Path, program: str, files: dict[str, str]) -> None:
    """Write a program's files. `load` checks them against its name."""
    folder = program_folder(root, program)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / Path(name).name).write_bytes(base64.b64decode(text))


if __name__ == "__main__":
    main()
