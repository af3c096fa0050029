"""A disk that fills up: a small file system in memory where one may be mounted, else a limit on the size of files."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.lives import Arena, FaultError, lead
from tests.faults.points import Points

_DISK_BYTES = 16 * 2**20
WRITES = {
    "create.ledger.before": "ledger, new",
    "create.workspace.before": "workspace, new",
    "open.after": "lock and write-ahead log",
    "append.before": "ledger",
    "append.uncommitted": "ledger, in the middle",
    "commit.before": "workspace",
    "incumbent.before": "workspace's branch",
    "program.before": "program store",
    "run.training": "checkpoint",
    "seal.before": "seal of a checkpoint",
}
"""Where the disk becomes full, and what is written there next."""


class Disk:
    """`folder` is on it; `fill` leaves no room, `clear` gives it back. `real`: a file system of its own."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "disk"
        self.folder.mkdir()
        self._ballast = self.folder / "ballast"
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(self.folder)]
        try:
            self.real = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            self.real = False

    def fill(self) -> None:
        """In the process that is to meet the full disk."""
        if not self.real:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        descriptor = os.open(self._ballast, os.O_CREAT | os.O_WRONLY)
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while os.write(descriptor, b"\0" * size):
                    pass
        os.close(descriptor)

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[Disk]:
    disk = Disk(root)
    try:
        yield disk
    finally:
        disk.unmount()


def filled_at(arena: Arena, disk: Disk, name: str) -> str:
    """A study whose disk is full at point `name`, then is not: it ends as it should. The line that it stopped with."""
    folder = disk.folder / f"study-{name}"
    life = lead(folder, Points(name, arena.random.randint(1, arena.passed[name]), disk.fill))
    disk.clear()
    what = f"disk full at {name} ({WRITES[name]})"
    if life.killed:
        raise FaultError(f"{what}: the driver died")
    if life.result is None:
        _check_line(life.error, what)
        if folder.exists():
            (folder / "ballast").unlink(missing_ok=True)
        life_after = lead(folder)
        arena.judge(life_after, what)
    else:
        arena.judge(life, what)
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    return life.error


def _check_line(line: str, what: str) -> None:
    known = any(word in line for word in ("full", "space", "too large", "limit", "cannot be", "disk"))
    if not line or "\n" in line or not known:
        raise FaultError(f"{what}: not one clear line: {line!r}")


def all_writes(arena: Arena, root: Path, tell: Callable[[str], None], names: list[str] | None = None) -> int:
    """Every kind of write meets a full disk; how many did."""
    with small_disk(root) as disk:
        for name in names or WRITES:
            line = filled_at(arena, disk, name)
            tell(f"disk full at {name}: {line or 'went on'}")
    return len(names or WRITES)
