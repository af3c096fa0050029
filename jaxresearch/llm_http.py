"""How a provider's answers are read: no more of one than `LONGEST_BODY_BYTES`, counted when they are unpacked.

A few kilobytes of gzip hold gigabytes of zeros, and a time limit alone lets as many into memory as fit in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
from pydantic_ai.models import create_async_httpx2_client

LONGEST_BODY_BYTES = 32_000_000
"""Far above the longest reply that is taken, so that what a reply of a few megabytes cost can still be read."""


class LongBodyError(Exception):
    """An answer was longer than `LONGEST_BODY_BYTES`. The SDK of a provider wraps it in errors of its own."""


def bounded_client() -> httpx2.AsyncClient:
    """pydantic-ai's own client, which gives up on an answer that is too long.

    It keeps no idle connection, so it may serve one event loop after another, and nothing is left to close.
    """
    client = create_async_httpx2_client(limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=0))
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _bound]}
    return client


def long_body(error: BaseException) -> LongBodyError | None:
    """The `LongBodyError` that `error` was made of."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LongBodyError):
        seen = seen.__cause__ or seen.__context__
    return seen


async def _bound(answer: httpx2.Response) -> None:
    """Called with the head of an answer: puts a counted stream of unpacked bytes in the place of its body."""
    packed = httpx2.Response(answer.status_code, headers=answer.headers, stream=answer.stream)
    answer.headers.pop("Content-Encoding", None)
    answer.stream = _Unpacked(packed)


class _Unpacked(httpx2.AsyncByteStream):
    def __init__(self, packed: httpx2.Response) -> None:
        self._packed = packed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for some in self._packed.aiter_bytes():
            total += len(some)
            if total > LONGEST_BODY_BYTES:
                raise LongBodyError(f"the answer has more than {LONGEST_BODY_BYTES} bytes")
            yield some

    async def aclose(self) -> None:
        await self._packed.aclose()
