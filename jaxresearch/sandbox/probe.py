"""Runs INSIDE a tier during its self-test: tries to get out, and reports what worked. Standard library only."""

import json
import os
import resource
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
    """Sends the token; whether it arrived is the driver's to say, and it does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(question["token"].encode(), ("127.0.0.1", question["udp_port"])) > 0


def unix_socket(question) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(question["socket"])
        return True


def signal_parent(question) -> bool:
    os.kill(of_the_host(question["parent"]), 0)
    return True


def limit_parent(question) -> bool:
    """A limit of zero seconds would end it. Reading asks for the same right."""
    resource.prlimit(of_the_host(question["parent"]), resource.RLIMIT_CPU)
    return True


def of_the_host(process: int) -> int:
    """The driver's number, where it means the driver: in a namespace the first few are our own."""
    if process <= 3 and os.getpid() <= 3:
        raise ValueError("a process of this namespace")
    return process


def write_secret(question) -> bool:
    os.close(os.open(question["secret"], os.O_WRONLY))
    return True


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


def leave_orphan(question) -> bool:
    """A process in a session of its own, named by the token. Whether it outlives us is the driver's to say."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(reading)
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(10)", question["token"]])
    os.close(writing)
    return os.read(reading, 1) == b""  # closed by exec


def fill_disk(question) -> bool:
    return takes_files(question, "/tmp", "/var/tmp", "/run", os.getcwd(), os.path.dirname(question["secret"]))


def fill_memory_by_files(question) -> bool:
    """Files in memory that no limit of a process counts."""
    return takes_files(question, "/dev/shm", "/dev", "/run/lock")


def takes_files(question, *folders) -> bool:
    """Any folder that takes a file and has no small size of its own."""
    for folder in folders:
        try:
            os.close(os.open(f"{folder}/{question['token']}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except OSError:
            continue
        os.unlink(f"{folder}/{question['token']}")
        room = os.statvfs(folder)
        if room.f_blocks * room.f_frsize > 256 * 2**20:
            return True
    return False


TRIALS = (
    *(read_secret, read_environment, tcp, udp, unix_socket, signal_parent, limit_parent, write_root, write_secret),
    *(see_processes, write_kernel_settings, change_device, make_process, leave_orphan, fill_memory_by_files, fill_disk),
)


def main() -> None:
    question = json.loads(sys.stdin.read())
    print(json.dumps({trial.__name__: attempt(lambda trial=trial: trial(question)) for trial in TRIALS}))


if __name__ == "__main__":
    main()
