"""One way to a model only: whole replies, by `request`.

A `WrapperModel` hands every other method of pydantic-ai's on to what it wraps: streams, batches, the counting of tokens,
compaction. Those would pass by the ledger, the caps and the ladder, and replay could not give them again. Here a stream
is a whole reply, handed over in pieces, and the others are not there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings


class WholeModel(Model):
    """Streams what its own `request` gives, and asks nobody in any other way."""

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        del run_context
        reply = await self.request(messages, model_settings, model_request_parameters)
        yield CompletedStreamedResponse(reply, model_request_parameters=model_request_parameters, replay_events=True)

    @property
    def batch_max_requests(self) -> int | None:
        """None: no batches."""
        return None

    batch_encode = Model.batch_encode
    batch_create = Model.batch_create
    batch_status = Model.batch_status
    batch_results = Model.batch_results
    batch_cancel = Model.batch_cancel
    compact_messages = Model.compact_messages
    count_tokens = Model.count_tokens


class WholeWrapperModel(WholeModel, WrapperModel):
    """A wrapper that hands on `request` alone."""
