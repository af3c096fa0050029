# ruff: noqa: F821 - the test puts the names in capitals above this text
"""Goes into a candidate, above its recipe: tries to leave the box, and raises what it found as its error's text."""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import sys


def attempt(action):
    try:
        return action()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:80]


def environment():
    found = [v for v in os.environ.values() if SECRET in v]
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                with open(f"/proc/{process}/environ", "rb") as file:
                    found += [process] if SECRET.encode() in file.read() else []
            except OSError:
                pass
    return found


def on_the_way_to_python(path):
    """A virtual environment below someone's home leaves the names of the folders above it, and nothing in them."""
    return any((prefix + "/").startswith(path + "/") for prefix in (sys.prefix, sys.base_prefix))


def readable(*paths):
    found = []
    for path in paths:
        try:
            if not os.path.isdir(path):
                open(path, "rb").close()
                found.append(path)
            elif any(not on_the_way_to_python(os.path.join(path, name)) for name in os.listdir(path)):
                found.append(path)
        except OSError:
            pass
    return found


def connect(kind, address, family=socket.AF_INET):
    with socket.socket(family, kind) as client:
        client.settimeout(1)
        client.connect(address)
        client.send(b"secret")
    return "sent"


def write(*paths):
    found = []
    for path in paths:
        try:
            with open(path, "w") as file:
                file.write("x")
            found.append(path)
        except OSError:
            pass
    return found


def kill_parent():
    os.kill(HOST_PID, 0)
    with open(f"/proc/{HOST_PID}/cmdline", "rb") as file:
        return file.read().decode()


def kill_everyone_visible():
    """All that can be signalled besides oneself: nothing that is the host's may be among them."""
    names = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with open(f"/proc/{process}/cmdline", "rb") as file:
            names.append(os.path.basename(file.read().split(b"\0")[0].decode()))
    return sorted(names)


def limit_parent():
    resource.prlimit(HOST_PID, resource.RLIMIT_CPU)
    return "limited"


def touch_host():
    """What no right to open a file is needed for: times, modes, names and lengths of files of the host."""
    found = []
    changes = (lambda: os.utime(HOME_SECRET), lambda: os.truncate(HOME_SECRET, 0), lambda: os.unlink(HOME_SECRET))
    changes += (lambda: os.rename(HOME_SECRET, HOME_SECRET + "2"), lambda: os.link(HOME_SECRET, "/tmp/linked"))
    changes += (lambda: os.chmod(HOME_SECRET, 0o777), lambda: os.mkfifo(HOME_SECRET + "3"))
    for index, change in enumerate(changes):
        if not isinstance(attempt(change), str):
            found.append(index)
    return found


def attributes_of_host():
    """Flags and attributes of files, which an owner may change with no right to write, by old calls and new ones."""
    libc, found = ctypes.CDLL(None, use_errno=True), []
    for path in (HOME_SECRET, os.__file__):
        name, known = path.encode(), ctypes.create_string_buffer(24)
        if libc.syscall(468, -100, name, known, 24, 0) == 0 and libc.syscall(469, -100, name, known, 24, 0) == 0:
            found.append(f"file_setattr {path}")
        if libc.syscall(466, -100, name, 0, b"user.x") == 0 or ctypes.get_errno() == errno.ENODATA:
            found.append(f"removexattrat {path}")
        if libc.removexattr(name, b"user.x") == 0 or ctypes.get_errno() == errno.ENODATA:
            found.append(f"removexattr {path}")
        try:
            with open(path, "rb") as file:
                flags = fcntl.ioctl(file, 0x80086601, bytes(8))
                fcntl.ioctl(file, 0x40086602, flags)
                found.append(f"ioctl {path}")
        except OSError:
            pass
    return found


def watch_host():
    """Which files of the host are opened and made, and when."""
    libc, folder, found = ctypes.CDLL(None), os.path.dirname(HOME_SECRET).encode(), []
    if libc.inotify_add_watch(libc.inotify_init1(0), folder, 0x120) >= 0:
        found.append("inotify")
    if libc.fanotify_mark(libc.fanotify_init(0xE00, 0), 1, ctypes.c_uint64(0x120), -100, folder) >= 0:
        found.append("fanotify")
    return found


def ptrace():
    libc = ctypes.CDLL(None, use_errno=True)
    return [libc.ptrace(16, process, 0, 0) for process in (1, os.getppid(), HOST_PID)]


