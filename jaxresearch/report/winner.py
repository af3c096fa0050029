"""Taking the result home: the best experiment as a patch, or as a branch in a repository, with its evidence."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Verdict
from jaxresearch.proposal import Candidate
from jaxresearch.report.record import ExperimentRecord, StudyRecord
from jaxresearch.study.workspace import CONFIG_FILE, check_tree
from jaxresearch.text import one_line

_NAME, _EMAIL = "jaxresearch", "jaxresearch@localhost"
_SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "core.autocrlf=false")


def evidence(record: StudyRecord, number: int, note: str = "") -> str:
    """The commit message of experiment `number`: what it is, what it is worth, and how to see for oneself.

    note: of an ablation that took something out of it.

    Words of candidates stand on indented lines of ours, so that none can pass for a header, a rule or a diff of a mail.
    """
    best, base = record.experiments[number], record.experiments[record.baseline]
    lines = [one_line(f"{best.title}", 72) or "no hypothesis", "", *_scores(record, best, base), ""]
    steps = [each for each in _path(record, number) if each.verdict is Verdict.KEEP]
    if steps:
        lines += ["Kept on the way, each against the best before it:"]
        lines += [f"  #{each.number}  {_effect(each)}  {one_line(each.title, 90)}" for each in steps]
        lines.append("")
    if note:
        lines += ["Ablated: this is not the whole experiment. On fresh seeds:", f"  {one_line(note, 300)}", ""]
    lines += [f"  reason: {one_line(best.reason, 300)}", f"  study: {one_line(record.study)}, experiment {number}"]
    lines += [f"  commit: {best.commit}", f"  program: {one_line(best.program)}", f"  ledger: {record.integrity.head}"]
    lines += [f"  again: {one_line(best.command, 400)}"]
    return "\n".join(lines) + "\n"


def patch(record: StudyRecord, number: int, base: Candidate, winner: Candidate, note: str = "") -> str:
    """From the baseline to the winner, for `git am` or `git apply`."""
    with tempfile.TemporaryDirectory(prefix="jaxresearch-") as name:
        folder = Path(name)
        _git(folder, "init", "--quiet", "--template=", "--initial-branch=main")
        _write(folder, base.files)
        _commit(folder, "the baseline", record.created_at)
        _write(folder, changes(base, winner))
        _commit(folder, evidence(record, number, note), record.experiments[number].proposed_at)
        return _git(folder, "format-patch", "--stdout", "--no-signature", "--no-renames", "-1").decode(
            "utf-8", "replace"
        )


def branch(
    record: StudyRecord, number: int, base: Candidate, winner: Candidate, note: str = "", *, repo: Path, name: str
) -> str:
    """Make branch `name` in the repository `repo`: its HEAD with the winner's changes. Returns the commit.

    Nothing is checked out. Raises `JaxresearchError` when the repository's subject is not the study's baseline, or the
    branch is there already.
    """
    if not repo.is_dir():
        raise JaxresearchError(f"--repo: there is no folder {repo}.", fix="Give a git repository.")
    _git(repo, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", otherwise=f"--repo: {repo} has no commit.")
    _git(repo, "check-ref-format", "--branch", name, otherwise=f"--branch: {name!r} is no name for a branch.")
    if _git_status(repo, "show-ref", "--verify", "--quiet", f"refs/heads/{name}") == 0:
        raise JaxresearchError(f"{repo} has a branch {name} already.", fix="Choose another with --branch.")
    changed = changes(base, winner)
    _refuse_other_baseline(repo, base, changed)
    with tempfile.TemporaryDirectory(prefix="jaxresearch-") as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _git(repo, "read-tree", "HEAD", extra=index)
        for path, text in changed.items():
            blob = _git(repo, "hash-object", "-w", "--no-filters", "--stdin", stdin=text.encode()).decode().strip()
            _git(repo, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", extra=index)
        tree = _git(repo, "write-tree", extra=index).decode().strip()
    message = evidence(record, number, note).encode()
    commit = (
        _git(repo, "commit-tree", tree, "-p", "HEAD", "-F", "-", stdin=message, extra=_author(None)).decode().strip()
    )
    _git(repo, "update-ref", f"refs/heads/{name}", commit, "0" * 40)
    return commit


def changes(base: Candidate, winner: Candidate) -> dict[str, str]:
    """The files that `winner` changes or adds. Hyperparameters, if it sets others, are one file at the top."""
    check_tree(winner)
    changed = {path: text for path, text in winner.files.items() if base.files.get(path) != text}
    if dict(winner.config) != dict(base.config):
        changed[CONFIG_FILE] = yaml.safe_dump(dict(winner.config), sort_keys=True, allow_unicode=False)
    return changed


def _scores(record: StudyRecord, best: ExperimentRecord, base: ExperimentRecord) -> list[str]:
    lines = [f"val_bpb {_score(best)}; the baseline has {_score(base)}."]
    if best.number == record.incumbent and record.gain is not None:
        interval = ""
        if record.gain_low is not None and record.gain_high is not None:
            interval = f", 95 % interval {record.gain_low:.4f} to {record.gain_high:.4f}"
        lines.append(f"On the seeds that both ran it is {record.gain:.4f} lower{interval}.")
        if record.gain_corrected is not None:
            lines.append(f"Corrected for its choice among {len(record.experiments) - 1}: {record.gain_corrected:.4f}.")
    if record.noise is not None and record.noise.sd_bpb is not None:
        lines.append(f"Another seed alone moves the score by {record.noise.sd_bpb:.4f} (standard deviation).")
    lines.append(f"One run is {record.budget}. These are validation scores, which also chose the winner.")
    return lines


def _score(experiment: ExperimentRecord) -> str:
    if experiment.val_bpb is None:
        return "no score"
    spread = f" ± {experiment.sem:.4f}" if experiment.sem is not None else ""
    seeds = len({run.seed for run in experiment.runs})
    return f"{experiment.val_bpb:.4f}{spread} over {seeds} seed{'s' if seeds > 1 else ''}"


def _effect(experiment: ExperimentRecord) -> str:
    difference = "" if experiment.difference is None else f"{experiment.difference:+.4f}"
    return difference if experiment.p_value is None else f"{difference} (p {experiment.p_value:.4f})"


def _path(record: StudyRecord, number: int) -> list[ExperimentRecord]:
    """From the baseline's first child to `number`."""
    path, at = [], record.experiments[number]
    while at.parent is not None:
        path.append(at)
        at = record.experiments[at.parent]
    return path[::-1]


