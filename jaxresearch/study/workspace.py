"""The workspace: a bare git repository in which each experiment is a commit on its parent's commit.

Nothing is ever checked out, so no name that a candidate chose becomes a file of ours. Git is called with its plumbing
commands, without the user's configuration, environment or hooks.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Self

import yaml

from jaxresearch.errors import JaxresearchError
from jaxresearch.proposal import SUBJECT_FOLDER, Candidate, EditError
from jaxresearch.text import clean

CONFIG_FILE = "hyperparameters.yaml"
_AUTHOR = "jaxresearch <jaxresearch@localhost>"
_OPTIONS = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.attributesFile=/dev/null",
    "-c",
    "core.fsync=committed,reference",
)
_DIFF = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--text")
"""A zero byte would make a file binary for git, and its diff one line that shows nothing of it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEADING = re.compile(r"^[0-9a-f]{40}$", re.MULTILINE)
_ANCHOR = re.compile(r"\nLedger: ([0-9a-f]{64})\n*\Z")


_REMEMBERED = 64
"""Candidates that stay in memory; the others are read again. A study may have thousands."""


class WorkspaceError(JaxresearchError):
    """The workspace cannot be read or written."""


class Workspace:
    """The commits of one study. Branches: `baseline`, `incumbent` and `experiment-0007` for experiment 7."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._candidates: dict[str, Candidate] = {}

    @classmethod
    def create(cls, folder: Path) -> Self:
        """An empty repository in the new folder `folder`."""
        folder.mkdir()
        workspace = cls(folder)
        workspace._git("init", "--quiet", "--bare", "--template=", "--initial-branch=incumbent", ".")
        return workspace

    @classmethod
    def open(cls, folder: Path) -> Self:
        if not (folder / "HEAD").is_file():
            raise WorkspaceError(f"{folder} is not a study's workspace.", fix="Restore the study from a backup.")
        return cls(folder)

    def commit(self, number: int, candidate: Candidate, parent: str | None, message: str, *, when: float) -> str:
        """Write experiment `number` and return its commit. Equal arguments give the same commit, so again is harmless.

        parent: the parent's commit, None for the baseline. message: control characters are stripped from it.
        when: seconds since the epoch. Raises `EditError` when the candidate's paths make no tree.
        """
        return self.commit_to(branch_of(number), candidate, parent, message, when=when)

    def commit_to(self, branch: str, candidate: Candidate, parent: str | None, message: str, *, when: float) -> str:
        """`commit` on a branch of any name."""
        self._git("fast-import", "--quiet", "--force", stdin=_import_stream(branch, candidate, parent, message, when))
        return self.resolve(branch)

    def candidate(self, commit: str) -> Candidate:
        """The sources and config that `commit` holds."""
        found = self._candidates.pop(commit, None) or self._read(_checked(commit))
        self._candidates[commit] = found  # the last in line to be forgotten
        if len(self._candidates) > _REMEMBERED:
            del self._candidates[next(iter(self._candidates))]
        return found

    def diff(self, parent: str, commit: str) -> str:
        """Unified diff from commit `parent` to `commit`, config included."""
        return self._git("diff-tree", *_DIFF, "-p", _checked(parent), _checked(commit)).decode("utf-8", "replace")

    def diffs(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The diff of each (parent, commit), as `diff` gives it, from one git process for all."""
        if not pairs:
            return []
        lines = "".join(f"{_checked(commit)} {_checked(parent)}\n" for parent, commit in pairs)
        output = self._git("diff-tree", *_DIFF, "--always", "-p", "--stdin", stdin=lines.encode()).decode(
            "utf-8", "replace"
        )
        # A line that is nothing but a commit is git's heading: a diff's own lines never begin with a hexadecimal digit.
        _, *parts = _HEADING.split(output)
        return [part.removeprefix("\n") for part in parts]

    def set_incumbent(self, commit: str) -> None:
        """Point the branch `incumbent` at `commit`."""
        self._git("update-ref", "refs/heads/incumbent", _checked(commit))

    def resolve(self, branch: str) -> str:
        """The commit that `branch` points at."""
        return self._git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}").decode().strip()

    def anchors(self) -> tuple[str, ...]:
        """Hashes of ledger events that commit messages carry in their last line, for `Ledger.verify`."""
        messages = self._git("log", "-z", "--branches", "--format=%B").decode("utf-8", "replace").split("\0")
        return tuple(found[1] for found in map(_ANCHOR.search, messages) if found)

    def clear_stale_locks(self) -> None:
        """Remove lock files of a git that was killed. Only for the study's one driver."""
        for lock in self._folder.rglob("*.lock"):
            lock.unlink(missing_ok=True)

    def _read(self, commit: str) -> Candidate:
        blobs = {}
        for record in self._git("ls-tree", "-r", "-z", commit).split(b"\0")[:-1]:
            facts, path = record.split(b"\t", 1)
            mode, kind, digest = facts.split()
            if mode == b"100644" and kind == b"blob":
                blobs[path.decode()] = digest
        texts = dict(zip(blobs, self._texts(list(blobs.values())), strict=True))
        config = yaml.safe_load(texts.pop(CONFIG_FILE, "")) or {}
        return Candidate(files=texts, config=config)

    def _texts(self, digests: list[bytes]) -> list[str]:
        output, texts = self._git("cat-file", "--batch", stdin=b"\n".join(digests) + b"\n"), []
        for digest in digests:
            header, _, output = output.partition(b"\n")
            try:
                size = int(header.split()[2])  # git says "HASH missing" of one that it cannot read, and goes on
                texts.append(output[:size].decode())
            except (IndexError, ValueError):
                raise WorkspaceError(
                    f"{self._folder}: object {digest.decode()} is damaged.", fix="It comes back from a backup."
                ) from None
            output = output[size + 1 :]
        return texts

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", *_OPTIONS, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=_environment(),
                input=stdin,
                capture_output=True,
                process_group=0,  # Ctrl-C on a terminal is for us: we finish the run at hand, and git must not die of it
            )
        except (FileNotFoundError, NotADirectoryError):
            missing = "git is not installed" if self._folder.is_dir() else f"{self._folder} is gone"
            raise WorkspaceError(f"{missing[0].upper()}{missing[1:]}.", fix="A study needs it.") from None
        if done.returncode:
            silent = "no such commit or branch" if done.returncode > 0 else f"killed by signal {-done.returncode}"
            words = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [silent])[0]
            raise WorkspaceError(
                f"{self._folder}: git {arguments[0]} failed: {words.rstrip('.')}.",
                fix="Make sure that the disk has room; a damaged workspace comes back from a backup.",
            )
        return done.stdout


