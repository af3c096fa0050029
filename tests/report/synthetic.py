"""Studies without training: events as a driver would write them, by the hundred, and with hostile text if wanted."""

from __future__ import annotations

import math
import random
import subprocess
from pathlib import Path

from jaxresearch.config import StudyConfig
from jaxresearch.execution.base import TracedCandidate, TraceFailure
from jaxresearch.experiment import Audit, CompletedRun, FailedRun, Resumption, Verdict
from jaxresearch.proposal import Candidate, Edit, Proposal, apply
from jaxresearch.study.events import (
    Decided,
    Event,
    LLMCalled,
    Origin,
    ProposalRequested,
    Proposed,
    Quarantined,
    RunFinished,
    RunStarted,
    SessionStarted,
    Stopped,
    TestOpened,
    TestScored,
    Traced,
    TrialClosed,
    TrialJudged,
    TrialOpened,
)
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.study import Study
from jaxresearch.study.workspace import _import_stream, branch_of

HOSTILE = (
    '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"></script><!--<script>'
    "\x1b[31mred\x1b[0m\x07 \u202eevil\u2066 '\"`${window.pwned=1}{{7*7}}{% raw %} javascript:window.pwned=1 \u2028 $\\frac"
)
SUBJECT = Candidate(
    files={"models/recipe.py": "".join(f"LINE_{number} = {number}\n" for number in range(60))}, config={"depth": 2}
)
IDEAS = (
    "depth 2 -> 3: two blocks are few",
    "Muon momentum 0.95 -> 0.90, it overshoots at this batch",
    "warm-down over the last 70% instead of 50%",
    "RMSNorm after the embedding steadies the first hundred steps",
    "half the batch, twice the steps",
    "ReLU squared instead of GELU in the MLP",
    "tie the embeddings and scale the logits by 1/8",
    "value residual from the first layer",
    "weight decay off for matrices",
    "rotary base 10k -> 2k for a context of 256",
)


