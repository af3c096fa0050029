"""Command lines that run a program inside a tier, for a candidate being traced and for the worker alike."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxresearch.errors import JaxresearchError
from jaxresearch.levels import Tier
from jaxresearch.sandbox.seccomp import system_call_filter

_LANDLOCK = Path(__file__).with_name("landlock.py")
_REAPER = Path(__file__).with_name("reaper.py")
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64")
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/ssl", "/etc/services")
_CARDS = ("bus/pci/devices", "class/net", "devices/pci*", "devices/virtual/net")
"""Below /sys: collectives of CPUs look there for the cards of this machine, and end where they may not."""
_LOADER_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"
"""glibc's malloc reads there whether it may ask for huge pages, and asks for none where it cannot."""
_KERNEL_FACTS = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system", _HUGE_PAGES)
_ACCELERATORS = ("nvidia*", "accel*", "vfio", "dri", "kfd", "dxg")


@dataclass(frozen=True)
class Box:
    """What a confined process is given of this machine; all else is absent or denied.

    readable, writable: paths, which it sees under their own names. placed: (path, name under which it sees that path,
    read-only); for bubblewrap alone. environment: all that it sees of one. scratch_bytes: of each folder in memory.
    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    placed: tuple[tuple[Path, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    scratch_bytes: int = 64 * 2**20
    accelerators: bool = False
    network: bool = False


@contextlib.contextmanager
def confined(tier: Tier, box: Box, command: Sequence[str]) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """`command` as this process, and no other, runs it in `tier`, and the descriptors that it must inherit at its start."""
    match tier:
        case "bubblewrap":
            with _filter_file(system_call_filter(processes=box.accelerators)) as filter_file:
                yield [*_bubblewrap(box, filter_file), *command], () if filter_file is None else (filter_file,)
        case "landlock":
            landlocked = _landlock(box, command)
            yield _reaped(landlocked) if box.accelerators else landlocked, ()
        case "subprocess":
            yield _reaped(command) if sys.platform == "linux" else [*command], ()


@contextlib.contextmanager
def _filter_file(program: bytes | None) -> Iterator[int | None]:
    """A descriptor to read the system-call filter from; None where there is no filter."""
    if program is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(program)
        file.seek(0)
        yield file.fileno()


def _bubblewrap(box: Box, filter_file: int | None) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise JaxresearchError("bwrap is not installed.", fix="Install the package bubblewrap.")
    command = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--share-net"] if box.network else []
    name = socket.gethostname() if box.network else "candidate"  # collectives look up the address of this name
    command += ["--cap-drop", "ALL", "--hostname", name, "--clearenv"]
    for name, value in box.environment.items():
        command += ["--setenv", name, value]
    if filter_file is not None:
        command += ["--seccomp", str(filter_file)]
    # For root, /proc/sys is its own to write, without any capability; and an unsized /dev/shm holds half the memory.
    command += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):
        command += ["--size", str(box.scratch_bytes), "--tmpfs", folder]
    for device in _devices(box):
        command += ["--dev-bind", str(device), str(device)]
    command += ["--remount-ro", "/dev", "--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    if box.accelerators and Path("/sys").is_dir():
        command += ["--ro-bind", "/sys", "/sys"]
    for path in (*_LOADER_FILES, _HUGE_PAGES, *(_NETWORK_FILES if box.network else ())):
        command += ["--ro-bind-try", path, path]
    for path in box.readable:
        command += ["--ro-bind", str(path), str(path)]
    for path, name in box.placed:
        command += ["--ro-bind", str(path), name]
    for path in box.writable:
        command += ["--bind", str(path), str(path)]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _landlock(box: Box, command: Sequence[str]) -> list[str]:
    program = system_call_filter(processes=box.accelerators, confined=True, network=box.network)
    if program is None:
        raise JaxresearchError("there is no system-call filter for this kind of processor.")
    system = [f"/{name}" for name in ("usr", *_SYSTEM)]
    readable = [*system, *_LOADER_FILES, *_KERNEL_FACTS]
    if box.network:
        readable += [*_NETWORK_FILES, *(str(path) for name in _CARDS for path in Path("/sys").glob(name))]
    readable += ["/sys", "/proc/driver", "/proc/devices"] if box.accelerators else []
    devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", *_devices(box)]
    wanted = {
        "readable": [*readable, *map(str, box.readable)],
        "writable": [*map(str, box.writable)],
        "devices": [*map(str, devices)],
        "network": box.network,
        # With accelerators a reaper stands between us, and ends what it has started.
        "parent": None if box.accelerators else os.getpid(),
        "filter": base64.b64encode(program).decode(),
        "command": [*command],
    }
    return [sys.executable, "-I", "-S", str(_LANDLOCK), json.dumps(wanted)]


def _reaped(command: Sequence[str]) -> list[str]:
    """`command` below a process that ends whatever it leaves behind, once it ends or when SIGTERM comes."""
    return [sys.executable, "-I", "-S", str(_REAPER), str(os.getpid()), *command]


def _devices(box: Box) -> list[Path]:
    """Nodes of this machine's accelerators, and the memory files that their libraries share."""
    return sorted(path for name in _ACCELERATORS for path in Path("/dev").glob(name)) if box.accelerators else []


def installation(*modules: str) -> list[Path]:
    """Folders that the running Python needs, and the packages `modules`; outermost only, those under /usr left out."""
    folders = {str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    folders |= {sys.prefix, str(Path(sys.executable).resolve().parent.parent)}
    if modules:  # which are not started with -I, and may need the user's own packages
        folders |= {p for p in sys.path if p and _holds_packages(Path(p))}
        folders |= {folder for name in modules for folder in _folder_of(name)}
    kept = [f for f in folders if f != "/usr" and not f.startswith("/usr/")]
    return [Path(f) for f in sorted(f for f in kept if not any(f != g and f.startswith(g + "/") for g in kept))]


def _holds_packages(folder: Path) -> bool:
    """Whether packages were installed there, as by pip, with --target too; a folder of somebody's own code is not it."""
    named = folder.name in ("site-packages", "dist-packages") and folder.is_dir()
    return named or next(folder.glob("*.dist-info"), None) is not None


def _folder_of(package: str) -> list[str]:
    """Its own folder, not the one that it lies in: a clone holds more than its packages."""
    found = importlib.util.find_spec(package)
    return [str(Path(found.origin).parent)] if found is not None and found.origin is not None else []
