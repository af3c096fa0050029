"""What a researcher is told: a digest of the study of bounded size, and the tables behind its tools.

The digest's first line, and the JSON lines of `history_rows` and `hyperparameter_rows`, are also read by the builtin
model, which sees nothing else.
"""

from __future__ import annotations

import builtins
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun, Experiment, FailedRun, Verdict
from jaxresearch.proposal import Hyperparameter, Proposal, Scalar
from jaxresearch.strategy import StudyView
from jaxresearch.text import clean, fenced, one_line

LAST_EXPERIMENTS = 10
NEAR_MISSES = 5
HISTORY_PAGE = 100
RELEVANT = 200
_OF_A_KIND = 6
_KEPT = 40
_ANCESTORS = 40
_WHY, _WHY_IN_SHORT = 160, 60
_INSTRUCTIONS_CHARACTERS = 4000
_HYPERPARAMETERS, _CHOICES = 80, 20
_CHOICE_CHARACTERS, _HYPERPARAMETERS_CHARACTERS = 120, 30_000
_CURVE_POINTS = 12
_OURS = (Verdict.KEEP, Verdict.DISCARD, Verdict.DUPLICATE, Verdict.TIMEOUT)
"""Verdicts whose reasons the laboratory alone has written."""
_OF_JAX = {
    "ConcretizationTypeError", "JaxRuntimeError", "KeyReuseError", "NonConcreteBooleanIndexError", "ShardingTypeError",
    "TracerArrayConversionError", "TracerBoolConversionError", "TracerIntegerConversionError", "UnexpectedTracerError",
    "XlaRuntimeError",
}  # fmt: skip
_DIVERGED = re.compile(r"the loss (is not finite|exploded to [\d.e+]+) at step \d+( \(seed \d+ at step \d+\))?")
"""What the trainer says; nothing else fits in it, whoever wrote it."""


