"""The docs say what the code does. `UPDATE_DOCS=1 python -m pytest tests/test_docs.py` writes the generated parts anew."""

from __future__ import annotations

import inspect
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
from jaxresearch.program import flops

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- settings: generated -->", "<!-- /settings -->"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

COMMON = (
    "--config",
    "--set",
    "--json",
    "--quiet",
    "--debug",
    "--coordinator",
    "--processes",
    "--process-id",
    "--join-seconds",
)
REFERENCE_HEAD = """# The command line

Generated from the commands themselves; `jaxresearch COMMAND --help` says the same.

Exit status: 0 done; 1 failed, with one line that says what and what to do; 2 wrong usage or configuration; 130
interrupted, with the command that goes on. Results go to stdout, progress to stderr.

Every command takes `--json` (one JSON object on stdout and nothing else), `--quiet` and `--debug` (tracebacks of our own
errors). Those that make a configuration take `--config FILE` and `--set KEY=VALUE`; every key stands in
[operations.md](operations.md#settings). Those that train take `--coordinator`, `--processes`, `--process-id` and
`--join-seconds`, for [several hosts](operations.md#several-hosts).
"""


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


def test_the_table_of_flops_is_the_code_s():
    def table(text: str) -> list[list[str]]:
        lines = text[text.index("| operation ") :].split("\n\n")[0].splitlines()
        return [[cell.strip(" -") for cell in line.strip("|").split("|")] for line in lines]

    assert table((ROOT / "docs" / "integrity.md").read_text()) == table(flops.__doc__ or "")


def command_reference() -> str:
    """docs/cli.md: every command with its options and example, as `--help` tells them."""
    lines = [REFERENCE_HEAD]
    for name, command in _commands(cli, ""):
        with click.Context(command, info_name=name, help_option_names=[]) as context:
            pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
            options = [each for each in command.params if isinstance(each, click.Option) and each.opts[0] not in COMMON]
            rows = [(_spelling(each, context), _meaning(each)) for each in options]
        told, example = inspect.cleandoc(command.help or ""), (command.epilog or "").removeprefix("Example: ")
        lines += [f"## {' '.join([name, *pieces])}", "", told, "", "```sh", example, "```", ""]
        if rows:
            lines += ["| option | |", "|---|---|"]
            lines += [f"| `{_cell(option)}` | {_cell(meaning)} |" for option, meaning in rows]
            lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, by its whole name."""
    for name in group.list_commands(None):  # type: ignore[arg-type]
        command = group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _spelling(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    return record[0].replace(" RANGE", "")


def _meaning(option: click.Option) -> str:
    default = f" [{option.default}]" if option.show_default and option.default is not None else ""
    return (option.help or "") + default


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def test_the_reference_of_commands_is_the_code_s():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(command_reference())
    assert page.read_text() == command_reference(), "run UPDATE_DOCS=1 python -m pytest tests/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
def test_shipped_configurations_are_valid(name: str):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.llm.model == "builtin"
    assert config.corpus.source == ("python-stdlib" if name == "cpu" else "climbmix")
    assert config.budget == {"cpu": "3e11flop", "gpu": "300s", "tpu": "300s"}[name]


@pytest.mark.parametrize("name", ["tournament", "builtin_vs_search"])
def test_shipped_tournaments_are_valid(name: str):
    config = load_config(ROOT / "configs" / f"{name}.yaml", (), TournamentConfig)
    assert config.llm.model == "builtin"
    assert config.tournament.repeats >= 5
