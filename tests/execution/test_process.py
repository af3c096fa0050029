"""The driver's end of a worker, with a process in its place that says just what a test wants."""

from __future__ import annotations

import asyncio
import sys
import tempfile

import pytest

from jaxresearch.execution.process import WorkerDiedError, WorkerProcess


async def asked(script: str) -> dict[str, object]:
    """What a worker answers that is `script`."""
    pipe = asyncio.subprocess.PIPE
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdin=pipe, stdout=pipe, stderr=log, start_new_session=True
        )
        worker = WorkerProcess(process, log, {}, reaped=False)
        try:
            return await worker.ask("run", {}, limits={"compile": 60.0}, first_stage="compile")
        finally:
            await worker.kill()


def test_an_answer_is_a_whole_line():
    assert asyncio.run(asked("""input(); print('{"result": {"val_bpb": 1.5}}')""")) == {"val_bpb": 1.5}


def test_a_worker_that_dies_in_the_middle_of_its_answer_has_died():
    script = (
        """import os, signal; print('{"result": {"val_', end='', flush=True); os.kill(os.getpid(), signal.SIGKILL)"""
    )
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL") as died:
        asyncio.run(asked(script))
    assert died.value.killed
