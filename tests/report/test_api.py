"""The Python API: thin, quick to import, and documented by an example that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxresearch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_importing_is_fast_and_loads_nothing_heavy():
    code = "import sys, time; t = time.perf_counter(); import jaxresearch; print(time.perf_counter() - t, *sys.modules)"
    seconds, *loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 1
    assert not {name.split(".")[0] for name in loaded} & {"jax", "pydantic", "scipy", "matplotlib", "click", "numpy"}


def test_reading_a_study_and_rendering_it_imports_no_jax(study: Path):
    code = (
        f"import sys, pathlib; from jaxresearch import Study, read_record, render_report;"
        f"render_report(read_record(pathlib.Path({str(study)!r}))); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"jax", "jaxlib", "flax", "agents", "models", "matplotlib"}


def test_public_names_are_there_and_others_are_not():
    for name in jaxresearch.__all__:
        assert getattr(jaxresearch, name) is not None
    assert set(jaxresearch.__all__) <= set(dir(jaxresearch))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = jaxresearch.Nothing


def test_the_example_runs(study: Path, tmp_path: Path, capsys):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {"folder": folder})
    printed = capsys.readouterr().out
    assert "the chain is whole" in printed
    assert "diff --git" in printed
    assert (folder / "mine.html").stat().st_size > 50_000
