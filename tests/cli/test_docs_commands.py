"""Every command that README and docs show is understood by the program; those that can run here are run, small.

Nothing here knows the pages' commands: a new line of a page is a new case. What cannot run says why in `why_not`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from jaxresearch.cli.app import cli
from jaxresearch.cli.common import make_config, make_tournament_config
from tests.cli.conftest import Result
from tests.laboratory import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = "cd curl docker export git gcloud kubectl ray sbatch scp sky srun ssh systemctl tmux source".split()
"""Programs of others: their lines are not ours to check, but for a jaxresearch command in them."""


@dataclass(frozen=True)
class Line:
    """One command of a page, as words of a shell."""

    page: str
    words: tuple[str, ...]
    block: bool = True
    """In a block of code, not in a sentence."""

    @property
    def ours(self) -> tuple[str, ...]:
        """The words after `jaxresearch`, also where another program starts it; none when it is not there."""
        for at, word in enumerate(self.words):
            if Path(word).name == "jaxresearch":
                return self.words[at + 1 :]
            if word.startswith("--command=jaxresearch "):
                return tuple(shlex.split(word)[1:])
        return ()


def lines_of(page: Path) -> Iterator[Line]:
    """Every line of the blocks of code that a shell would run, and every inline `jaxresearch ...` of the prose."""
    text = page.read_text("utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language not in ("sh", "bash", "") or (language == "" and "jaxresearch " not in block):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                yield Line(page.name, tuple(words))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`((?:jaxresearch|make|pip|python) [^`]+)`", prose):
        yield Line(page.name, tuple(shlex.split(code)), block=False)


LINES = list(dict.fromkeys(line for page in PAGES for line in lines_of(page)))


def is_a_command(line: Line) -> bool:
    """Not `jaxresearch --help`, nor `jaxresearch COMMAND --help`."""
    return bool(line.ours) and not line.ours[0].startswith("-") and not line.ours[0].isupper()


OURS = [line for line in LINES if is_a_command(line)]


def name_of(line: Line) -> str:
    return f"{line.page}: {' '.join(line.words)}"


def parsed(words: tuple[str, ...]) -> click.Context:
    """The command with its options as click converts them; raises for whatever it would refuse."""
    command = cli.get_command(None, words[0])  # type: ignore[arg-type]
    assert command is not None, f"there is no command {words[0]}"
    return command.make_context(words[0], list(words[1:]))


def test_the_pages_have_commands():
    assert len(OURS) > 50
    assert {line.page for line in OURS} >= {"README.md", "cli.md", "operations.md", "strategies.md", "subjects.md"}


@pytest.mark.parametrize("line", OURS, ids=name_of)
def test_every_command_and_option_is_understood(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "program.md"):  # options that want a file which is there
        (tmp_path / name).write_text("")
    parameters = parsed(tuple("1" if word == "N" else word for word in line.ours)).params
    if settings := parameters.get("settings"):
        make = make_tournament_config if line.ours[0] == "compare" else make_config
        make(None, settings)


@pytest.mark.parametrize("line", [line for line in LINES if line not in OURS], ids=name_of)
def test_every_other_command_has_what_it_names(line: Line):
    program, *rest = line.words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif program == "pip":
        assert rest[0] == "install"
        for extras in re.findall(r"(?:jaxresearch|\.)\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"])
    elif program == "python":
        scripts = [word for word in rest if word.endswith(".py")]
        if rest[0] == "-m" and rest[1].startswith("tests."):
            scripts = [f"{rest[1].replace('.', '/')}/__main__.py"]
        assert scripts, f"{name_of(line)}: which script?"
        text = (ROOT / scripts[0]).read_text("utf-8")
        assert [word for word in rest if word.startswith("--") and word.split("=")[0] not in text] == []
    else:
        assert program in (*SHELL, "jaxresearch"), f"{name_of(line)}: say in this test how it is checked"


def why_not(line: Line) -> str | None:
    """Why this command is not run here, though it is understood."""
    command, words = line.ours[0], set(line.ours)
    reasons = {
        "serve": "it never ends: tests/report/test_dashboard.py",
        "pause": "asks a study that is running: tests/study/test_person.py",
        "stop": "asks a study that is running: tests/study/test_person.py",
        "compare": "a tournament is long: tests/cli/test_compare.py",
        "cloud": "names machines of others",
        "hooks": "this study has none: tests/study/test_hooks.py",
    }
    if command in reasons:
        return reasons[command]
    if line.page == "cli.md":
        return "examples again"
    if words & {"climbmix", "tinystories"}:
        return "fetched from the hub: tests/data/test_hub.py"
    if any(name in word for word in words for name in ("anthropic:", "openai:", "google:", "ollama:")):
        return "needs a provider: tests/cli/test_study.py has one of its own"
    if words & {"--coordinator", "--devices", "--fsdp", "ray", "--ray-address"} or line.words[0] != "jaxresearch":
        return "needs several devices or hosts: tests/execution"
    if "hillclimb" in words:
        return "a package that is not installed: tests/agents/test_strategy_docs.py"
    if "subject.source=recurrence" in words:
        return "a folder that is not here: tests/cli/test_subject_docs.py"
    if words & {"patch", "branch", "--from", "--transfer"} or command == "ablate":
        return "needs a winner, which two steps do not find: test_export.py, test_origin.py, test_trials.py"
    if "TOURNAMENT" in words:
        return "no tournament is here: tests/report/test_tournament_page.py"
    if "--approve" in words:
        return "asks a person: tests/cli/test_oversight.py"
    if command in ("run", "train") and not line.block:
        return "told in passing: a block of the same page runs"
    return None


def shape(line: Line) -> tuple[str, ...]:
    """Command and options: two lines that differ in values only are one case."""
    return (line.ours[0], *sorted({word.split("=")[0] for word in line.ours if word.startswith("-")}))


RUNNABLE = list({shape(line): line for line in reversed(OURS) if why_not(line) is None}.values())[::-1]


@pytest.fixture(scope="module")
def desk(finished: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' names mean something: studies, a corpus, a configuration."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("STUDY", "studies/night"):
        shutil.copytree(finished, folder / name)
    (folder / "books").mkdir()
    shutil.copy(config_file.with_name("tiny.jsonl"), folder / "books")
    (folder / "FILE").write_text("Try the depth.\n")
    return folder


def small(line: Line, desk: Path, config_file: Path) -> list[str]:
    """The words of a line, with our small study and corpus for its own, and the last word about sizes."""
    command, *words = line.ours
    words = [word.replace("~/books", str(desk / "books")) for word in words]
    words = ["1" if word == "N" or (word.isdigit() and command in ("show", "verify")) else word for word in words]
    if "HASH" in words:
        from jaxresearch.report.build import read_record

        words[words.index("HASH")] = read_record(desk / words[0]).integrity.head
    if command == "run":
        if "--study" in words:
            words[words.index("--study") + 1] = "studies/another"
        words += ["--experiments", "0", "--budget", "2steps"]
    if command == "train" and "--study" not in words:
        words += ["--budget", "2steps"]
    if command in ("run", "prepare") or (command == "train" and "--study" not in words):
        words += ["--config", str(config_file)]
    if command in ("confirm", "ablate"):
        words += ["--seeds", "2"]
    return [command, *words]


@pytest.mark.parametrize("line", RUNNABLE, ids=name_of)
def test_what_can_run_here_runs(
    line: Line, desk: Path, config_file: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(desk)
    shutil.rmtree(desk / "studies/another", ignore_errors=True)
    words = small(line, desk, config_file)
    result = command(*words)
    assert result.status == 0, f"{words}: {result.stderr}"
    for at, word in enumerate(words):
        if word in ("-o", "--out", "--figure"):
            assert (desk / words[at + 1]).stat().st_size > 0
