"""docs/strategies.md, verbatim, as a package that somebody else installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, message

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
    install(tmp_path, tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"])
    return tmp_path


def install(folder: Path, project: dict) -> None:
    metadata = folder / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points))


def python(package: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=package,
        env={"PYTHONPATH": f"{package}:{ROOT}", "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", **environment},
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


def test_the_page_s_model_is_found_asked_and_its_key_kept_secret(package):
    install(package, tomllib.loads((package / "gateway.toml").read_text())["project"])
    code = (
        "import asyncio\n"
        "from pydantic_ai import Agent\n"
        "from jaxresearch.llm import laboratory_model\n"
        "calls = []\n"
        "said = asyncio.run(Agent(laboratory_model('gateway:gpt-4o', on_call=calls.append)).run('hi sk-of-the-house'))\n"
        "print(said.output, '|', calls[0].model, '|', calls[0].cost_usd > 0, '|', 'sk-of' in calls[0].request)"
    )
    with FakeOpenAI(message("It is there.")) as server:
        environment = {"GATEWAY_URL": server.url, "GATEWAY_API_KEY": "sk-of-the-house"}
        said = python(package, "-c", code, **environment).strip().split(" | ")
    assert said == ["It is there.", "openai:gpt-4o", "True", "False"]


CARELESS = """
list = list


class Silent:
    Options = StrategyOptions


class Deaf(Silent):
    async def propose(self, view, slots):
        return []
"""
DECLARED = {
    "greedy": "hillclimb:HillClimb",
    "broken": "no_such_module:X",
    "bare": "hillclimb:math",
    "silent": "hillclimb:Silent",
    "deaf": "hillclimb:Deaf",
}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("make_strategy('beam', {}).options.width", "3"),  # what else is broken is no concern of its
        ("make_strategy('broken', {})", "strategy 'broken' (no_such_module:X) does not import"),
        ("make_strategy('bare', {})", "'bare' (hillclimb:math) has no Options"),
        ("make_strategy('silent', {})", "'silent' (hillclimb:Silent) has no propose"),
        ("make_strategy('deaf', {})", "'deaf' cannot be made of its options: TypeError: Deaf() takes no arguments."),
        (
            "make_strategy('greedy', {})",
            "'greedy' is declared twice: agents.greedy:Greedy of jaxresearch and hillclimb",
        ),
        (
            "resolve_model('builtin')",
            "'builtin' is declared twice: agents.builtin:BuiltinModel and hillclimb:HillClimb",
        ),
        ("resolve_model('nothing')", "(hillclimb:list) gives a list, no pydantic-ai Model"),
        ("resolve_model('keyless:x')", "'keyless' (gateway:gateway) does not load: KeyError: 'GATEWAY_URL'"),
    ],
)
def test_what_others_declare_wrongly_is_named_when_it_is_asked_for(package, call: str, says: str):
    models = {"builtin": "hillclimb:HillClimb", "nothing": "hillclimb:list", "keyless": "gateway:gateway"}
    (package / "hillclimb.py").write_text((package / "hillclimb.py").read_text() + CARELESS)
    points = {"jaxresearch.strategies": DECLARED, "jaxresearch.llms": models}
    install(package, {"name": "careless", "version": "1", "entry-points": points})
    code = (
        "from jaxresearch.errors import ConfigurationError\n"
        "from jaxresearch.llm import resolve_model\n"
        "from jaxresearch.strategy import make_strategy\n"
        f"try:\n    print({call})\nexcept ConfigurationError as error:\n    print(error)"
    )
    assert says in python(package, "-c", code)


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