class StudyMaker:
    """Writes a study of `count` experiments into `folder`, deterministic in `seed`."""

    def __init__(self, folder: Path, count: int, *, seed: int = 0, text: str = "", commits: bool = True) -> None:
        self.folder, self.count, self.text, self.commits = folder, count, text, commits
        self.random = random.Random(seed)
        self.now = 1_790_000_000.0
        self.events: list[tuple[float, Event]] = []
        self.scores: dict[int, dict[int, float]] = {}
        self.candidates = {0: SUBJECT}
        self.commit_of: dict[int, str] = {}
        self.incumbent = 0

    def make(self) -> Path:
        append(self.folder, self.create())
        return self.folder

    def create(self) -> list[tuple[float, Event]]:
        """Make the folder with its commits, and return the events that are still to be written."""
        config = StudyConfig.model_validate(
            {
                "experiments": self.count,
                "llm": {"model": self.text or "builtin"},
                "constraints": {"parameters": 2_000_000},
                "strategy": {"name": self.text or "greedy"},
            }
        )
        study = Study.create(
            self.folder,
            config,
            SUBJECT,
            corpus="sha256:" + "c" * 64,
            tokenizer="sha256:" + "d" * 64,
            instructions=self.text or "Be bold, be brief.",
            clock=lambda: self.now,
            origin=Origin(
                study=self.text or "studies/before",
                head="e" * 64,
                experiment=4,
                commit="f" * 40,
                val_bpb=1.6,
                budget=self.text or "300ktok",
            ),
        )
        self.commit_of[0] = study.workspace.resolve("baseline")
        study.close()
        proposals = [self._proposal(number) for number in range(1, self.count + 1)]
        self._commit(proposals)
        self._add(3, SessionStarted(pid=1, host="host"))
        self._experiment(0, None)
        for number, proposal in enumerate(proposals, 1):
            self._experiment(number, self._on_incumbent(number, proposal))
        self._add(0.1, Stopped(reason=self.text or f"all {self.count} experiments are done", finished=True))
        self._afterwards()
        return self.events

    def _afterwards(self) -> None:
        """What a person asks of a finished study: which changes matter, and whether the gain holds on the sealed test."""
        best = self.incumbent
        if best == 0:
            return
        self._add(
            5,
            TrialOpened(
                trial=1, purpose="ablation", experiment=best, seeds=(80, 81), budget="600ktok", changes=(best,)
            ),
        )
        why = self.text or "worse without it"
        self._add(5, TrialJudged(number=best, arm=f"without {best}", needed=True, reason=why, difference=0.01))
        self._add(5, TrialClosed())
        self._add(5, TestOpened(opening=1, experiments=(0, best), seeds=(90, 91, 92)))
        for seed in (90, 91, 92):
            for number in (0, best):
                run = self._completed(number, seed, 1.5 - 0.02 * (number > 0) + seed * 1e-5)
                self._add(
                    40, TestScored(number=number, outcome=run.model_copy(update={"test_bpb": run.val_bpb + 0.01}))
                )

    def _add(self, seconds: float, event: Event) -> None:
        self.now += seconds
        self.events.append((self.now, event))

    def _proposal(self, number: int) -> Proposal:
        idea = IDEAS[number % len(IDEAS)]
        line = number % 60
        body = "\n".join(f"    # {number}.{i}: x = jnp.einsum('btd,df->btf', x, w{i})" for i in range(number % 17))
        edit = Edit(
            path="models/recipe.py", search=f"LINE_{line} = {line}\n", replace=f"LINE_{line} = {number * 7}\n{body}\n"
        )
        words = (
            f"{self.text} {idea}" if self.text else f"{idea} (try {number}).\nAs seen in the literature, more or less."
        )
        return Proposal(
            parent=0,
            hypothesis=words,
            expected_effect=self.text or "Lower val_bpb; a prior chance of 40%.",
            config={"depth": 2 + number % 3, "note": self.text or f"n{number}"},
            edits=(edit,),
            tag=self.text or f"idea-{number % 10}",
            predicted_bpb=-0.004,
            confidence=0.4,
            repairs=number - 1 if number % 11 == 5 else None,
        )

    def _on_incumbent(self, number: int, proposal: Proposal) -> Proposal:
        parent = self.incumbent if self.random.random() < 0.9 else self.random.choice(list(self.scores))
        return proposal.model_copy(update={"parent": parent if parent in self.commit_of else 0})

    def _commit(self, proposals: list[Proposal]) -> None:
        """All commits in one git process. Every candidate is a change of the baseline: diffs are then long, too."""
        if not self.commits:
            self.commit_of |= dict.fromkeys(range(1, self.count + 1), self.commit_of[0])
            return
        stream = [
            _import_stream(branch_of(number), apply(proposal, SUBJECT), self.commit_of[0], f"{number}", self.now)
            for number, proposal in enumerate(proposals, 1)
        ]
        git = ["git", "-C", str(self.folder / "workspace")]
        subprocess.run([*git, "fast-import", "--quiet", "--force"], input=b"".join(stream), check=True)
        listing = [*git, "for-each-ref", "--format=%(refname:short) %(objectname)"]
        refs = dict(
            line.split()
            for line in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
        )
        self.commit_of |= {number: refs[branch_of(number)] for number in range(1, self.count + 1)}

    def _experiment(self, number: int, proposal: Proposal | None) -> None:
        fate = "fine" if number == 0 else self._fate()
        if proposal is not None:
            round_number = number - 1
            self._add(0.1, ProposalRequested(round=round_number, slots=1, seed=number, instructions=""))
            record = {"cost_usd": 0.012, "input_tokens": 3100, "output_tokens": 420, "model": "m", "reply": "x" * 200}
            self._add(self.random.uniform(2, 20), LLMCalled(round=round_number, ordinal=0, record=record))
            self._add(0.1, Proposed(round=round_number, number=number, proposal=proposal))
        self._add(
            2.0,
            Traced(number=number, commit=self.commit_of[number], tree=f"t{number}", outcome=self._trace(number, fate)),
        )
        if fate == "syntax":
            reason = self.text or "SyntaxError: '(' was never closed"
            self._add(0.1, Decided(number=number, verdict=Verdict.CRASH, reason=reason, incumbent=self.incumbent))
        elif fate == "duplicate":
            reason = self.text or "the same program and values as experiment 1"
            self._add(0.1, Decided(number=number, verdict=Verdict.DUPLICATE, reason=reason, same_as=1))
        elif fate in ("peek", "hang", "lost"):
            self._failed(number, fate)
        else:
            self._scored(number)

    def _fate(self) -> str:
        names = ("fine", "syntax", "peek", "hang", "lost", "duplicate")
        return self.random.choices(names, (84, 5, 3, 3, 1, 4))[0]

    def _trace(self, number: int, fate: str) -> TracedCandidate | TraceFailure:
        if fate == "syntax":
            return TraceFailure(
                verdict=Verdict.CRASH,
                reason=self.text or "SyntaxError: '(' was never closed",
                traceback=self.text or "Traceback:\n  models/gpt.py, line 7\nSyntaxError",
                trace_seconds=0.4,
            )
        return TracedCandidate(
            program=self.text or f"sha256:{number:064x}",
            traced={"lr": 0.01 + number * 1e-6},
            hyperparameters=(),
            phases=((1.0, 8, 256),),
            step_flops=(1e9,),
            parameters=1_400_000,
            sandbox=self.text or "bubblewrap",
            trace_seconds=1.9,
        )

    def _failed(self, number: int, fate: str) -> None:
        verdict = {"peek": Verdict.INVALID, "hang": Verdict.TIMEOUT, "lost": Verdict.INFRASTRUCTURE}[fate]
        audit = Audit(
            name=self.text or "causality",
            passed=False,
            probes=24,
            max_deviation=3.1,
            detail=self.text or "logits moved before the cut",
        )
        failed = FailedRun(
            identity=f"{number:060x}f0",
            verdict=verdict,
            reason=self.text or f"it was {fate}",
            seed=0,
            step=31,
            train_seconds=20.0,
            total_seconds=30.0,
            traceback=self.text,
            audits=(audit,) if fate == "peek" else (),
            curve=self._curve(1.7)[:20],
        )
        self._add(0.1, RunStarted(number=number, identity=failed.identity, seed=0))
        self._add(31.0, RunFinished(number=number, outcome=failed))
        self._add(
            0.1,
            Decided(
                number=number,
                verdict=verdict,
                reason=self.text or f"the run was judged {verdict}",
                incumbent=self.incumbent,
            ),
        )

    def _scored(self, number: int) -> None:
        best = self.scores.get(self.incumbent, {})
        mean = 1.523 if number == 0 else sum(best.values()) / len(best)
        step = (
            0.0
            if number == 0
            else self.random.choices((self.random.uniform(-0.012, -0.003), abs(self.random.gauss(0, 0.02))), (7, 93))[0]
        )
        scores: dict[int, float] = {}
        for seed in range(3):
            offset = random.Random(seed).gauss(0, 0.004)
            base = best.get(seed, mean + offset)
            scores[seed] = base + step + self.random.gauss(0, 0.0008)
            self._run(number, seed, scores[seed])
            if number and sum(scores[each] - best[each] for each in scores) >= 0:
                break
        self.scores[number] = scores
        if number == 0:
            self._add(0.1, Decided(number=0, verdict=Verdict.KEEP, reason=self.text or "the baseline"))
            return
        difference = sum(scores[each] - best[each] for each in scores) / len(scores)
        keep = difference < -0.002
        if keep and self.incumbent == 0:
            implausible = Quarantined(
                number=number, reason=self.text or "far above all that the study has seen", seeds=(50, 51),
                incumbent=self.incumbent, difference=difference, keep_reason=self.text or "better",
            )  # fmt: skip
            self._add(0.1, implausible)
        reason = self.text or (
            f"better on 3 of 3 seeds by {-difference:.4f} bpb" if keep else "not better on the first seed"
        )
        decided = Decided(
            number=number,
            verdict=Verdict.KEEP if keep else Verdict.DISCARD,
            reason=reason,
            incumbent=self.incumbent,
            difference=difference,
            p_value=0.004 if keep else None,
        )
        self._add(0.1, decided)
        self.incumbent = number if keep else self.incumbent

    def _run(self, number: int, seed: int, val_bpb: float) -> None:
        run = self._completed(number, seed, val_bpb)
        self._add(0.1, RunStarted(number=number, identity=run.identity, seed=seed))
        self._add(42.0, RunFinished(number=number, outcome=run))

    def _completed(self, number: int, seed: int, val_bpb: float) -> CompletedRun:
        identity = f"{number:060x}{seed:04x}"
        audits = tuple(
            Audit(name=name, passed=True, probes=48, max_deviation=0.0) for name in ("causality", "batch independence")
        )
        return CompletedRun(
            identity=identity,
            val_bpb=val_bpb,
            loss=val_bpb * 2.1,
            steps=200,
            tokens=614_400,
            flops=8e11,
            train_seconds=34.0,
            compile_seconds=2.1,
            eval_seconds=2.8,
            audit_seconds=1.1,
            trace_seconds=1.9,
            total_seconds=42.0,
            tokens_per_second=18_000.0,
            mfu=None,
            peak_memory_bytes=640 * 2**20,
            parameters=1_400_000,
            program=self.text or f"sha256:{number:064x}",
            corpus="sha256:c",
            tokenizer="sha256:d",
            seed=seed,
            budget="600ktok",
            device=self.text or "cpu",
            threads=2,
            jax="0.10.2",
            sandbox=self.text or "bubblewrap",
            worker=self.text or "bubblewrap",
            attention=self.text or "xla: no GPU",
            checkpoint=(self.text or "sha256:" + "a" * 64) if seed == 0 else "",
            checkpoint_note=self.text,
            resumed=(Resumption(progress=0.5, steps=100, alike=False),) if number % 7 == 3 else (),
            flags=(self.text,) if self.text else (),
            audits=audits,
            curve=self._curve(val_bpb),
        )

    def _curve(self, end: float) -> tuple[tuple[float, float], ...]:
        noise = self.random
        return tuple((at / 200, end * 2.1 + 4.5 * math.exp(-at / 25) + noise.gauss(0, 0.04)) for at in range(1, 201))


