"""Runs INSIDE a tier during its self-test: tries to get out, and reports what worked. Standard library only."""

import json
import os
import socket
import sys


def attempt(action) -> bool:
    try:
        return bool(action())
    except (OSError, ValueError):
        return False


def read_secret(question) -> bool:
    with open(question["secret"]) as file:
        return file.read() == question["token"]


def read_environment(question) -> bool:
    return question["token"] in os.environ.values()


def tcp(question) -> bool:
    with socket.create_connection(("127.0.0.1", question["port"]), timeout=2):
        return True


def udp(question) -> bool:
    """Whether any interface but the namespace's own loopback is there to send from."""
    return any(name != "lo" for _, name in socket.if_nameindex())


def signal_parent(question) -> bool:
    os.kill(question["parent"], 0)
    with open(f"/proc/{question['parent']}/cmdline", "rb") as file:
        return bool(file.read())


def write_root(question) -> bool:
    with open("/escape", "w"):
        return True


def see_processes(question) -> bool:
    return sum(name.isdigit() for name in os.listdir("/proc")) > 4


def write_kernel_settings(question) -> bool:
    """Root owns these files: read-only mounts must hold where capabilities are not asked. Opens; writes nothing."""
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    return True


def change_device(question) -> bool:
    """The host's own node is behind this name; the mode asked for is the one that it has."""
    os.chmod("/dev/null", os.stat("/dev/null").st_mode & 0o7777)
    return True


def make_process(question) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def fill_memory_by_files(question) -> bool:
    """Files in memory that no limit of a process counts."""
    room = os.statvfs("/dev/shm")
    return room.f_blocks * room.f_frsize > 256 * 2**20 or os.access("/dev", os.W_OK)


def main() -> None:
    question = json.loads(sys.stdin.read())
    trials = (read_secret, read_environment, tcp, udp, signal_parent, write_root, see_processes)
    trials += (write_kernel_settings, change_device, make_process, fill_memory_by_files)
    print(json.dumps({trial.__name__: attempt(lambda trial=trial: trial(question)) for trial in trials}))


if __name__ == "__main__":
    main()