def branch_of(number: int) -> str:
    """The branch that holds experiment `number`."""
    return "baseline" if number == 0 else f"experiment-{number:04d}"


def check_tree(candidate: Candidate) -> None:
    """Raise `EditError` when `candidate` makes no tree.

    Its paths must be plain names below the subject's folder, none of them also another's folder, and all of it must be
    Unicode text, which a lone surrogate is not.
    """
    for path, text in candidate.files.items():
        parts = PurePosixPath(path).parts
        plain = path.isprintable() and "\\" not in path and "/".join(parts) == path
        if len(parts) < 2 or parts[0] != SUBJECT_FOLDER or not plain or any(part.startswith(".") for part in parts):
            raise EditError(f"{path!r} is not a path of the subject.", fix=f"Use plain names under {SUBJECT_FOLDER}/.")
        folder = next((str(each) for each in PurePosixPath(path).parents if str(each) in candidate.files), None)
        if folder is not None:
            raise EditError(f"{folder} is a file, so {path} cannot be in it.", fix="Choose another path.")
        _check_text(path, text)
    for name, value in candidate.config.items():
        _check_text("config", f"{name}{value}" if isinstance(value, str) else name)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EditError(f"{what} holds a lone surrogate, which is not text.", fix="Leave it out.") from None


def _environment() -> Mapping[str, str]:
    """What git may know of this process: where programs are, and no configuration but our own."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_DIR": ".",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
    }


def _import_stream(branch: str, candidate: Candidate, parent: str | None, message: str, when: float) -> bytes:
    """The commit in the language of git-fast-import(1)."""
    stamp = f"{_AUTHOR} {math.floor(when)} +0000"
    lines = [f"commit refs/heads/{branch}\n".encode()]
    lines += [f"author {stamp}\ncommitter {stamp}\n".encode(), _data(clean(message).strip() + "\n")]
    if parent is not None:
        lines.append(f"from {_checked(parent)}\n".encode())
    lines.append(b"deleteall\n")
    check_tree(candidate)
    files = {**candidate.files, CONFIG_FILE: _config_text(candidate)}
    for path, text in sorted(files.items()):
        quoted = path.replace("\\", "\\\\").replace('"', '\\"')
        lines += [f'M 100644 inline "{quoted}"\n'.encode(), _data(text)]
    return b"".join(lines)


def _data(text: str) -> bytes:
    content = text.encode()
    return b"data %d\n%s\n" % (len(content), content)


def _config_text(candidate: Candidate) -> str:
    return yaml.safe_dump(dict(candidate.config), sort_keys=True, allow_unicode=False)


def _checked(commit: str) -> str:
    if not _COMMIT.fullmatch(commit):
        raise WorkspaceError(f"{commit!r} is not a commit.")
    return commit
