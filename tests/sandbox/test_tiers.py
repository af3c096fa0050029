import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.levels import TIERS, stricter
from jaxresearch.sandbox import Sandbox, choose_sandbox, choose_worker_tier, examine_tiers, write_tree
from jaxresearch.sandbox.confinement import Box, confined, installation
from jaxresearch.sandbox.seccomp import system_call_filter
from jaxresearch.sandbox.selftest import examine
from tests.laboratory import ROOT


@pytest.fixture
def inside(runner, tmp_path):
    """Runs Python source in a tier."""
    tree = tmp_path / "tree"
    tree.mkdir()

    def run(tier, source, **settings):
        script = tmp_path / "script.py"
        script.write_text(source)
        defaults = {"tree": tree, "stdin": b"", "timeout_seconds": 20, "output_bytes": 1000}
        return runner.run(Sandbox(tier).run_python(script, **{**defaults, **settings}))

    return run


@pytest.fixture
def tier(sandbox):
    return sandbox.tier


def needs_a_tier_that_holds(tier):
    if tier == "subprocess":
        pytest.skip(f"tier {tier} stops no attacker")


def skip_without(runner, tier):
    report = runner.run(examine(tier))
    if not report.works:
        pytest.skip(f"{tier}: {report.detail}")


def test_the_self_test_says_what_each_tier_is_worth_and_leaves_no_secret_behind(runner):
    before = dict(os.environ)
    reports = runner.run(examine_tiers())
    assert [report.tier for report in reports] == ["bubblewrap", "landlock", "subprocess"]
    assert reports[2].works
    assert "weak" in reports[2].detail
    assert all(report.works or report.fix for report in reports[:2])
    assert os.environ == before


def test_a_missing_bubblewrap_is_reported_with_its_remedy(runner, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    first, second, _ = runner.run(examine_tiers())
    assert (first.works, first.detail) == (False, "bwrap is not installed")
    assert "apt-get install bubblewrap" in first.fix
    assert runner.run(choose_sandbox()).tier == ("landlock" if second.works else "subprocess")
    for choose in (choose_sandbox, choose_worker_tier):
        with pytest.raises(JaxresearchError) as refusal:
            runner.run(choose("bubblewrap"))
        assert "sandbox.require: bubblewrap is required" in refusal.value.message
        assert "bwrap is not installed" in refusal.value.message
        assert "apt-get install bubblewrap" in refusal.value.fix


def test_a_worker_with_the_network_is_in_a_weaker_tier_that_has_a_name(runner, tier):
    needs_a_tier_that_holds(tier)
    found = runner.run(choose_worker_tier(network=True))
    assert str(found) == f"{tier}+network"
    with pytest.raises(
        JaxresearchError, match=f"sandbox.require: {tier} is required, and the worker would not have it"
    ):
        runner.run(choose_worker_tier(tier, network=True))
    assert runner.run(choose_worker_tier(f"{tier}+network", network=True)) == found


def test_a_machine_without_any_tier_says_what_each_lacks(runner, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("jaxresearch.sandbox.confinement.system_call_filter", lambda **_: None)
    found = runner.run(choose_worker_tier())
    assert str(found).startswith(
        "unsandboxed (bubblewrap: bwrap is not installed; landlock: it does not start: there is"
    )
    with pytest.raises(
        JaxresearchError, match="landlock is required, and tracing would not have it here: bubblewrap: "
    ):
        runner.run(choose_sandbox("landlock"))
    assert runner.run(choose_sandbox("subprocess")).tier == "subprocess"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (None, None, None),
        (None, "landlock", "landlock"),
        ("bubblewrap", "subprocess", "bubblewrap"),
        ("bubblewrap+network", "landlock", "landlock"),
    ],
)
def test_of_two_requirements_the_stricter_holds(one, other, both):
    assert stricter(one, other) == stricter(other, one) == both


