"""What the machine says of itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jaxresearch.machine import _group_limits, physical_memory_bytes, usable_memory_bytes


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("ours", "files", "least"),
    [
        ("0::/user/job\n", {"user/job/memory.max": "max\n", "user/memory.max": "5000\n", "memory.max": "9000"}, 5000),
        ("0::/\n", {"memory.max": "7000\n"}, 7000),
        ("0::/hidden/../../elsewhere\n", {"memory.max": "7000\n"}, 7000),
        ("0::/not/shown/here\n", {"memory.max": "6000\n"}, 6000),
        ("3:cpu,cpuacct:/a\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4000\n"}, 4000),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 9223372036854771712),
        ("0::/a\n", {}, sys.maxsize),
    ],
)
def test_the_least_limit_of_all_groups_above_counts(tmp_path: Path, ours: str, files: dict[str, str], least: int):
    groups = write(tmp_path / "groups", files)
    assert min(_group_limits(write(tmp_path, {"cgroup": ours}) / "cgroup", groups)) == least


def test_where_the_system_says_nothing_the_machine_counts(tmp_path: Path):
    assert list(_group_limits(tmp_path / "none", tmp_path)) == [sys.maxsize]
    assert 0 < usable_memory_bytes() <= physical_memory_bytes()