def _refuse_other_baseline(repo: Path, base: Candidate, changed: Mapping[str, str]) -> None:
    for path in changed:
        if path not in base.files:
            continue
        shown = _git(repo, "cat-file", "blob", f"HEAD:{path}", otherwise=f"--repo: HEAD of {repo} has no {path}.")
        if shown != base.files[path].encode():
            raise JaxresearchError(
                f"--repo: {path} in {repo} is not what the study began with.",
                fix="Check out the commit that the study began with, or use --format patch and `git am -3`.",
            )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())


def _commit(folder: Path, message: str, when: float) -> None:
    _git(folder, "add", "--all", "--force")
    _git(
        folder,
        "commit",
        "--quiet",
        "--allow-empty",
        "--cleanup=whitespace",
        "-F",
        "-",
        stdin=message.encode(),
        extra=_author(when),
    )


def _author(when: float | None) -> dict[str, str]:
    roles = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", _NAME), ("EMAIL", _EMAIL))
    }
    dates = {} if when is None else {f"GIT_{role}_DATE": f"{int(when)} +0000" for role in ("AUTHOR", "COMMITTER")}
    return roles | dates


def _git_status(folder: Path, *arguments: str, stdin: bytes = b"", extra: Mapping[str, str] | None = None) -> int:
    return _run(folder, arguments, stdin, extra or {}).returncode


def _git(
    folder: Path, *arguments: str, stdin: bytes = b"", extra: Mapping[str, str] | None = None, otherwise: str = ""
) -> bytes:
    done = _run(folder, arguments, stdin, extra or {})
    if done.returncode:
        words = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
        raise JaxresearchError(otherwise or f"{folder}: git {arguments[0]} failed: {one_line(words)}.")
    return done.stdout


def _run(
    folder: Path, arguments: tuple[str, ...], stdin: bytes, extra: Mapping[str, str]
) -> subprocess.CompletedProcess:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        **extra,
    }
    command = ["git", *_SAFE, "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(command, cwd=folder, env=environment, input=stdin, capture_output=True)
    except FileNotFoundError:
        raise JaxresearchError("git is not installed.", fix="Install it.") from None