def test_a_bubblewrap_that_isolates_nothing_fails_its_self_test(runner, monkeypatch, tmp_path):
    """A program of that name which only runs its last arguments."""
    fake = tmp_path / "bwrap"
    fake.write_text(
        '#!/bin/bash\nargs=("$@")\nfor i in "${!args[@]}"; do\n'
        '  if [ "${args[i]}" = --ro-bind ] && [ "${args[i+2]}" = /tracer.py ]; then script="${args[i+1]}"; fi\n'
        f'done\nexec {sys.executable} -I -B "$script"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first = runner.run(examine("bubblewrap"))
    assert not first.works
    leaks = ("read_secret", "write_secret", "tcp", "udp", "unix_socket", "signal_parent", "limit_parent")
    for leak in (*leaks, "make_process", "leave_orphan"):
        assert leak in first.detail


def test_output_is_kept_to_its_limit_and_said_to_be_cut(inside, tier):
    outcome = inside(tier, "import sys; sys.stdout.write('a' * 5000); sys.exit(3)")
    assert (outcome.returncode, len(outcome.output), outcome.output_truncated) == (3, 1000, True)
    assert not inside(tier, "print('a', end='')").output_truncated


def test_the_input_may_stay_unread(inside, tier):
    assert inside(tier, "pass", stdin=b"x" * 2_000_000).returncode == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["sleeps", "ignores signals", "closes its pipes"])
def test_a_hanging_process_is_ended_in_time(inside, tier, way):
    source = {
        "sleeps": "import time; time.sleep(9999)",
        "ignores signals": "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(9999)",
        "closes its pipes": "import os, time\nfor d in (0, 1, 2): os.close(d)\ntime.sleep(9999)",
    }[way]
    assert inside(tier, source, timeout_seconds=1).timed_out


def test_python_starts_isolated_from_the_users_settings(inside, tier, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('customised')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "sitecustomize.py"))
    outcome = inside(tier, "import sys; print(sys.flags.isolated, sys.dont_write_bytecode)")
    assert outcome.output == b"1 True\n"


