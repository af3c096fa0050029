"""--coordinator, --processes and --process-id: one command, started on several hosts."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable
from typing import Any

import click

from jaxresearch.cli.app import INTERRUPTED
from jaxresearch.cli.common import Output
from jaxresearch.execution.hosts import JOIN_SECONDS, Hosts, find_hosts, hosts_here, placed


def hosts_options(command: Callable) -> Callable:
    """For a command that trains: process 0 does it, the others follow. Goes below output_options."""

    @place_options
    @functools.wraps(command)
    def wrapper(*args: Any, output: Output, **kwargs: Any) -> Any:
        hosts = hosts_here()
        if hosts is not None and hosts.process_id > 0:
            return _follow(hosts, output)
        return command(*args, output=output, **kwargs)

    return wrapper


def place_options(command: Callable) -> Callable:
    """The options alone: the command runs on every host, and finds its place in `hosts_here()`."""

    @click.option(
        "--coordinator",
        metavar="HOST:PORT",
        envvar="JAXRESEARCH_COORDINATOR",
        help="Of process 0, with a free port. Slurm and TPU pods need none of these options.",
    )
    @click.option(
        "--processes",
        type=click.IntRange(1),
        envvar="JAXRESEARCH_PROCESSES",
        help="How many hosts run this very command; 1: this one alone.",
    )
    @click.option(
        "--process-id", type=click.IntRange(0), envvar="JAXRESEARCH_PROCESS_ID", help="Which of them this is."
    )
    @click.option(
        "--join-seconds",
        type=click.IntRange(1),
        default=JOIN_SECONDS,
        show_default=True,
        help="How long hosts wait for each other.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        coordinator: str | None,
        processes: int | None,
        process_id: int | None,
        join_seconds: int,
        **kwargs: Any,
    ) -> Any:
        with placed(find_hosts(coordinator, processes, process_id, join_seconds=join_seconds)):
            return command(*args, **kwargs)

    return wrapper


def _follow(hosts: Hosts, output: Output) -> int:
    """Follow process 0. Once it was found, the first SIGINT or SIGTERM is left to it: the run at hand may be finished."""
    from jaxresearch.cli.live import Display
    from jaxresearch.execution.follow import follow

    me = f"process {hosts.process_id} of {hosts.processes}"
    output.note(f"{me}: following process 0")
    interrupted = joined = False

    def join() -> None:
        nonlocal joined
        joined = True

    async def attend() -> None:
        nonlocal interrupted
        task, loop, signals = asyncio.current_task(), asyncio.get_running_loop(), 0

        def stop() -> None:
            nonlocal signals, interrupted
            signals += 1
            if signals == 1 and joined:
                output.note(f"{me}: process 0 decides when to stop; once more to leave it now")
            elif task is not None:
                interrupted = True
                task.cancel()

        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, stop)
        with Display(output) as display:
            await follow(hosts, display.preparing, lambda text: output.note(f"{me}: {text}"), join)

    try:
        asyncio.run(attend())
    except asyncio.CancelledError:
        if not interrupted:
            raise
        return INTERRUPTED
    output.note(f"{me}: process 0 is done")
    output.result({"process_id": hosts.process_id, "processes": hosts.processes, "done": True}, lambda _: None)
    return 0