def clipped(text: str, limit: int) -> str:
    """`text` made safe to show, lines kept, cut to `limit` characters."""
    text = clean(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def effect(view: StudyView, experiment: Experiment) -> float | None:
    """How `experiment` moved val_bpb against its parent: the mean over the seeds that both ran. Negative is better."""
    if experiment.parent is None or experiment.parent >= len(view.experiments):
        return None
    mine, theirs = experiment.scores, view.experiments[experiment.parent].scores
    shared = mine.keys() & theirs.keys()
    if shared:
        return sum(mine[seed] - theirs[seed] for seed in sorted(shared)) / len(shared)
    here, there = experiment.val_bpb, view.experiments[experiment.parent].val_bpb
    return None if here is None or there is None else here - there


def digest(
    view: StudyView, parent: int, *, guidance: str = "", prompt_version: str = "", repairs: int | None = None
) -> str:
    """The user prompt of one proposal. Its size does not grow with the number of experiments.

    repairs: the crashed experiment that it is to repair, if that is what is asked.
    """
    counts = Counter("pending" if each.verdict is None else str(each.verdict) for each in view.experiments)
    files = ", ".join(sorted(view.candidate(parent).files))
    noise = "unknown" if view.noise_sd is None else f"{view.noise_sd:.4f}"
    sections = [
        f"round seed={view.seed} experiments={len(view.experiments)} parent={parent} noise={view.noise_sd or 0:.6f} "
        f"prompt={prompt_version}" + (f" repairs={repairs}" if repairs is not None else ""),
        f"Incumbent: experiment {view.incumbent.number}, val_bpb {_score(view.incumbent)}. "
        f"Baseline: {_score(view.baseline)}. Standard deviation between seeds: {noise}.",
        f"Budget of one run: {view.budget}.",
        f"Verdicts so far: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}.",
        f"Your proposal builds on experiment {parent}. Its files: {files}.",
        *_size(view.experiments[parent]),
        *rules(view),
    ]
    if view.instructions.strip():
        sections.append(
            f"What the person who runs this study asks for:\n{clipped(view.instructions, _INSTRUCTIONS_CHARACTERS)}"
        )
    if guidance.strip():
        sections.append(f"For this proposal: {clipped(guidance, _INSTRUCTIONS_CHARACTERS)}")
    sections.append(f"Hyperparameters of experiment {parent}:\n{hyperparameter_rows(view.hyperparameters(parent))}")
    tried = [each for each in view.experiments if each.proposal is not None]
    if tried:
        sections.append(f"The last experiments:\n{_rows(view, tried[-LAST_EXPERIMENTS:])}")
    near = near_misses(view)
    if near:
        sections.append(f"Discarded, yet better than their parent on the seeds that ran:\n{_rows(view, near)}")
    if view.refused:
        sections.append(f"Gave no program when they were checked, and never ran:\n{_refusals(view)}")
    crash = untrusted_crash(view, view.experiments[-1])
    if crash:
        sections.append(crash)
    return "\n\n".join(sections)


def _size(experiment: Experiment) -> list[str]:
    """How much one run trains, of how large a model: 0.05 tokens a parameter and 5 call for opposite changes."""
    run = next((run for run in experiment.runs if isinstance(run, CompletedRun)), None)
    if run is None:
        return []
    share = run.tokens / max(run.parameters, 1)
    return [
        f"One run of it has {run.steps} steps, {run.tokens:,} tokens and {run.parameters:,} parameters: "
        f"{share:.2g} tokens a parameter."
    ]


def rules(view: StudyView) -> list[str]:
    """What is kept or discarded for another reason than its score."""
    told = []
    if view.constraints:
        limits = ", ".join(f"{name} at most {limit:,}" for name, limit in view.constraints.items())
        told.append(f"Constraints: {limits}. What breaks one is discarded, however good its score is.")
    if view.simplicity_bpb:
        told.append(
            "Simplicity: a candidate with less code, at least 1 % fewer parameters or 1 % fewer FLOPs, and not more of any "
            f"of these, may replace the incumbent when it is shown to lose less than {view.simplicity_bpb:.4f} val_bpb."
        )
    return told


def near_misses(view: StudyView) -> list[Experiment]:
    """Discarded experiments that moved the score the right way, best first."""
    scored = [
        (moved, each)
        for each in view.experiments
        if each.verdict is Verdict.DISCARD and (moved := effect(view, each)) is not None and moved < 0
    ]
    return [each for _, each in sorted(scored, key=lambda pair: (pair[0], pair[1].number))[:NEAR_MISSES]]


def is_fixed(each: Hyperparameter) -> bool:
    """Whether the subject declares a number without bounds or choices: it is the laboratory's, not for search."""
    number = isinstance(each.value, int | float) and not isinstance(each.value, bool)
    return number and each.low is None and each.high is None and not each.choices


def hyperparameter_rows(hyperparameters: Iterable[Hyperparameter]) -> str:
    """One JSON object a line: name, value, and the bounds or choices. As many as there is room for: a candidate declares
    them, and could else fill the context of every model that is asked after it."""
    rows, room = [], _HYPERPARAMETERS_CHARACTERS
    for each in list(hyperparameters)[:_HYPERPARAMETERS]:
        row: dict[str, object] = {"name": each.name, "value": each.value}
        if each.low is not None or each.high is not None:
            row |= {"low": each.low, "high": each.high}
        if each.log:
            row["log"] = True
        if each.choices:
            row["choices"] = [choice for choice in each.choices if len(str(choice)) <= _CHOICE_CHARACTERS][:_CHOICES]
        if is_fixed(each):
            row["fixed"] = True
        if each.doc:
            row["doc"] = one_line(each.doc, 120)
        line = json.dumps(row)
        room -= len(line)
        if room < 0:
            break
        rows.append(line)
    return "\n".join(rows)


def history_rows(view: StudyView, first: int) -> str:
    """Experiments `first` .. `first + 99`, one JSON object a line, under a line that says how many there are."""
    page = view.experiments[max(0, first) : max(0, first) + HISTORY_PAGE]
    header = f"experiments {max(0, first)} to {max(0, first) + len(page) - 1} of {len(view.experiments)}"
    return f"{header}\n{_rows(view, page)}"


def relevant_rows(view: StudyView, parent: int) -> str:
    """At most `RELEVANT` experiments that bear on a proposal upon `parent`, one JSON object a line, oldest first.

    The parent and its nearest ancestors, what was kept last, near misses, the newest six of each kind of change, and as
    many of the newest as there is room for.
    """
    chosen = {*_line(view, parent), *(each.number for each in near_misses(view))}
    chosen.update([each.number for each in view.experiments if each.verdict is Verdict.KEEP][-_KEPT:])
    newest = range(len(view.experiments) - 1, -1, -1)
    for number in itertools.chain(_newest_of_each_kind(view, 1), _newest_of_each_kind(view, _OF_A_KIND), newest):
        if len(chosen) >= RELEVANT:
            break
        chosen.add(number)
    header = f"{len(chosen)} experiments of {len(view.experiments)} that bear on a change of experiment {parent}"
    return f"{header}\n{_rows(view, [view.experiments[number] for number in sorted(chosen)], why=_WHY_IN_SHORT)}"


def _line(view: StudyView, number: int) -> list[int]:
    """Experiment `number` and its nearest ancestors."""
    line: list[int] = []
    at: int | None = number
    while at is not None and len(line) < _ANCESTORS:
        line.append(at)
        at = view.experiments[at].parent
    return line


def _newest_of_each_kind(view: StudyView, count: int) -> Iterator[int]:
    """Newest first, `count` of a kind: one hyperparameter, several, or one idea for the source."""
    seen: Counter[tuple[str, ...]] = Counter()
    for each in reversed(view.experiments):
        if each.proposal is None:
            continue
        names = each.proposal.config.keys()
        values = tuple(names) if len(names) < 2 else ("several",)  # a search makes pairs without end
        kind = (each.proposal.tag if each.proposal.edits else "", *values)
        seen[kind] += 1
        if seen[kind] <= count:
            yield each.number


def experiment_text(view: StudyView, number: int) -> str:
    """One experiment for a reader: what it changed, what it scored, what became of it and why."""
    experiment = view.experiments[number]
    lines = [_rows(view, [experiment])]
    if experiment.proposal is not None:
        lines += [
            f"hypothesis: {one_line(experiment.proposal.hypothesis, 500)}",
            f"expected: {one_line(experiment.proposal.expected_effect, 300)}",
        ]
    lines += [f"seed {seed}: val_bpb {score:.4f}" for seed, score in sorted(experiment.scores.items())]
    lines += _curves(experiment)
    lines.append(f"diff against experiment {experiment.parent}:\n{clipped(view.diff(number), 12_000)}")
    return "\n".join(lines)


def _curves(experiment: Experiment) -> list[str]:
    """The first run's training loss over its progress, at `_CURVE_POINTS` places."""
    curve = next((run.curve for run in experiment.runs if run.curve), ())
    if not curve:
        return []
    last = len(curve) - 1
    places = sorted({round(at * last / (_CURVE_POINTS - 1)) for at in range(_CURVE_POINTS)})
    points = ", ".join(f"{curve[at][0]:.0%} {curve[at][1]:.3f}" for at in places)
    return [f"training loss over progress, nats per token: {points}"]


def config_moves(view: StudyView, experiment: Experiment) -> dict[str, tuple[Scalar | None, Scalar]]:
    """Hyperparameter -> (its parent's value, the value proposed)."""
    proposal = experiment.proposal
    if proposal is None or not proposal.config:
        return {}
    try:
        before = {each.name: each.value for each in view.hyperparameters(proposal.parent)}
    except (JaxresearchError, LookupError):
        before = {}
    return {name: (before.get(name), value) for name, value in proposal.config.items()}


def _rows(view: StudyView, experiments: Iterable[Experiment], *, why: int = _WHY) -> str:
    """why: characters of a reason."""
    return "\n".join(json.dumps(_row(view, each, why)) for each in experiments)


def _row(view: StudyView, experiment: Experiment, why: int) -> dict[str, object]:
    row: dict[str, object] = {"number": experiment.number, "parent": experiment.parent}
    row["verdict"] = "pending" if experiment.verdict is None else str(experiment.verdict)
    if experiment.val_bpb is not None:
        row["val_bpb"] = round(experiment.val_bpb, 4)
    if experiment.sem is not None:
        row["sem"] = round(experiment.sem, 4)
    moved = effect(view, experiment)
    if moved is not None:
        row["effect"] = round(moved, 5)
    if experiment.proposal is not None:
        row |= _change(view, experiment, experiment.proposal)
    if experiment.reason:
        row["why"] = one_line(trusted_reason(experiment), why)
    return row


def trusted_reason(experiment: Experiment) -> str:
    """The reason where it is in the laboratory's own words; else no more than which kind of error it was."""
    if experiment.verdict in _OURS or (experiment.verdict is Verdict.INVALID and experiment.runs):
        return experiment.reason
    if experiment.verdict is Verdict.INVALID:
        return "the program was refused"
    if experiment.verdict is Verdict.INFRASTRUCTURE:
        return "lost by the machine; it was not judged"
    if _DIVERGED.fullmatch(experiment.reason):
        return experiment.reason
    if experiment.reason.startswith("the proposal does not apply"):
        return "the proposal does not apply"
    name = re.match(r"\w{1,60}", experiment.reason)
    known = name is not None and (isinstance(getattr(builtins, name[0], None), type) or name[0] in _OF_JAX)
    return name[0] if name is not None and known else "an error"


def _change(view: StudyView, experiment: Experiment, proposal: Proposal) -> dict[str, object]:
    change = _told(proposal)
    moves = config_moves(view, experiment)
    if moves:
        change["config"] = {one_line(name, 60): list(move) for name, move in list(moves.items())[:20]}
    return change | _files(proposal)


def _told(proposal: Proposal) -> dict[str, object]:
    told: dict[str, object] = {"idea": one_line(proposal.hypothesis, 120)}
    if proposal.tag:
        told["tag"] = one_line(proposal.tag, 80)
    return told


def _files(proposal: Proposal) -> dict[str, object]:
    paths = Counter(edit.path for edit in proposal.edits)
    if not paths:
        return {}
    return {"edits": ", ".join(f"{one_line(path, 60)} x{count}" for path, count in sorted(paths.items())[:6])}


def _refusals(view: StudyView) -> str:
    """Without what their code said: that was told, fenced, in their own round."""
    rows = []
    for each in view.refused:
        row: dict[str, object] = {"parent": each.parent, **_told(each)}
        if each.config:
            shown = {
                name: one_line(value, 60) if isinstance(value, str) else value for name, value in each.config.items()
            }
            row["config"] = {one_line(name, 60): value for name, value in list(shown.items())[:20]}
        rows.append(json.dumps(row | _files(each)))
    return "\n".join(rows)


def _score(experiment: Experiment) -> str:
    if experiment.val_bpb is None:
        return "unknown"
    if experiment.sem is None:
        return f"{experiment.val_bpb:.4f} (1 run)"
    return f"{experiment.val_bpb:.4f} +- {experiment.sem:.4f} (standard error, {len(experiment.scores)} runs)"


def untrusted_crash(view: StudyView, experiment: Experiment) -> str:
    """What it printed, when it crashed, fenced by a nonce that it cannot have known."""
    if experiment.verdict is not Verdict.CRASH:
        return ""
    tracebacks = [run.traceback.rstrip() for run in experiment.runs if isinstance(run, FailedRun) and run.traceback]
    printed = "\n".join(part for part in (*tracebacks[-1:], experiment.reason) if part)
    if not printed:
        return ""
    nonce = view.nonce or view.generator().bytes(8).hex()
    return fenced(printed, nonce, f"Experiment {experiment.number} crashed. The end of its traceback")
