"""`export`: a study's log, its whole record, or its winner, in a format that others read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.uncollected import uncollected
from jaxresearch.errors import JaxresearchError
from jaxresearch.files import write_whole
from jaxresearch.text import quoted

_FORMATS = ["tsv", "json", "jsonl", "patch", "branch"]


@click.command(epilog="Example: jaxresearch export studies/mine --format patch -o winner.patch")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(_FORMATS), default="tsv", show_default=True,
    help="tsv: autoresearch's log. json: everything (docs/export.md). jsonl: figures by event. patch, branch: the winner.",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="A file; standard output otherwise.")
@click.option("--experiment", type=click.IntRange(0), help="Of patch and branch: another one than the best.")
@click.option("--ablated", is_flag=True, help="Of patch and branch: the winner without what `ablate` dropped.")
@click.option(
    "--repo", type=click.Path(path_type=Path, file_okay=False), help="Of branch: the git repository to make it in."
)
@click.option("--branch", metavar="NAME", help="Of branch: its name.  [default: jaxresearch/STUDY-N]")
@output_options
@uncollected()
def export(
    study: Path,
    kind: str,
    out: Path | None,
    experiment: int | None,
    ablated: bool,
    repo: Path | None,
    branch: str | None,
    output: Output,
) -> None:
    """Write a study's log or record, or take its winner home as a patch or a git branch."""
    if ablated and (kind not in ("patch", "branch") or experiment is not None):
        raise click.UsageError("--ablated goes with --format patch or branch, and without --experiment.")
    if kind not in ("patch", "branch") and experiment is not None:
        raise click.UsageError(f"--experiment has no meaning with --format {kind}.")
    if kind != "branch" and (repo is not None or branch is not None):
        raise click.UsageError("--repo and --branch go with --format branch.")
    if kind == "branch":
        _branch(study, experiment, ablated, repo, branch, output)
        return
    if kind == "patch":
        text, facts = _patch(study, experiment, ablated)
    else:
        text, facts = {"tsv": _tsv, "json": _json, "jsonl": _jsonl}[kind](study)
    what = facts.pop("what")
    facts = {"study": str(study), "format": kind, **facts, "file": str(out) if out else None}
    if out is not None:
        _write(out, text)
    elif output.as_json:
        facts["text"] = text
    if output.as_json:
        output.result(facts, lambda _: None)
    elif out is None:
        _print(text)
    else:
        output.note(f"{what} written to {out}")


def _jsonl(study: Path) -> tuple[str, dict[str, Any]]:
    from jaxresearch.study.study import Study
    from jaxresearch.tracking import metrics_lines

    opened = Study.open(study, read_only=True)
    try:
        lines = list(metrics_lines(opened.events(whole=False)))
    finally:
        opened.close()
    return "".join(lines), {"rows": len(lines), "what": f"{len(lines)} lines"}


def _tsv(study: Path) -> tuple[str, dict[str, Any]]:
    from jaxresearch.study.study import Study
    from jaxresearch.study.summary import tsv

    opened = Study.open(study, read_only=True)
    try:
        text = tsv(opened.history)
    finally:
        opened.close()
    rows = text.count("\n") - 1
    return text, {"rows": rows, "what": f"{rows} rows"}


def _json(study: Path) -> tuple[str, dict[str, Any]]:
    from jaxresearch.report.build import read_record

    record = read_record(study)
    return record.to_json(), {"schema": record.schema_name, "what": f"{len(record.experiments)} experiments"}


def _patch(study: Path, experiment: int | None, ablated: bool) -> tuple[str, dict[str, Any]]:
    from jaxresearch.report import winner

    record, number, base, best, note, _ = _winner(study, experiment, ablated)
    text = winner.patch(record, number, base, best, note)
    what = f"the minimal winner of experiment {number}" if ablated else f"experiment {number}"
    return text, {"experiment": number, "ablated": ablated, "what": what}


def _branch(
    study: Path, experiment: int | None, ablated: bool, repo: Path | None, name: str | None, output: Output
) -> None:
    from jaxresearch.report import winner

    record, number, base, best, note, source = _winner(study, experiment, ablated)
    name = name or f"jaxresearch/{study.absolute().name}-{number}{'-ablated' * ablated}"
    facts: dict[str, Any] = {"study": str(study), "format": "branch", "experiment": number, "branch": name}
    which = "--ablated" if ablated else f"--experiment {number}"
    if repo is None:
        steps = [
            f"To make branch {name} in your repository:",
            f"  jaxresearch export {quoted(study)} --format branch {which} --repo PATH",
            "To have the commits as the study made them, in any repository:",
            f"  git fetch {study.absolute() / 'workspace'} {source}",
        ]
        facts |= {"commit": None, "repo": None, "instructions": steps}
        output.result(facts, lambda console: console.print("\n".join(steps), markup=False))
        return
    commit = winner.branch(record, number, base, best, note, repo=repo, name=name)
    facts |= {"commit": commit, "repo": str(repo)}
    output.result(
        facts,
        lambda console: console.print(f"branch {name} at {commit[:12]} in {repo}: git log -p {name}", markup=False),
    )


def _winner(study: Path, experiment: int | None, ablated: bool):
    """The record, the number, the candidates of the baseline and of that experiment, what to say of an ablation, and the
    branch of the workspace that holds it."""
    from jaxresearch.report.build import StudyReader
    from jaxresearch.study.ablation import conclusion
    from jaxresearch.study.trials import last_trial
    from jaxresearch.study.workspace import branch_of

    reader = StudyReader(study)
    try:
        record = reader.record()
        number = record.incumbent if experiment is None else experiment
        if number >= len(record.experiments) or not record.experiments[number].commit:
            raise JaxresearchError(f"{study} has no experiment {number} with a commit.", fix="See `jaxresearch show`.")
        if number == record.baseline:
            raise JaxresearchError(
                "Nothing better than the baseline was found, so there is nothing to export.",
                fix="Choose one with --experiment.",
            )
        commits = (record.experiments[record.baseline].commit, record.experiments[number].commit)
        note, source = "", branch_of(number)
        if ablated:
            trial = last_trial(reader.history, "ablation")
            if trial is None or trial.closed is None:
                raise JaxresearchError(
                    f"{study} has no finished ablation of its winner.",
                    fix=f"Run it: jaxresearch ablate {quoted(study)}",
                )
            commits, note = (commits[0], trial.closed.commit), conclusion(trial)
            source = f"trial-{trial.event.trial}-minimal"
        base, best = (reader.workspace.candidate(commit) for commit in commits)
        return record, number, base, best, note, source
    finally:
        reader.close()


def _print(text: str) -> None:
    """To a pipe exactly as it is; a terminal gets no control characters of a candidate's."""
    from jaxresearch.report.record import revealed

    if sys.stdout.isatty():
        click.echo(revealed(text), nl=False)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def _write(out: Path, text: str) -> None:
    try:
        write_whole(out, text.encode())
    except OSError as error:
        raise JaxresearchError(f"--out: {out} cannot be written: {error.strerror}.", fix="Choose another.") from None
