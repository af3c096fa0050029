"""A system-call filter for the isolated process.

Denied: new processes (threads are fine), memory that RLIMIT_AS does not count, kernel keys, tracing, mounts; and changes
of mode or owner, since root inside owns the device nodes that it shares with the host.

Written by hand as classic BPF so that no library is needed: Linux on x86-64 and aarch64 only. What is denied fails with
EPERM; `clone3` fails with ENOSYS, so that the C library falls back to `clone`, whose flags a filter can read.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _MACHINE_OFFSET, _FLAGS_OFFSET = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_CLONE3 = 435

_COMMON = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "memfd_secret": 447,
    "fchmodat2": 452, "setxattrat": 463,
}  # fmt: skip
_MACHINES = {
    "x86_64": (0xC000003E, 56, _COMMON | {
        "fork": 57, "vfork": 58, "shmget": 29, "msgget": 68, "ptrace": 101, "pivot_root": 155, "mount": 165,
        "umount2": 166, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319, "bpf": 321,
        "userfaultfd": 323, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94,
        "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    }),
    "aarch64": (0xC00000B7, 220, _COMMON | {
        "shmget": 194, "msgget": 186, "ptrace": 117, "pivot_root": 41, "mount": 40, "umount2": 39, "add_key": 217,
        "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "memfd_create": 279, "bpf": 280, "userfaultfd": 282,
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7,
    }),
}  # fmt: skip


def system_call_filter() -> bytes | None:
    """The program for this machine, as `bwrap --seccomp` reads it; None where there is none."""
    if platform.machine() not in _MACHINES:
        return None
    machine, clone, denied = _MACHINES[platform.machine()]
    fail = _FAIL | errno.EPERM
    program = [
        (_LOAD, 0, 0, _MACHINE_OFFSET),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, fail),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    for number in sorted(denied.values()):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, fail)]
    program += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FLAGS_OFFSET),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, fail),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