def append(folder: Path, events: list[tuple[float, Event]]) -> None:
    """Write `events` with their times at the end of the study's ledger, as its driver would."""
    times = iter([at for at, _ in events])
    ledger = Ledger.open(folder / "ledger.sqlite", clock=lambda: next(times))
    ledger.append(*(event for _, event in events))
    ledger.close()


def make_study(folder: Path, count: int, **options: object) -> Path:
    """See `StudyMaker`."""
    return StudyMaker(folder, count, **options).make()


def tournament_facts(text: str = "") -> dict:
    """The object of `compare --json` as a finished tournament of three arms gives it; with hostile text if wanted."""
    chance = random.Random(5)
    over = ("experiments", "accelerator_seconds", "flops", "llm_cost_usd")
    arms = []
    for at, name in enumerate(("greedy", "independent", "random_search")):
        means = [1.52 - 0.004 * (3 - at) * step / 24 for step in range(25)]
        interval = {"mean": means[-1], "low": means[-1] - 0.003, "high": means[-1] + 0.003}
        arms.append(
            {
                "name": f"{name}{text}", "strategy": name, "llm": text or "builtin", "repeats": 8,
                **dict.fromkeys(("best_val_bpb", "anytime_auc", "test_bpb", "val_change", "test_change"), interval),
                "experiments": {"mean": 12.0, "low": 12.0, "high": 12.0},
                "rates": {"keep": 0.2, "crash": 0.1, "invalid": 0.0, "timeout": 0.0}, "repair_rate": None,
                "calibration": None,
                "accelerator_seconds_per_experiment": 40.0, "accelerator_seconds_per_keep": 200.0, "llm_cost_usd": 0.3 * at,
                "llm_tokens": 10_000, "accelerator_seconds": 4000.0, "flops": 1e13,
                "best_so_far": {
                    each: [{each: step * 0.5, "mean": y, "low": y - chance.random() / 500, "high": y + 0.001}
                           for step, y in enumerate(means)]
                    for each in over
                },
                "curves": [[{"val_bpb": 1.0}] * 500],
            }
        )  # fmt: skip
    pair = {
        "a": arms[0]["name"],
        "b": arms[2]["name"],
        "difference": -0.008,
        "low": -0.012,
        "high": -0.004,
        "p_value": 0.02,
    }
    return {
        "tournament": text or "tournaments/mine", "strategies": arms, "pairwise": [pair], "pairwise_test": [pair],
        "control": arms[2]["name"], "experiments_each": 12, "budget": "12 experiments", "run_budget": "600ktok",
        "repeats": 8, "planned_repeats": 8, "finished": True, "warning": text or None,
        "conclusion": text or "greedy beat random_search by 0.0080 bpb (p = 0.020).",
    }  # fmt: skip
