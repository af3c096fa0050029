"""The live dashboard: read-only pages over the studies of a folder, kept up to date by server-sent events.

It answers GET alone, changes nothing, and starts nothing. On loopback it asks for no token but checks the Host header,
so that a web page elsewhere cannot reach it by a name of its own; at any other address every request needs the token.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxresearch.errors import JaxresearchError
from jaxresearch.report.page import json_block, render_live, render_tournament
from jaxresearch.report.watch import WatchedStudy, Watcher
from jaxresearch.text import one_line
from jaxresearch.tournament.results import results
from jaxresearch.tournament.tournament import Tournament

POLL_SECONDS = 1.0
LIST_POLL_SECONDS = 3.0
KEEP_ALIVE_SECONDS = 15.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "jaxresearch_token"

T = TypeVar("T")


class Dashboard:
    """The pages and events. All reading happens on one thread, which owns the ledgers' connections."""

    def __init__(self, folder: Path, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._watcher = Watcher(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="studies")
        self._poll_seconds = poll_seconds
        self.stopping = asyncio.Event()

    async def index(self, request: Request) -> Response:
        cards = list((await self._read(self._cards)).values())
        folder = one_line(str(self._watcher.folder), 300)
        tournaments = [
            {"name": one_line(name), "href": f"/tournaments/{quote(name)}"} for name in await self._tournaments()
        ]
        data = {"kind": "index", "home": "/", "folder": folder, "studies": cards, "tournaments": tournaments}
        return HTMLResponse(render_live(data, title="Studies"))

    async def study(self, request: Request) -> Response:
        name = request.path_params["name"]
        page = await self._of(name, lambda study: study.page())
        if page is None:
            return PlainTextResponse("There is no study of that name.", 404)
        data = {**page, "home": "/", "base": f"/api/{quote(name, safe='')}"}
        return HTMLResponse(render_live(data, title=one_line(name)))

    async def tournament(self, request: Request) -> Response:
        folder = (await self._tournaments()).get(request.path_params["name"])
        if folder is None:
            return PlainTextResponse("There is no tournament of that name.", 404)
        facts = await self._read(lambda: results(Tournament.open(folder)))
        return HTMLResponse(render_tournament(facts, live=True))

    async def _tournaments(self) -> dict[str, Path]:
        return await self._read(self._watcher.tournaments)

    async def experiment(self, request: Request) -> Response:
        number = request.path_params["number"]
        found = await self._of(request.path_params["name"], lambda study: study.experiment(number))
        return _json(found) if found is not None else JSONResponse({"error": "no such experiment"}, 404)

    async def study_events(self, request: Request) -> Response:
        name = request.path_params["name"]
        after = _number(request.headers.get("last-event-id")) or _number(request.query_params.get("after")) or 0
        begun = request.query_params.get("begun")
        if await self._of(name, lambda study: study.seq) is None:
            return JSONResponse({"error": "no such study"}, 404)

        async def changes() -> AsyncIterator[tuple[str, dict[str, Any], int]]:
            seen, running = after, None
            while not self.stopping.is_set():
                try:
                    found = await self._of(name, partial(_since, seen, begun))
                    now = await self._of(name, lambda study: study.running())
                except JaxresearchError as error:
                    yield "trouble", {"error": one_line(str(error), 300)}, seen
                    found = now = None
                if found is not None:
                    kind, data, seen = found
                    yield kind, data, seen
                if now is not None and now != running:
                    running = now
                    yield "running", {"running": now}, seen
                await self._sleep(self._poll_seconds)

        return _stream(changes(), self.stopping)

    async def index_events(self, request: Request) -> Response:
        async def changes() -> AsyncIterator[tuple[str, dict[str, Any], int]]:
            shown: dict[str, dict[str, Any]] | None = None
            count = 0
            while not self.stopping.is_set():
                cards = await self._read(self._cards)
                if cards != shown:
                    changed = [card for href, card in cards.items() if shown is None or card != shown.get(href)]
                    shown, count = cards, count + 1
                    yield "news", {"order": list(cards), "changed": changed}, count
                # One at a time: between two of them others get their pages.
                if await self._read(self._watcher.read_another):
                    continue
                await self._sleep(max(self._poll_seconds, min(LIST_POLL_SECONDS, 3 * self._poll_seconds)))

        return _stream(changes(), self.stopping)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/events", self.index_events, methods=["GET"]),
            Route("/studies/{name:path}", self.study, methods=["GET"]),
            Route("/tournaments/{name:path}", self.tournament, methods=["GET"]),
            Route("/api/{name:path}/events", self.study_events, methods=["GET"]),
            Route("/api/{name:path}/experiments/{number:int}", self.experiment, methods=["GET"]),
        ]

    def _cards(self) -> dict[str, dict[str, Any]]:
        """By the address of the study's page."""
        cards = {f"/studies/{quote(name)}": card for name, card in self._watcher.cards().items()}
        return {href: {**card, "href": href} for href, card in cards.items()}

    async def _of(self, name: str, look: Callable[[WatchedStudy], T]) -> T | None:
        def read() -> T | None:
            study = self._watcher.study(name)
            return None if study is None else look(study)

        return await self._read(read)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return

    def close(self) -> None:
        self._thread.submit(self._watcher.close)
        self._thread.shutdown(cancel_futures=False)


