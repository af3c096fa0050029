import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.sandbox import Sandbox, choose_sandbox, examine_tiers, write_tree
from jaxresearch.sandbox.seccomp import system_call_filter


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


def needs_bubblewrap(tier):
    if tier != "bubblewrap":
        pytest.skip(f"tier {tier} stops no attacker")


def test_the_self_test_says_what_each_tier_is_worth_and_leaves_no_secret_behind(runner):
    before = dict(os.environ)
    reports = runner.run(examine_tiers())
    assert [report.tier for report in reports] == ["bubblewrap", "subprocess"]
    assert reports[1].works
    assert "weak" in reports[1].detail
    assert reports[0].works or reports[0].fix
    assert os.environ == before


def test_a_missing_bubblewrap_is_reported_with_its_remedy(runner, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    first, _ = runner.run(examine_tiers())
    assert (first.works, first.detail) == (False, "bwrap is not installed")
    assert "apt-get install bubblewrap" in first.fix
    assert runner.run(choose_sandbox()).tier == "subprocess"
    with pytest.raises(JaxresearchError, match=r"sandbox\.require: tier bubblewrap does not work here"):
        runner.run(choose_sandbox("bubblewrap"))


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
    first, _ = runner.run(examine_tiers())
    assert not first.works
    for leak in ("read_secret", "tcp", "signal_parent", "make_process"):
        assert leak in first.detail


def test_output_is_kept_to_its_limit_and_said_to_be_cut(inside, tier):
    outcome = inside(tier, "import sys; sys.stdout.write('a' * 5000); sys.exit(3)")
    assert (outcome.returncode, len(outcome.output), outcome.output_truncated) == (3, 1000, True)
    assert not inside(tier, "print('a', end='')").output_truncated


def test_the_input_may_stay_unread(inside, tier):
    assert inside(tier, "pass", stdin=b"x" * 2_000_000).returncode == 0


@pytest.mark.parametrize("way", ["sleeps", "ignores signals", "closes its pipes"])
def test_a_hanging_process_is_ended_in_time(inside, tier, way):
    source = {
        "sleeps": "import time; time.sleep(100)",
        "ignores signals": "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(100)",
        "closes its pipes": "import os, time\nfor d in (0, 1, 2): os.close(d)\ntime.sleep(100)",
    }[way]
    started = time.monotonic()
    assert inside(tier, source, timeout_seconds=1).timed_out
    assert time.monotonic() - started < 5


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
        time.sleep(3)
        open({path!r}, "w").close()
        os._exit(0)
except OSError as error:
    print(type(error).__name__)
"""


def test_an_orphan_in_a_session_of_its_own_does_not_survive(inside, tier, tmp_path):
    needs_bubblewrap(tier)
    outcome = inside(tier, ORPHAN.format(path=str(tmp_path / "survived")))
    assert outcome.output == b"PermissionError\n"
    time.sleep(3.5)
    assert not (tmp_path / "survived").exists()


def test_threads_are_allowed_where_processes_are_not(inside, tier):
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
    needs_bubblewrap(tier)
    marker = f"marker-{os.getpid()}.py"
    (tmp_path / marker).write_text("import time; time.sleep(60)")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / marker), str(tmp_path), tier]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        driver.stdout.readline()
        assert wait_for(lambda: len(users_of(marker, "bwrap")) > 0)
        driver.kill()
    assert wait_for(lambda: not users_of(marker, "bwrap"))


def users_of(marker: str, program: str) -> list[str]:
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", process, "cmdline").read_bytes().decode()
        except OSError:
            continue
        if marker in command and program in command.split("\0")[0]:
            found.append(process)
    return found


def wait_for(condition, seconds: float = 10) -> bool:
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


def test_the_filter_is_whole_instructions_that_end_in_a_verdict():
    program = system_call_filter()
    if program is None:
        pytest.skip("no filter for this machine")
    assert len(program) % 8 == 0
    assert program[-8:-6] == b"\x06\x00"
