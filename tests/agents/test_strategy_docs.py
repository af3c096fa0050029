"""docs/strategies.md, verbatim, as a package that somebody else installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.laboratory import ROOT

PAGE = (ROOT / "docs/strategies.md").read_text()


def write_files(folder: Path) -> None:
    """The page's files, into `folder`."""
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(text)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A site folder with the page's files in it, and the metadata that an installer would write."""
    write_files(tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    return tmp_path


def python(package: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env={"PYTHONPATH": f"{package}:{ROOT}", "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_s_strategy_is_found_and_passes_the_page_s_own_test(package):
    code = (
        "from jaxresearch.strategy import installed_strategies, make_strategy\n"
        "found = installed_strategies()['hillclimb']\n"
        "print(found.origin, '|', found.summary, '|', make_strategy('hillclimb', {'step': 0.5}).options.step)"
    )
    origin, summary, step = python(package, "-c", code).strip().split(" | ")
    assert (origin, step) == ("hillclimb", "0.5")
    assert summary.startswith("Moves one hyperparameter")
    assert "1 passed" in python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hillclimb.py")


def test_the_page_s_critic_passes_the_page_s_own_test(package):
    assert "1 passed" in python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_critic.py")


def test_the_page_s_package_builds_with_its_tests_beside_it(tmp_path: Path):
    pytest.importorskip("setuptools")
    write_files(tmp_path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", tmp_path], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".py")] == ["hillclimb.py"]
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_strategy_is_as_short_as_the_page_says(package):
    assert len((package / "hillclimb.py").read_text().splitlines()) <= 42


def test_the_page_names_every_strategy_and_option_of_ours():
    import importlib

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["jaxresearch.strategies"]
    for name, value in points.items():
        module, _, attribute = value.partition(":")
        options = getattr(importlib.import_module(module), attribute).Options.model_fields
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        named = set(re.findall(r"`(\w+)`", row)) - {name}
        assert named <= set(options)
        assert set(options) <= named | (set(points_options("tpe")) if "TPE's" in row else set())


def points_options(name: str) -> list[str]:
    from agents.tpe import TPE

    return list(TPE.Options.model_fields)


def test_a_misspelt_option_is_refused_with_those_that_there_are():
    from jaxresearch.errors import ConfigurationError
    from jaxresearch.strategy import make_strategy

    with pytest.raises(ConfigurationError, match=r"strategy.widht: beam has no such option. beam has width, children"):
        make_strategy("beam", {"widht": 3})
