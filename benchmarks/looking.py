"""How long one waits to look at a study: `status`, `status --json` and `report`, each a process of its own.

    python benchmarks/looking.py STUDY
    python benchmarks/looking.py --experiments 1000 --trees ../before .
    python benchmarks/looking.py STUDY STUDY --trees ../before .

Without STUDY, one is written as a driver would have (tests/report/synthetic.py): code edits, ablation and confirmation
among its events, curves of 200 points. With several trees, which are checkouts of jaxresearch, all take turns, and what
they print and write must be the same. With a study for each, where the ledger's form has changed, each looks at its own.
A row for each command and tree: medians over the rounds, with the range.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Took = tuple[float, float]
"""Seconds by the clock, and of the processor in user mode."""


def look(
    studies: Sequence[Path], trees: Sequence[Path] = (ROOT,), rounds: int = 5
) -> dict[tuple[str, Path], list[Took]]:
    """By command and tree, what each round took. studies: one for all trees, or one for each.

    Raises `SystemExit` when two trees do not show the same of one study.
    """
    study_of = dict(zip(trees, [*studies] * (len(trees) if len(studies) == 1 else 1), strict=True))
    took: dict[tuple[str, Path], list[Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        for arguments in (["status"], ["status", "--json"], ["report", "-o", str(page)]):
            command = " ".join(arguments[:2]).removesuffix(" -o")
            for _ in range(rounds):
                shown = {tree: _once(tree, [*arguments, str(study)], page) for tree, study in study_of.items()}
                for tree, (seconds, _) in shown.items():
                    took.setdefault((command, tree), []).append(seconds)
                if len(studies) == 1 and len({digest for _, digest in shown.values()}) > 1:
                    raise SystemExit(f"{command}: the trees do not show the same")
    return took


def _once(tree: Path, arguments: list[str], page: Path) -> tuple[Took, str]:
    """What `jaxresearch ARGUMENTS` took in `tree`, and the SHA-256 of what it printed and wrote."""
    page.unlink(missing_ok=True)
    began, spent = time.monotonic(), os.times().children_user
    done = subprocess.run([sys.executable, "-m", "jaxresearch", *arguments], cwd=tree, check=True, capture_output=True)
    took = time.monotonic() - began, os.times().children_user - spent
    return took, hashlib.sha256(done.stdout + (page.read_bytes() if page.exists() else b"")).hexdigest()


def table(took: dict[tuple[str, Path], list[Took]]) -> str:
    """A line for each command and tree."""
    lines = []
    for (command, tree), rounds in took.items():
        clock, user = zip(*rounds, strict=True)
        lines.append(f"{command:<14} {_said(clock)} by the clock   {_said(user)} of the processor   {tree}")
    return "\n".join(lines)


def _said(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="*")
    parser.add_argument("--experiments", type=int, default=1000, help="of the study that is written")
    parser.add_argument("--trees", type=Path, nargs="+", default=[ROOT])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        studies = [study.resolve() for study in options.study]
        if len(studies) > 1 and len(studies) != len(options.trees):
            parser.error("give one study, or one for each of --trees")
        studies = studies or [_written(Path(folder) / "study", options.experiments)]
        print(table(look(studies, options.trees, options.rounds)))


def _written(folder: Path, experiments: int) -> Path:
    sys.path.insert(0, str(ROOT))
    from tests.report.synthetic import make_study

    return make_study(folder, experiments)


if __name__ == "__main__":
    main()
