"""The docs say what the code does. `UPDATE_DOCS=1 python -m pytest tests/test_docs.py` writes the generated parts anew."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jaxresearch.cli.app import cli
from jaxresearch.config import StudyConfig, TournamentConfig, load_config

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- settings: generated -->", "<!-- /settings -->"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def settings_table() -> str:
    """Every setting with its default and meaning, as Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{default}` | {meaning} |" for name, default, meaning in _settings(StudyConfig, "")]
    return "\n".join(lines)


def _settings(part: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
        shown = "null" if default is None else str(default)
        yield f"{prefix}{name}", shown, (field.description or "").replace("|", "\\|")


def test_the_table_of_settings_is_the_code_s():
    page = ROOT / "docs" / "operations.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(wanted)
    assert text == wanted, "run UPDATE_DOCS=1 python -m pytest tests/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_docs_exist(page: Path):
    """Each `jaxresearch COMMAND --option` that a page shows is one that the command line has."""
    for line in re.findall(r"^ *\$? *(?:\.venv/bin/)?jaxresearch +([a-z].*)$", page.read_text(), flags=re.MULTILINE):
        name, *words = line.split("#")[0].split()
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        while isinstance(command, click.Group) and words:
            command = command.get_command(None, words.pop(0))  # type: ignore[arg-type]
        assert command is not None, f"{page.name}: jaxresearch {name}"
        if "--" in words:  # what follows is for `run`
            words = words[: words.index("--")]
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{page.name}: jaxresearch {name} {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
def test_shipped_configurations_are_valid(name: str):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.llm.model == "builtin"
    assert config.corpus.source == ("python-stdlib" if name == "cpu" else "climbmix")
    assert config.budget == {"cpu": "1e12flop", "gpu": "300s", "tpu": "300s"}[name]


@pytest.mark.parametrize("name", ["tournament", "builtin_vs_search"])
def test_shipped_tournaments_are_valid(name: str):
    config = load_config(ROOT / "configs" / f"{name}.yaml", (), TournamentConfig)
    assert config.llm.model == "builtin"
    assert config.tournament.repeats >= 5