def make_app(
    folder: Path, *, token: str | None = None, hosts: tuple[str, ...] = LOOPBACK, poll_seconds: float = POLL_SECONDS
) -> Starlette:
    """The application over the studies under `folder`.

    token: asked of every request; None asks for none, and then only requests to one of `hosts` are answered.
    """
    dashboard = Dashboard(folder, poll_seconds=poll_seconds)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        dashboard.stopping.set()
        dashboard.close()

    async def trouble(request: Request, error: Exception) -> Response:
        return PlainTextResponse(one_line(str(error), 400), 500)

    app = Starlette(
        routes=dashboard.routes(),
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={JaxresearchError: trouble},
        lifespan=lifespan,
    )
    app.state.stopping = dashboard.stopping
    return app


class Guard:
    """Answers only who may ask, and puts the headers on that keep a page to itself."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: tuple[str, ...]) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            if _host(request.headers.get("host", "")) in self._hosts:
                return None
            return PlainTextResponse("This dashboard answers on its own address only.", 403)
        given = request.query_params.get("token")
        if given is not None and self._equal(given):
            answer = RedirectResponse(quote(request.url.path) or "/", 303)
            answer.set_cookie(
                COOKIE, self._token, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._equal(request.cookies.get(COOKIE, "")) or self._equal(bearer):
            return None
        return PlainTextResponse("A token is needed: open the address that `jaxresearch serve` printed.", 401)

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (b"x-content-type-options", b"nosniff"),
                (b"x-frame-options", b"DENY"),
                (b"referrer-policy", b"no-referrer"),
                (b"cross-origin-resource-policy", b"same-origin"),
                (b"cache-control", b"no-store"),
            ]
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return wrapped


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.rsplit(":", 1)[0] if header.rsplit(":", 1)[-1].isdigit() else header
    return name.strip("[]").lower()


def _since(seen: int, begun: str | None, study: WatchedStudy) -> tuple[str, dict[str, Any], int] | None:
    """What to tell of a study of which all up to event `seen` is known; None when there is nothing.

    begun: of the study that is known, as far as the asker said; where another lies in its place, the page must start anew.
    """
    if begun is not None and begun != study.begun:
        return "another", {}, 0
    return ("news", study.news(seen), study.seq) if study.seq > seen else None


def _stream(changes: AsyncIterator[tuple[str, dict[str, Any], int]], stopping: asyncio.Event) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        following: asyncio.Task | None = None
        try:
            while not stopping.is_set():
                following = following or asyncio.ensure_future(anext(changes))
                done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield ": still here\n\n"
                    continue
                try:
                    kind, data, at = following.result()
                except StopAsyncIteration:
                    return
                finally:
                    following = None
                yield f"id: {at}\nevent: {kind}\ndata: {json_block(data)}\n\n"
        finally:
            if following is not None:
                following.cancel()

    return StreamingResponse(body(), media_type="text/event-stream")


def _json(data: dict[str, Any]) -> Response:
    return Response(json_block(data), media_type="application/json")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None