ORPHAN = """
import os, sys, time
try:
    if os.fork() == 0:
        os.setsid()
        for descriptor in (0, 1, 2): os.close(descriptor)
        time.sleep(1)
        open({path!r}, "w").close()
        os._exit(0)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("tier", TIERS)
def test_an_orphan_in_a_session_of_its_own_does_not_survive(runner, inside, tier, tmp_path):
    skip_without(runner, tier)
    outcome = inside(tier, ORPHAN.format(path=str(tmp_path / "survived")))
    assert outcome.output == (b"" if tier == "subprocess" else b"PermissionError\n")
    time.sleep(1.5)
    assert not (tmp_path / "survived").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_what_left_its_group_ends_with_a_timeout_in_the_weak_tier_too(inside, tmp_path):
    source = ORPHAN.format(path=str(tmp_path / "survived")) + "\ntime.sleep(100)"
    assert inside("subprocess", source, timeout_seconds=0.5).timed_out
    time.sleep(1.5)
    assert not (tmp_path / "survived").exists()


@pytest.mark.parametrize("tier", TIERS)
def test_threads_are_allowed_where_processes_are_not(runner, inside, tier):
    skip_without(runner, tier)
    source = "import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start(); t.join()"
    assert inside(tier, source).output == b"thread\n"


DRIVER = """
import asyncio, sys
from pathlib import Path
from jaxresearch.sandbox import Sandbox
script, tree = Path(sys.argv[1]), Path(sys.argv[2])
print("started", flush=True)
asyncio.run(Sandbox(sys.argv[3]).run_python(script, tree=tree, stdin=b"", timeout_seconds=60, output_bytes=100))
"""


def test_the_box_dies_with_a_driver_that_is_killed(tier, tmp_path):
    """Once it runs. What bubblewrap was still making finds its standard input closed, as all that we run there reads."""
    needs_a_tier_that_holds(tier)
    boxed = tier == "bubblewrap"
    program = "bwrap" if boxed else "python"
    marker = f"marker-{os.getpid()}.py"
    (tmp_path / marker).write_text("import time; time.sleep(60)")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / marker), str(tmp_path), tier]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        driver.stdout.readline()
        assert wait_for(lambda: inhabited(users_of(marker, program)) if boxed else users_of(marker, program))
        driver.kill()
    assert wait_for(lambda: not users_of(marker, program))


@pytest.mark.parametrize("tier", ["landlock", "subprocess"])
def test_a_box_does_not_start_for_a_driver_that_is_gone(runner, tier, tmp_path):
    """A driver may be killed after the fork and before its box asks to be told of that. Here a shell is the parent."""
    skip_without(runner, tier)
    box = Box(readable=tuple(installation()))
    with confined(tier, box, [sys.executable, "-I", "-c", "print('ran')"]) as (command, descriptors):
        ours = subprocess.run(command, pass_fds=descriptors, capture_output=True, text=True, check=False)
        others = subprocess.run(
            ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command], capture_output=True, text=True, check=False
        )
    assert (ours.returncode, ours.stdout) == (0, "ran\n")
    assert (others.returncode, others.stdout) == (1, "")
    assert "ended before it began" in others.stderr


def users_of(marker: str, program: str) -> list[str]:
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", process, "cmdline").read_bytes().decode()
        except OSError:
            continue
        if marker in command and DRIVER not in command and program in command.split("\0")[0]:
            found.append(process)
    return found


def inhabited(boxes: list[str]) -> bool:
    """Whether one of `boxes` has begun a process that is no bubblewrap, nor about to become one."""
    for process in boxes:
        with contextlib.suppress(OSError):
            for child in Path("/proc", process, "task", process, "children").read_text().split():
                if "bwrap" not in Path("/proc", child, "cmdline").read_bytes().decode().split("\0")[0]:
                    return True
    return False


def wait_for(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("path", ["../out.py", "models/../../out.py", "/tmp/out-of-the-tree.py"])
def test_a_tree_is_written_inside_its_folder_only(tmp_path, path):
    folder = tmp_path / "tree"
    folder.mkdir()
    with pytest.raises(JaxresearchError, match="not a path inside a candidate"):
        write_tree(folder, {path: "x"})
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize("settings", [{}, {"processes": True}, {"confined": True}, {"confined": True, "network": True}])
def test_the_filter_is_whole_instructions_that_end_in_a_verdict(settings):
    program = system_call_filter(**settings)
    if program is None:
        pytest.skip("no filter for this machine")
    assert len(program) % 8 == 0
    assert len(program) < 8 * 4096
    assert program[-8:-6] == b"\x06\x00"


ORDINARY = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from jaxresearch.sandbox import choose_sandbox, choose_worker_tier, examine_tiers
async def main():
    reports = await examine_tiers()
    print(json.dumps([[r.tier, r.works, r.detail] for r in reports] + [(await choose_sandbox()).tier]))
asyncio.run(main())
"""


NOBODY = 65534


def as_nobody(path: str) -> list:
    """The self-tests by an ordinary user, with a Python that this user may read; skips where there is none."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or python is None:
        pytest.skip("only root can become another user, and /usr/bin/python3 is what that user may run")
    old = subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode
    readable = subprocess.run(["test", "-r", str(ROOT / "jaxresearch")], user=NOBODY, check=False).returncode == 0
    if old or not readable:
        pytest.skip("an ordinary user has no Python 3.11 here, or cannot read this clone")
    command = [python, "-c", ORDINARY, str(ROOT)]
    done = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=(), env={"PATH": path}, cwd="/", capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_an_ordinary_user_has_the_same_tiers(runner):
    *reports, chosen = as_nobody(os.environ["PATH"])
    assert [[r.tier, r.works, r.detail] for r in runner.run(examine_tiers())] == reports
    assert chosen == runner.run(choose_sandbox()).tier


def test_an_ordinary_user_without_bubblewrap_has_landlock(runner, tmp_path):
    skip_without(runner, "landlock")
    *reports, chosen = as_nobody(str(tmp_path))
    assert reports[0][:2] == ["bubblewrap", False]
    assert chosen == "landlock"
