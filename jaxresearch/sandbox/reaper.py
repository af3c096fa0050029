"""Runs AROUND a program of the weak tier: whatever the program started ends when it ends, or when we are told to.

A process that makes a session of its own leaves its group, and is ours again as a subreaper when its parents have ended.
`python -I -S reaper.py PARENT COMMAND ...`; it does nothing unless process PARENT has started it and is still there. Linux
only. Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("whoever wanted it ended before it began")  # and no signal will come any more
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        try:
            os.execv(sys.argv[2], sys.argv[2:])
        finally:
            os._exit(127)
    for descriptor in (0, 1, 2):
        os.close(descriptor)  # the ends of the pipes belong to the program alone
    status = _wait_for(program)
    _end_children()
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _wait_for(program: int) -> int:
    """The status of the program, or of its end by us when SIGTERM comes first."""
    while True:
        told = signal.sigwait({signal.SIGTERM, signal.SIGCHLD})
        if told == signal.SIGTERM:
            return signal.SIGKILL
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return signal.SIGKILL
            if ended == program:
                return status
            if ended == 0:
                break


def _end_children() -> None:
    """Kill children until there are none: the orphans of each one become our children in turn."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


if __name__ == "__main__":
    main()
