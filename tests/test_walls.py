"""The walls between rooms, read off the imports of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.laboratory import ROOT

NOUNS = {
    "errors",
    "files",
    "scratch",
    "levels",
    "text",
    "machine",
    "budget",
    "proposal",
    "experiment",
    "config",
    "strategy",
}
BELOW = {
    "data": set(),
    "sandbox": set(),
    "statistics": set(),
    "program": {"sandbox", "data"},
    "training": {"program", "data"},
    "scoring": {"program", "data"},
    "execution": {"training", "scoring", "program", "sandbox", "data", "statistics"},
}
"""Rooms that a room may import besides the nouns. Those that are not here may import all of these, and each other."""

MLIR_FILES = {f"jaxresearch/program/{name}.py" for name in ("stablehlo", "marks", "flops")}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions and TYPE_CHECKING included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = base + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if module == "jaxresearch")


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files("jaxresearch"), ids=name)
def test_the_laboratory_imports_neither_agents_nor_subjects_nor_tests(path):
    assert not {module.split(".")[0] for module in imports(path)} & {"agents", "models", "tests"}


@pytest.mark.parametrize("path", files("jaxresearch"), ids=name)
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(ROOT / "jaxresearch").parts[0].removesuffix(".py")
    used = {module.split(".")[1] for module in imports(path) if module.startswith("jaxresearch.")}
    if room in NOUNS:
        assert used <= NOUNS
    elif room in BELOW:
        assert used - {room} <= NOUNS | BELOW[room]
    elif room not in ("cli", "__main__"):
        assert "cli" not in used - {room}


@pytest.mark.parametrize("path", files("models"), ids=name)
def test_the_subject_imports_only_what_a_sandbox_holds(path):
    tops = {module.split(".")[0] for module in imports(path)}
    assert tops <= {"models", "jax", "flax", "optax", "numpy"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", files("agents"), ids=name)
def test_a_researcher_sees_only_the_nouns_and_the_view(path):
    used = {module for module in imports(path) if module.startswith("jaxresearch.")}
    allowed = {"jaxresearch.strategy", "jaxresearch.proposal", "jaxresearch.experiment", "jaxresearch.errors"}
    assert used <= allowed | {"jaxresearch.text", "jaxresearch.budget"}


@pytest.mark.parametrize(
    "path", [ROOT / "jaxresearch/program/tracer.py", ROOT / "jaxresearch/sandbox/probe.py"], ids=name
)
def test_what_goes_into_the_sandbox_alone_imports_nothing_of_ours(path):
    assert {module.split(".")[0] for module in imports(path)} <= {"jax"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", files("jaxresearch"), ids=name)
def test_the_mlir_bindings_stay_in_one_place_and_nothing_is_unpickled(path):
    used = set(imports(path))
    if name(path) not in MLIR_FILES:
        assert not any(module.startswith("jaxlib") or "mlir" in module for module in used)
    assert not used & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    assert "allow_pickle=True" not in path.read_text()


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def test_importing_the_laboratory_starts_no_backend():
    assert not loaded_by("import jaxresearch") & {"jax", "jaxlib", "numpy", "flax", "pydantic_ai", "pyarrow"}
    assert not loaded_by("import jaxresearch.config, jaxresearch.experiment") & {"jax", "jaxlib", "flax", "pydantic_ai"}


def test_training_needs_no_agents_and_no_llm_library():
    rooms = "data, program.tracing, program.verifier, sandbox, training.trainer, scoring.audits, execution.local"
    modules = ", ".join(f"jaxresearch.{room.strip()}" for room in rooms.split(","))
    found = loaded_by(f"import {modules}, jaxresearch.execution.running")
    assert "jax" in found
    assert not {module.split(".")[0] for module in found} & {"pydantic_ai", "openai", "anthropic", "agents", "models"}


def test_the_train_command_needs_no_agents_and_no_llm_library():
    found = loaded_by("import jaxresearch.cli.app, jaxresearch.cli.train, jaxresearch.execution.single")
    assert not {module.split(".")[0] for module in found} & {"pydantic_ai", "openai", "anthropic", "agents", "models"}
