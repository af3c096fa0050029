"""How a long study grows: seconds, prompt and memory for each proposal, over a synthetic subject that trains in no time.

    python benchmarks/long_study.py --strategy greedy --experiments 1000

Everything but training is the laboratory's own: the sources of the default subject, git, ledger, digest, strategy. One
row for every tenth part of the study, printed as soon as it is there:

experiment   the last one of the part
seconds      of one experiment, all told, mean of the part: must not grow much
cpu_seconds  of one experiment, processor time of this process and of git below it, mean of the part: what other work on
             the machine disturbs least
ask_seconds  from a round's beginning to its proposal, median of the part
prompt       characters of the first message to the model, the largest of the part: must not grow
request      characters of one request, tool answers included, the largest of the part
recorded     characters of all requests of one proposal, the largest of the part: one more where an answer was refused
ledger_mb    of its files, the write-ahead log among them
rss_mb       resident memory of this process: must not grow

Then, on the finished study, what benchmarks/looking.py measures.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import RunProgress, RunRequest, TracedCandidate
from jaxresearch.experiment import RunOutcome
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import make_strategy
from jaxresearch.study.events import LLMCalled, ProposalRequested, Proposed
from jaxresearch.study.models import Models
from jaxresearch.study.study import Study
from jaxresearch.subjects import load_subject
from jaxresearch.synthetic import HYPERPARAMETERS, PAIR_SD_BPB, SEED_SD_BPB, bowl, completed_run


class SyntheticExecutor:
    """Scores candidates on `jaxresearch.synthetic.bowl`, with noise that is a function of identity and seed."""

    def __init__(self) -> None:
        self._true: dict[str, float] = {}

    async def trace(self, candidate: Candidate) -> TracedCandidate:
        declared = tuple(replace(each, value=candidate.config.get(each.name, each.value)) for each in HYPERPARAMETERS)
        values = {each.name: each.value for each in declared}
        text = json.dumps([sorted(candidate.files.items()), sorted(values.items())])
        program = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        self._true[program] = bowl(values, candidate.files)
        return TracedCandidate(
            program=program,
            traced={},
            hyperparameters=declared,
            phases=((1.0, 8, 256),),
            step_flops=(1e6,),
            parameters=1000,
            sandbox="none",
            trace_seconds=0.0,
        )

    async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
        shared, own = (_noise(text) for text in (str(request.seed), request.identity))
        score = self._true[request.program] + SEED_SD_BPB * shared + PAIR_SD_BPB * own
        facts = {"identity": request.identity, "program": request.program, "budget": request.budget}
        return completed_run(score, request.seed, **facts)

    async def close(self) -> None:
        pass


def _noise(text: str) -> float:
    """Between -1.7 and 1.7, of variance one, and always the same for `text`."""
    return (int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 - 0.5) * 12**0.5


def grow(folder: Path, strategy: str, experiments: int, parts: int = 10) -> Iterator[dict[str, float]]:
    """One row for each of `parts` of a study of `experiments` with the builtin model."""
    config = StudyConfig.model_validate({"experiments": experiments, "strategy": {"name": strategy}})
    study = Study.create(folder, config, load_subject("gpt", {}), corpus="sha256:0", tokenizer="sha256:0")
    executor = SyntheticExecutor()
    try:
        for part in range(1, parts + 1):
            until, began, spent = experiments * part // parts, time.monotonic(), _cpu_seconds()
            asyncio.run(
                study.run(
                    executor,
                    make_strategy(strategy, {}),
                    Models("builtin", config.llm).of_rounds(study),
                    pause=lambda history, until=until: "measured" if len(history.contenders) >= until else None,
                )
            )
            first = experiments * (part - 1) // parts
            seconds = (time.monotonic() - began) / (until - first)
            cpu_seconds = (_cpu_seconds() - spent) / (until - first)
            told = {"experiment": until, "seconds": seconds, "cpu_seconds": cpu_seconds}
            yield told | _row(study, first, until)
    finally:
        study.close()


def _cpu_seconds() -> float:
    """Of this process, and of those that it has started and seen end."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _row(study: Study, first: int, last: int) -> dict[str, float]:
    seconds, prompts, largest, recorded = [], [0], [0], [0]
    began, requests = 0.0, []
    for stored in study.events():
        match stored.event:
            case ProposalRequested():
                began, requests = stored.time, []
            case LLMCalled(record=record):
                requests.append(record["request"])
            case Proposed(number=number) if first < number <= last:
                seconds.append(stored.time - began)
                recorded.append(sum(map(len, requests)))
                largest += map(len, requests)
                prompts += [len(requests[0])] if requests else []
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return {
        "ask_seconds": statistics.median(seconds) if seconds else 0.0,
        "prompt": max(prompts),
        "request": max(largest),
        "recorded": max(recorded),
        "ledger_mb": sum(each.stat().st_size for each in study.layout.folder.glob(f"{study.layout.ledger.name}*"))
        / 1e6,
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
    }


def main() -> None:
    from looking import look, table  # beside this file, where Python looks when it is run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="greedy")
    parser.add_argument("--experiments", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for at, row in enumerate(grow(Path(folder) / "study", options.strategy, options.experiments)):
            if not at:
                print("".join(f"{name:>12}" for name in row))
            line = (f"{value:>12.3f}" if isinstance(value, float) else f"{value:>12}" for value in row.values())
            print("".join(line), flush=True)
        print(table(look([Path(folder) / "study"])))


if __name__ == "__main__":
    main()
