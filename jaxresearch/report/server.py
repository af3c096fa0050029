"""The dashboard's server: uvicorn, ending its event streams first so that one Ctrl-C is enough."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from jaxresearch.report.dashboard import LOOPBACK, POLL_SECONDS, make_app


class DashboardServer(uvicorn.Server):
    """Serves the studies under `folder` until SIGINT or SIGTERM. `on_started` is told the port once it answers."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_started: Callable[[int], None] = lambda port: None,
    ) -> None:
        self._app = make_app(folder, token=token, hosts=(*LOOPBACK, host.lower()), poll_seconds=poll_seconds)
        self._on_started = on_started
        options = {"log_level": "error", "access_log": False, "server_header": False, "loop": "asyncio"}
        super().__init__(uvicorn.Config(self._app, host=host, port=port, timeout_graceful_shutdown=2, **options))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_started(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.stopping.set()
        await super().shutdown(sockets=sockets)
