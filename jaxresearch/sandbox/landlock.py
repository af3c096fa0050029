"""Runs BEFORE the isolated program, in its process: gives up rights by Landlock and seccomp, then becomes it.

`python -I -S landlock.py '{"readable": [...], "writable": [...], "devices": [...], "filter": "base64", "command": [...]}'`.
With "parent", a process, it does nothing unless that has started it and is still there.
Landlock is three system calls, which need no privilege and no namespace (https://docs.kernel.org/userspace-api/landlock.html).
Called directly, because the libraries at hand know files only, or bring a supervisor of their own. Standard library only.
"""

import base64
import ctypes
import json
import os
import signal
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE, _READ, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_NODES = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12
"""Making devices, sockets, pipes and symbolic links: nobody is given these."""
_TCP = 0b11
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2
_OLDEST = 3
"""Before Landlock's third version any file of the user could be truncated."""
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.c_char_p))


def main() -> None:
    wanted = json.loads(sys.argv[1])
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "end with the parent")
    if wanted.get("parent") not in (None, os.getppid()):
        sys.exit("whoever wanted it ended before it began")  # and no signal will come any more
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # root's alone to give up; what it has ends with exec
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    _restrict(wanted)
    _filter(base64.b64decode(wanted["filter"]))
    os.execv(wanted["command"][0], wanted["command"])


def abi_version() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION)))


def _restrict(wanted: dict) -> None:
    version = abi_version()
    if version < _OLDEST:
        sys.exit(f"Landlock's version {_OLDEST} (Linux 6.2) is needed, and this kernel has {version or 'none'}")
    handled = (1 << (16 if version >= 5 else 15)) - 1
    network = 0 if version < 4 or wanted.get("network") else _TCP
    scopes = 0 if version < 6 else _SIGNALS | (0 if wanted.get("network") else _ABSTRACT_SOCKETS)
    ruleset = _Ruleset(handled, network, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _check(_libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0), "make a ruleset")
    for path in wanted["readable"]:
        _allow(rules, path, handled & (_EXECUTE | _READ | _READ_DIR))
    for path in wanted["writable"]:
        _allow(rules, path, handled & ~(_NODES | _EXECUTE | _IOCTL))
    for path in wanted["devices"]:
        _allow(rules, path, handled & (_READ | _READ_DIR | _WRITE | _IOCTL))
    _check(_libc.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0)), "restrict itself")
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    """Rights below a folder, or of one file. A path that is not there gives none."""
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(rights if os.path.isdir(path) else rights & _OF_FILES, parent)
        _check(_libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0), f"allow {path}")
    finally:
        os.close(parent)


def _filter(program: bytes) -> None:
    filtering = _Program(len(program) // 8, program)
    done = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filtering), 0, 0)
    _check(done, "filter system calls")


def _check(result: int, what: str) -> int:
    if result < 0:
        sys.exit(f"it cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main()
