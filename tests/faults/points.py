"""Named points in the life of a driver, at which something can be made to happen.

They are put around functions of the laboratory, by name, in the process that the harness started. Production code knows
nothing of them.
"""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

Action = Callable[[], None]

AROUND = {
    "create.ledger": "study.ledger:Ledger.create",
    "create.workspace": "study.workspace:Workspace.create",
    "create.folder": "study.study:create_folder",
    "open": "study.study:Study.open",
    "lock.sign": "study.lock:_sign",
    "append": "study.ledger:Ledger.append",
    "record": "study.journal:Journal.record",
    "commit": "study.workspace:Workspace.commit",
    "incumbent": "study.workspace:Workspace.set_incumbent",
    "stale-locks": "study.workspace:Workspace.clear_stale_locks",
    "ask": "study.driver:Driver._ask",
    "model": "llm_wrappers:RecordingModel.request",
    "check": "study.view:Checker.check",
    "trace": "study.driver:trace_once",
    "run": "study.driver:attempt",
    "program": "::program",
    "seal": "training.seal:write_seal",
    "prune": "study.shelf:Shelf.prune",
}
"""Each gives two points, NAME.before and NAME.after. `::program` is the executor's store, see `study.py`."""

WITHIN = ("append.uncommitted", "commit.half", "incumbent.locked", "run.training", "clear.half")
"""Points in the middle of things."""

POINTS = (*(f"{name}.{side}" for name in AROUND for side in ("before", "after")), *WITHIN)


class Points:
    """Counts how often each point is passed, and does `action` at the `nth` passing of `name`."""

    def __init__(self, name: str = "", nth: int = 1, action: Action | None = None) -> None:
        self.passed: Counter[str] = Counter()
        self._name, self._nth, self._action = name, nth, action or kill_me

    def passing(self, name: str) -> None:
        self.passed[name] += 1
        if name == self._name and self.passed[name] == self._nth:
            self._action()

    def install(self) -> None:
        """Put the points into this process, for good."""
        for name, place in AROUND.items():
            if not place.startswith("::"):
                module, qualified = place.split(":")
                self._wrap(importlib.import_module(f"jaxresearch.{module}"), qualified, name)
        self._within_a_transaction()
        self._within_git()
        self._within_clearing()

    def _wrap(self, module: Any, qualified: str, name: str) -> None:
        *path, attribute = qualified.split(".")
        owner = module
        for each in path:
            owner = getattr(owner, each)
        static = inspect.getattr_static(owner, attribute)
        real = static.__func__ if isinstance(static, classmethod) else static
        wrapped = self._around(real, name)
        setattr(owner, attribute, classmethod(wrapped) if isinstance(static, classmethod) else wrapped)

    def _around(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(real):

            @wraps(real)
            async def later(*arguments: Any, **options: Any) -> Any:
                self.passing(f"{name}.before")
                result = await real(*arguments, **options)
                self.passing(f"{name}.after")
                return result

            return later

        @wraps(real)
        def now(*arguments: Any, **options: Any) -> Any:
            self.passing(f"{name}.before")
            result = real(*arguments, **options)
            self.passing(f"{name}.after")
            return result

        return now

    def _within_a_transaction(self) -> None:
        from jaxresearch.study.ledger import Ledger

        real = Ledger._transaction

        @contextmanager
        def transaction(ledger: Ledger) -> Iterator[None]:
            with real(ledger):
                yield
                self.passing("append.uncommitted")

        Ledger._transaction = transaction

    def _within_git(self) -> None:
        """A git that is killed with half of its input, or while it holds the lock of a branch."""
        from jaxresearch.study import workspace

        real = workspace.Workspace._git

        def git(space: workspace.Workspace, *arguments: str, stdin: bytes = b"") -> bytes:
            if arguments[0] == "fast-import" and self._next("commit.half"):
                command = ["git", *workspace._OPTIONS, *arguments]
                half = subprocess.Popen(command, cwd=space._folder, env=workspace._environment(), stdin=subprocess.PIPE)
                assert half.stdin is not None
                half.stdin.write(stdin[: len(stdin) // 2])
                half.stdin.flush()
                half.kill()
            if arguments[0] == "update-ref" and self._next("incumbent.locked"):
                (space._folder / "refs/heads/incumbent.lock").write_text("")
            self.passing({"fast-import": "commit.half", "update-ref": "incumbent.locked"}.get(arguments[0], "git"))
            return real(space, *arguments, stdin=stdin)

        workspace.Workspace._git = git

    def _within_clearing(self) -> None:
        from jaxresearch.training import seal

        real = seal.shutil.rmtree

        def rmtree(path: Any, **options: Any) -> None:
            self.passing("clear.half")  # the seal is gone, its folder is not
            real(path, **options)

        seal.shutil = type("Shutil", (), {"rmtree": staticmethod(rmtree)})

    def _next(self, name: str) -> bool:
        return self._name == name and self.passed[name] + 1 == self._nth


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