def fork_bomb(bound=50):
    children = []
    for _ in range(bound):
        child = os.fork()
        if child == 0:
            os._exit(0)
        children.append(child)
    return len(children)


def subprocess_():
    import subprocess

    return subprocess.run(["/bin/true"]).returncode


def uncounted_memory():
    """Memory that RLIMIT_AS does not see."""
    libc, found = ctypes.CDLL(None, use_errno=True), []
    if libc.shmget(0, 1 << 20, 0o1600) >= 0:
        found.append("shmget")
    if hasattr(os, "memfd_create") and not isinstance(attempt(lambda: os.memfd_create("x")), str):
        found.append("memfd")
    return found


def room(*folders):
    """Bytes that can be written below each folder, at most 200 MB tried."""
    written = {}
    for folder in folders:
        total = 0
        try:
            for number in range(40):
                with open(f"{folder}/fill{number}", "wb", buffering=0) as file:
                    total += file.write(b"x" * 5_000_000)
        except OSError:
            pass
        finally:
            for path in (f"{folder}/fill{number}" for number in range(40)):
                if os.path.exists(path):
                    os.unlink(path)
        written[folder] = total
    return written


def raise_limits():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "raised"


def kernel_settings():
    found = []
    for name in ("kernel/core_pattern", "kernel/hostname", "vm/overcommit_memory", "kernel/modprobe"):
        try:
            os.close(os.open(f"/proc/sys/{name}", os.O_WRONLY))
            found.append(name)
        except OSError:
            pass
    return found


def device_modes():
    return attempt(lambda: os.chmod("/dev/null", os.stat("/dev/null").st_mode & 0o7777))


def symlink():
    os.symlink(HOME_SECRET, "/tmp/link")
    with open("/tmp/link") as file:
        return file.read()


def site_packages():
    import jax

    package = os.path.dirname(jax.__file__)
    targets = [f"{package}/evil.py", f"{os.path.dirname(package)}/evil.pth", f"{package}/__pycache__/evil.pyc"]
    return write(*targets, __file__, os.path.join(os.path.dirname(__file__), "gpt.py"), "/tracer.py")


TRIALS = {
    "environment": environment,
    "home": lambda: readable(HOME_SECRET, os.path.dirname(HOME_SECRET), "/root/.ssh", "/home", "/srv", "/etc/shadow"),
    "data": lambda: readable(CORPUS),
    "repository": lambda: readable(*REPOSITORY),
    "tcp": lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", TCP_PORT)),
    "udp": lambda: connect(socket.SOCK_DGRAM, ("10.0.0.1", 53)),
    "interfaces": lambda: [name for _, name in socket.if_nameindex() if name != "lo"],
    "dns": lambda: socket.getaddrinfo("example.com", 80),
    "abstract socket": lambda: connect(socket.SOCK_STREAM, ABSTRACT, socket.AF_UNIX),
    "path socket": lambda: connect(socket.SOCK_STREAM, UNIX_SOCKET, socket.AF_UNIX),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM).close(),
    "docker": lambda: readable("/var/run/docker.sock", "/run/docker.sock"),
    "signal": kill_parent,
    "limits of the parent": limit_parent,
    "files of the host": touch_host,
    "attributes of the host": attributes_of_host,
    "events of the host": watch_host,
    "processes": kill_everyone_visible,
    "ptrace": ptrace,
    "fork": fork_bomb,
    "subprocess": subprocess_,
    "uncounted memory": uncounted_memory,
    "room": lambda: room("/tmp", "/dev/shm", "/dev", "/var/tmp", "/candidate", "/"),
    "limits": raise_limits,
    "kernel settings": kernel_settings,
    "device modes": device_modes,
    "symlink": symlink,
    "site-packages": site_packages,
    "write": lambda: write("/escape", "/etc/evil", "/usr/lib/evil", "/root/evil", "/proc/evil", "/sys/evil"),
    "namespaces": lambda: [ctypes.CDLL(None).unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000)],
    "setuid": lambda: os.setuid(12345),
    "path": lambda: [entry for entry in sys.path if not entry or entry.startswith("/candidate") or entry == "/tmp"],
}
raise RuntimeError("FOUND" + json.dumps({name: attempt(trial) for name, trial in TRIALS.items()}) + "END")
