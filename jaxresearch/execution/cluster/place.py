"""Place: the driver's end of one keeper. It brings the keeper what it needs, hands it runs, and notices its death."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxresearch.data import Corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.base import ExecutorLostError, RunProgress, RunRequest
from jaxresearch.execution.cluster.connection import Cluster, answer, pending
from jaxresearch.execution.cluster.keeper import code_fingerprint
from jaxresearch.text import one_line

_POLL_SECONDS = 0.5
_SILENCE_SECONDS = 30.0
"""After which a keeper that does not answer is taken for lost."""
_START_SECONDS = 900.0
"""For a worker's start on a node, packing of the validation rows included."""
_TRANSFER_SECONDS = 600.0
_PIECE_BYTES = 32 * 2**20


class PlaceLostError(JaxresearchError):
    """The keeper or its node is gone, or failed. No word on the program."""


class Place:
    """One keeper, started and supplied by `prepare`. `facts` are its worker's."""

    def __init__(self, cluster: Cluster, keeper: Any, corpus: Corpus) -> None:
        self._cluster, self._keeper, self._corpus = cluster, keeper, corpus
        self.node = ""
        self.facts: dict[str, Any] = {}

    def arrival(self) -> asyncio.Future[dict[str, str]]:
        """Done when the keeper has found a node; then it says where it is, and what runs there."""
        return pending(self._keeper.hello.remote())

    async def prepare(self, hello: dict[str, str]) -> None:
        """Check that the node runs what we run, bring it the corpus, and start its worker.

        Raises `ExecutorLostError` for a node that can never do, `PlaceLostError` for one that is gone.
        """
        self.node = hello["node"]
        ours = {
            "jaxresearch": code_fingerprint(),
            "Python": ".".join(map(str, sys.version_info[:2])),
            "jax": jax.__version__,
        }
        theirs = {"jaxresearch": hello["code"], "Python": hello["python"], "jax": hello["jax"]}
        other = [name for name, version in ours.items() if theirs[name] != version]
        if other:
            raise ExecutorLostError(
                f"{self.node} has another {' and another '.join(other)} than the driver.",
                fix="Install the same version on every node.",
            )
        await self._bring_corpus(sealed=False)
        facts = await self._ask(self._keeper.facts.remote(), _START_SECONDS)
        if "lost" in facts:
            raise JaxresearchError(f"on {self.node}: {facts['lost']}")
        self.facts = facts

    async def answers(self) -> bool:
        """Whether the keeper is alive."""
        try:
            await answer(self._keeper.progress.remote(), _SILENCE_SECONDS)
        except Exception:
            return False
        return True

    async def run(
        self,
        request: RunRequest,
        program: Any,
        reference: Sequence[Any],
        on_progress: Callable[[RunProgress], None],
    ) -> dict[str, Any]:
        """What `Keeper.run` returns. Raises `PlaceLostError`."""
        if request.split == "test":
            await self._bring_corpus(sealed=True)
        # in lists, so that Ray hands over the references and the keeper fetches what it lacks
        asked = self._keeper.run.remote(request.model_dump(mode="json"), [program], list(reference))
        result = pending(asked)
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            await asyncio.wait({result}, timeout=_POLL_SECONDS)
            if result.done():
                return await self._ask(result, _SILENCE_SECONDS)
            try:
                progress = await answer(self._keeper.progress.remote(), _SILENCE_SECONDS)
            except Exception as error:
                if loop.time() - heard > _SILENCE_SECONDS:
                    raise PlaceLostError(self._why(error)) from None
                continue
            heard = loop.time()
            if progress is not None:
                on_progress(RunProgress(**progress))

    async def close(self) -> None:
        """Let the keeper tidy up, then end it."""
        with contextlib.suppress(Exception):  # it is gone, or is ended the hard way now
            await answer(self._keeper.close.remote(), 10.0)
        self.kill()

    def kill(self) -> None:
        """End the keeper and its worker, whatever they do."""
        self._cluster.kill(self._keeper)

    async def _bring_corpus(self, *, sealed: bool) -> None:
        while (missing := await self._ask(self._keeper.lacks.remote(sealed=sealed))) is None:
            await asyncio.sleep(_POLL_SECONDS)
        for name in missing:
            path = self._corpus.folder / name
            with path.open("rb") as file:
                size, offset = path.stat().st_size, 0
                while True:
                    piece = await asyncio.to_thread(file.read, _PIECE_BYTES)
                    last = offset + len(piece) >= size
                    await self._ask(self._keeper.receive.remote(name, offset, piece, last=last))
                    offset += len(piece)
                    if last:
                        break
        await self._ask(self._keeper.received.remote())

    async def _ask(self, reference: Any, seconds: float = _TRANSFER_SECONDS) -> Any:
        try:
            if isinstance(reference, asyncio.Future):
                return await reference
            return await answer(reference, seconds)
        except Exception as error:  # Ray's, or what the keeper raised
            raise PlaceLostError(self._why(error)) from None

    def _why(self, error: Exception) -> str:
        where = f"the keeper on {self.node}" if self.node else "a keeper"
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        said = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        return f"{where} was lost: {type(error).__name__}: {one_line(said, 300)}"
