"""System-call filters for isolated processes, written by hand as classic BPF: Linux on x86-64 and aarch64 only.

Denied to everyone: memory that RLIMIT_AS does not count, kernel keys, tracing, mounts, and changes of mode or owner,
since root inside owns the device nodes that it shares with the host. New processes are denied unless asked for (threads
are fine). Where no namespace holds a process, `confined` denies what Landlock leaves open: sockets, signals, other
processes' limits and schedules, shared memory of the host, times and flags of files, news of them.

What is denied fails with EPERM; `clone3` fails with ENOSYS, so that the C library falls back to `clone`, whose flags a
filter can read.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _MACHINE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_CLONE3 = 435

_COMMON = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "memfd_secret": 447,
    "fchmodat2": 452, "setxattrat": 463, "open_tree_attr": 467, "file_setattr": 469,
}  # fmt: skip
_CONFINED_COMMON = {
    "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "process_mrelease": 448,
    "removexattrat": 466,
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
_CONFINED = {
    "x86_64": _CONFINED_COMMON | {
        "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setpriority": 141,
        "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "ioprio_set": 251,
        "migrate_pages": 256, "move_pages": 279, "kcmp": 312, "open_by_handle_at": 304, "inotify_add_watch": 254,
        "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220, "msgsnd": 69,
        "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241, "utime": 132, "utimes": 235, "futimesat": 261,
        "utimensat": 280, "chroot": 161, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
        "fanotify_init": 300,
    },
    "aarch64": _CONFINED_COMMON | {
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "setpriority": 140,
        "sched_setparam": 118, "sched_setscheduler": 119, "sched_setattr": 274, "ioprio_set": 30,
        "migrate_pages": 238, "move_pages": 239, "kcmp": 272, "open_by_handle_at": 265, "inotify_add_watch": 27,
        "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192, "msgsnd": 189,
        "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181, "utimensat": 88, "chroot": 51,
        "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "fanotify_init": 262,
    },
}  # fmt: skip
_SOCKETS = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
        "socketpair": 53, "accept4": 288, "sendmmsg": 307,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "accept": 202, "sendto": 206, "sendmsg": 211, "bind": 200, "listen": 201,
        "socketpair": 199, "accept4": 242, "sendmmsg": 269,
    },
}  # fmt: skip
_UNIX, _STREAM, _TYPE_BITS = 1, 1, 0xF
_FAMILIES = (_UNIX, 2, 10, 16)
"""Kinds of sockets that a network namespace holds: UNIX, IPv4, IPv6, netlink. It does not hold those to the host of a
virtual machine (vsock), for one."""
_ON_ITSELF = {
    "x86_64": {"prlimit64": 302, "sched_setaffinity": 203},
    "aarch64": {"prlimit64": 261, "sched_setaffinity": 122},
}
"""Calls whose first argument is a process, where 0 is the caller: nothing else is allowed."""
_FCNTL, _IOCTL = {"x86_64": 72, "aarch64": 25}, {"x86_64": 16, "aarch64": 29}
_DENIED_FCNTLS = (8, 10, 15)
"""They make the kernel send signals to another process: F_SETOWN, F_SETSIG, F_SETOWN_EX."""
_DENIED_IOCTLS = (
    *(0x8901, 0x8902, 0x5412, 0x541C),
    *(0x40086602, 0x40046602, 0x401C5820, 0x40087602, 0x40047602, 0x40806685, 0x800C6613),
)
"""The same (FIOSETOWN, SIOCSPGRP), typing into a terminal (TIOCSTI, TIOCLINUX), and what the owner of a file may do to it
that was opened to be read: flags and versions (FS_IOC_SETFLAGS, FSSETXATTR, SETVERSION), making it unchangeable or
encrypted (FS_IOC_ENABLE_VERITY, SET_ENCRYPTION_POLICY)."""
_ALLOWED_IOCTLS = (0x5401, 0x802C542A, 0x5413, 0x5450, 0x5451, 0x5421, 0x541B)
"""Without network and accelerators: is it a terminal (TCGETS, TCGETS2, TIOCGWINSZ), is it passed on, does it wait, and how
much is there to read (FIONCLEX, FIOCLEX, FIONBIO, FIONREAD). File systems have others of their own, which change files."""
_OF_PROCESSES = ("fork", "vfork", "memfd_create", "shmget")


def system_call_filter(*, processes: bool = False, confined: bool = False, network: bool = False) -> bytes | None:
    """The program for this machine, as `bwrap --seccomp` and prctl read it; None where there is none.

    processes: new processes are allowed, and memory that they share (accelerators' libraries need both).
    confined: no namespaces hold this process; of sockets it has pairs of streams. network: then leave it all its sockets.
    """
    name = platform.machine()
    if name not in _MACHINES:
        return None
    machine, clone, table = _MACHINES[name]
    denied = {number for call, number in table.items() if not (processes and call in _OF_PROCESSES)}
    if confined:
        denied |= set(_CONFINED[name].values())
    if confined and not network:
        denied |= {number for call, number in _SOCKETS[name].items() if call not in ("socketpair", "sendto")}
    fail = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    program = [
        (_LOAD, 0, 0, _MACHINE_OFFSET),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, 0, 1, _X32),
        fail,
    ]
    if not processes:
        program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    for number in sorted(denied):
        program += [(_EQUAL, 0, 1, number), fail]
    if not confined or network:
        families = [(_EQUAL, len(_FAMILIES) - index, 0, family) for index, family in enumerate(_FAMILIES)]
        socket = _SOCKETS[name]["socket"]
        program += [
            (_EQUAL, 0, len(families) + 3, socket),
            _argument(0),
            *families,
            fail,
            (_LOAD, 0, 0, _NUMBER_OFFSET),
        ]
    if confined and not network:
        # A pair of streams ends in this process, and an event loop wakes itself through one: orbax has such a loop.
        program += [
            (_EQUAL, 0, 8, _SOCKETS[name]["socketpair"]),
            *(_argument(0), (_EQUAL, 1, 0, _UNIX), fail),
            *(_argument(1), (_AND, 0, 0, _TYPE_BITS), (_EQUAL, 1, 0, _STREAM), fail),
            (_LOAD, 0, 0, _NUMBER_OFFSET),
            (_EQUAL, 0, 7, _SOCKETS[name]["sendto"]),  # what send() is: without an address
            *(_argument(4), (_EQUAL, 1, 0, 0), fail, _argument(4, high=True), (_EQUAL, 1, 0, 0), fail),
            (_LOAD, 0, 0, _NUMBER_OFFSET),
        ]
    if confined:
        for number in _ON_ITSELF[name].values():
            program += [(_EQUAL, 0, 4, number), _argument(0), (_EQUAL, 1, 0, 0), fail, (_LOAD, 0, 0, _NUMBER_OFFSET)]
        program += _commands(_FCNTL[name], _DENIED_FCNTLS)
        program += _commands(_IOCTL[name], *((_DENIED_IOCTLS,) if processes or network else ((), _ALLOWED_IOCTLS)))
    if not processes:
        program += [(_EQUAL, 0, 3, clone), _argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), fail]
    program += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


_Instruction = tuple[int, int, int, int]


def _commands(call: int, denied: Sequence[int], allowed: Sequence[int] | None = None) -> list[_Instruction]:
    """What fcntl or ioctl may be told, its second argument: all but `denied`, or only `allowed`."""
    fail = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    if allowed is None:
        checks = [step for command in denied for step in ((_EQUAL, 0, 1, command), fail)]
    else:
        checks = [*((_EQUAL, len(allowed) - index, 0, command) for index, command in enumerate(allowed)), fail]
    return [(_EQUAL, 0, len(checks) + 2, call), _argument(1), *checks, (_LOAD, 0, 0, _NUMBER_OFFSET)]


def _argument(index: int, *, high: bool = False) -> tuple[int, int, int, int]:
    """Loads half of an argument. The low one is all that the kernel reads of a process's number, a command or flags."""
    return (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index + 4 * high)
