"""`status` and `show`: where a study stands, and one experiment whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import click
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.live import outcome_text, score_text
from jaxresearch.cli.uncollected import uncollected
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import CompletedRun, Experiment, RunOutcome, Verdict
from jaxresearch.report.record import clean_value
from jaxresearch.report.timeline import Spending, spending
from jaxresearch.statistics.noise import NoiseFloor
from jaxresearch.study.ablation import dropped
from jaxresearch.study.beside import said_of_trials
from jaxresearch.study.confirm import is_confirmed, said_of_test
from jaxresearch.study.costs import Costs
from jaxresearch.study.cuts import cuts
from jaxresearch.study.drift import drift_warning
from jaxresearch.study.entry import Entry
from jaxresearch.study.evidence import study_pair_noise
from jaxresearch.study.heartbeat import liveness
from jaxresearch.study.history import History
from jaxresearch.study.layout import StudyLayout
from jaxresearch.study.selection import corrected_gain_bpb, gain_bpb
from jaxresearch.study.steps import out_of_time
from jaxresearch.study.study import Study
from jaxresearch.study.summary import expected_false_keeps, is_simpler, status_object
from jaxresearch.study.trials import last_trial
from jaxresearch.text import clean, one_line, quoted

_ALIGNED = ("{:>{}}", "{:>{}}", "{:>{}}", "{:>{}}", "{:<{}}")
_STYLES = {Verdict.KEEP: "green", Verdict.DISCARD: "", Verdict.DUPLICATE: "dim", None: "yellow"}


@click.command(epilog="Example: jaxresearch status studies/mine --json")
@click.argument("study", type=click.Path(path_type=Path))
@output_options
@uncollected()
def status(study: Path, output: Output) -> None:
    """Where a study stands, and whether something is at work on it."""
    opened = Study.open(study, read_only=True)
    try:
        history = opened.history
    finally:
        opened.close()
    alive = liveness(opened.layout, history)

    def show(console: Console) -> None:
        print_study(console, history, study)
        console.print()
        for line in f"now        {alive.said}".splitlines():
            _print_line(console, line, 11)

    output.result({**status_object(history, str(study)), **alive.facts} if output.as_json else {}, show)


@click.command(epilog="Example: jaxresearch show studies/mine 3")
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("experiment", type=click.IntRange(0), required=False)
@output_options
@uncollected()
def show(study: Path, experiment: int | None, output: Output) -> None:
    """One experiment: verdict and why, hypothesis, runs, audits, diff. Without a number, all of them in a table."""
    opened = Study.open(study, read_only=True)
    try:
        history = opened.history
        if experiment is None:
            facts = {"study": str(study), "experiments": [_facts(history, e) for e in history.experiments]}
            output.result(facts, lambda console: print_study(console, history, study))
            return
        if experiment >= len(history.entries):
            raise JaxresearchError(
                f"{study} has no experiment {experiment}.", fix=f"It has 0 to {len(history.entries) - 1}."
            )
        diff = clean(opened.diff(experiment)) if experiment else ""
        spent = spending(opened.events(whole=False), experiment)
        facts = {**_facts(history, history.entries[experiment].experiment), "diff": diff}
        facts |= {"llm_calls": spent.calls, "llm_tokens": spent.tokens, "llm_cost_usd": spent.cost_usd}
        output.result(facts, lambda console: _print_experiment(console, history, experiment, diff, study, spent))
    finally:
        opened.close()


def print_study(console: Console, history: History, folder: Path) -> None:
    """The table of experiments, what it came to, and the commands to go on."""
    console.print(_table(history))
    for line in _conclusion(history):
        _print_line(console, line, 11)
    console.print()
    for command, purpose in _next_commands(history, folder):
        _print_line(console, f"{command}   {purpose}", len(command) + 3)


def _table(history: History) -> Table:
    """A row for each experiment. Its figures are aligned here, as one cell: rich takes its time for every cell."""
    facts = [("#", "val_bpb", "change", "runs", "verdict"), *(_figures(history, entry) for entry in history.entries)]
    widths = [max(map(len, column)) for column in zip(*facts, strict=True)]
    head, *rows = (Text("  ".join(map(str.format, _ALIGNED, row, widths))) for row in facts)
    columns = Column(head, width=len(head), no_wrap=True), Column("what was tried", ratio=1)
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for entry, row in zip(history.entries, rows, strict=True):
        table.add_row(row, Text(one_line(entry.experiment.title, 160)), style=_STYLES.get(entry.verdict, "red"))
    return table


def _figures(history: History, entry: Entry) -> tuple[str, ...]:
    experiment = entry.experiment
    val_bpb = experiment.val_bpb
    difference = entry.decision.difference if entry.decision is not None else None
    return (
        str(experiment.number),
        f"{val_bpb:.4f}" if val_bpb is not None else "-",
        f"{difference:+.4f}" if difference is not None else "",
        str(len(experiment.runs)),
        _verdict_text(history, experiment),
    )


def _next_commands(history: History, folder: Path) -> Iterator[tuple[str, str]]:
    """What a person may want to ask now, and what for."""
    best = history.incumbent_number
    if len(history.entries) > 1:
        purpose = "what the best one is, and why" if best else "what was tried first, and why not kept"
        yield f"jaxresearch show {quoted(folder)} {best or 1}", purpose
    if not history.hopeless and (history.stopped is None or not history.stopped.finished):
        yield StudyLayout(folder).way_on, "to go on"
    elif not history.hopeless:
        yield from _after_the_end(history, folder)
    yield f"jaxresearch export {quoted(folder)} --format tsv", "the log"


def _after_the_end(history: History, folder: Path) -> Iterator[tuple[str, str]]:
    left = sum(entry.verdict is not None for entry in history.contenders) < history.planned
    if left and history.max_seconds is not None and out_of_time(history, history.costs.wall_seconds):
        more = f"jaxresearch resume {quoted(folder)} --max-seconds {2 * history.max_seconds:g}"
        yield more, "to go on for as long again"
    if not history.incumbent_number:
        return
    if not is_confirmed(history):
        yield f"jaxresearch confirm {quoted(folder)}", "whether the gain holds on the sealed test"
    ablated = last_trial(history, "ablation")
    if ablated is None or ablated.closed is None:
        yield f"jaxresearch ablate {quoted(folder)}", "which of its changes matter"
    elif dropped(ablated):
        minimal = f"jaxresearch export {quoted(folder)} --format patch --ablated"
        yield minimal, "the winner without what does not matter"


def _print_line(console: Console, line: str, indent: int, style: str = "") -> None:
    """A line of a label and a text. On a terminal what does not fit goes on below the text's beginning."""
    if console.is_terminal and indent + 20 <= console.width < len(line):
        grid = Table.grid(Column(width=indent), Column(ratio=1, overflow="fold"))
        grid.add_row(Text(line[:indent], style), Text(line[indent:], style))
        console.print(grid)
    else:
        console.print(line, style=style, markup=False)


def _verdict_text(history: History, experiment: Experiment) -> str:
    entry = history.entries[experiment.number]
    if experiment.verdict is None:
        return "pending" if entry.quarantine is None else "quarantine"
    if experiment.number == 0 and experiment.verdict is Verdict.KEEP:
        return "baseline"
    return "keep (simpler)" if is_simpler(entry) else str(experiment.verdict)


def _conclusion(history: History) -> list[str]:
    baseline, best, costs = history.baseline.experiment, history.incumbent.experiment, history.costs
    lines, origin = [""], history.created.origin
    if origin is not None:
        lines.append(f"from       {one_line(origin.study, 200)}, experiment {origin.experiment}: the baseline here")
    if baseline.val_bpb is not None and best.val_bpb is not None:
        lines.append(f"baseline   val_bpb {score_text(baseline)} over {len(baseline.scores)} seeds")
        if best.number != 0:
            gain, left = gain_bpb(history), corrected_gain_bpb(history)
            how = "; kept: simpler, not better" if is_simpler(history.incumbent) else ""
            lines.append(
                f"best       val_bpb {score_text(best)}, experiment {best.number}: {gain:.4f} below the baseline{how}"
            )
            if left is not None:
                lines.append(f"           {left:.4f} when corrected for choosing it among {len(history.contenders)}")
        else:
            lines.append("best       the baseline; nothing that was tried is better beyond the noise")
    if history.noise is not None:
        lines.append(f"noise      {_spread(history.noise)} between seeds, standard deviation")
    pairs = study_pair_noise(history)
    if pairs is not None:
        lines.append(f"           {_spread(pairs)} between pairs on one seed")
    lines.append(f"chance     at most {expected_false_keeps(history):.2g} false keeps expected so far")
    saved = cuts(history)
    if saved.runs:
        were = "run was cut" if saved.runs == 1 else "runs were cut"
        lines.append(f"saved      about {saved.train_seconds_saved:.0f} s of training: {saved.runs} hopeless {were}")
    if costs.wall_seconds > 0:
        share = costs.train_seconds / costs.wall_seconds
        lines.append(f"time       {costs.wall_seconds:.0f} s, {share:.0%} of it training")
    if costs.llm_tokens or costs.llm_possible_tokens:
        lines.append(f"LLM        {_llm_costs(costs)}")
    unsteady = drift_warning(history)
    if unsteady is not None:
        lines.append(f"machine    {unsteady}")
    if late := history.verdicts.get(Verdict.TIMEOUT, 0):
        lines.append(
            f"timeouts   {late}; where other work slows this machine, raise limits.train_seconds_factor (--set)"
        )
    if (tested := said_of_test(history)) is not None:
        lines.append(f"test       {tested}")
    lines += [f"beside     {one_line(said, 300)}" for said in said_of_trials(history)]
    lines += _incident_lines(history)
    lines.append(f"head       {history.head[:16]} after {history.seq} events; `verify --head` finds it again")
    if history.stopped is not None:
        lines.append(f"state      {one_line(history.stopped.reason, 300)}")
    return lines


def _incident_lines(history: History) -> list[str]:
    """How many incidents by kind, and the last three."""
    held = [str(entry.number) for entry in history.contenders if entry.quarantine is not None]
    lines = [f"look at    experiment {', '.join(held)}: quarantined for an implausible gain"] if held else []
    if not history.incidents:
        return lines
    kinds = Counter(str(each.kind) for each in history.incidents)
    lines.append(f"incidents  {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    for each in history.incidents[-3:]:
        where = f"experiment {each.experiment}" if each.experiment is not None else "while proposing"
        by = f"{each.strategy}, {each.llm or 'no model'}"
        lines.append(f"           {each.kind} ({each.pattern}), {where}, {by}: {one_line(each.detail, 120)}")
    return lines


def _llm_costs(costs: Costs) -> str:
    priced = costs.llm_tokens - costs.llm_unpriced_tokens
    parts = [f"${costs.llm_cost_usd:.2f} for {priced:,} tokens"] if priced or costs.llm_cost_usd else []
    if costs.llm_unpriced_tokens:
        parts.append(f"{costs.llm_unpriced_tokens:,} tokens of models that have no known price")
    if costs.llm_possible_tokens:
        parts.append(f"at most ${costs.llm_possible_cost_usd:.2f} more for requests that were never answered")
    return "; ".join(parts)


def _spread(noise: NoiseFloor) -> str:
    return f"{noise.sd_bpb:.4f} (95 %: {noise.low_bpb:.4f} to {noise.high_bpb:.4f})"


def _facts(history: History, experiment: Experiment) -> dict:
    entry = history.entries[experiment.number]
    facts = clean_value(experiment.model_dump(mode="json", exclude={"runs": {"__all__": {"curve"}}}))
    return {
        **facts,
        "val_bpb": experiment.val_bpb,
        "sem": experiment.sem,
        "difference": entry.decision.difference if entry.decision is not None else None,
        "p_value": entry.decision.p_value if entry.decision is not None else None,
        "simpler": is_simpler(entry),
        "size": entry.size.model_dump() if entry.size is not None else None,
        "quarantine": entry.quarantine.model_dump(mode="json") if entry.quarantine is not None else None,
    }


def _more_of(outcome: RunOutcome) -> Iterator[tuple[str, str]]:
    """What is worth a line beside a run's score."""
    if isinstance(outcome, CompletedRun):
        if outcome.worker:
            yield "worker", one_line(outcome.worker, 300)
        if outcome.attention:
            yield "attention", one_line(outcome.attention, 300)
        if outcome.mfu is not None:
            yield "mfu", f"{outcome.mfu:.1%} of {outcome.devices} x {outcome.device}"
        if outcome.checkpoint:
            yield "checkpoint", f"{outcome.checkpoint[:19]}, its final state"
    for each in outcome.resumed:
        alike = "" if each.alike else ", on another kind of machine than had written it"
        yield "resumed", f"at {each.progress:.0%}, step {each.steps}{alike}"
    if outcome.checkpoint_note:
        yield "checkpoint", one_line(outcome.checkpoint_note, 300)


def audit_texts(runs: Sequence[RunOutcome]) -> Iterator[str]:
    """A line for each kind of audit over all runs, and one for each audit that failed."""
    audits = [(run.seed, audit) for run in runs for audit in run.audits]
    for name in dict.fromkeys(audit.name for _, audit in audits):
        passed = [(seed, audit) for seed, audit in audits if audit.name == name and audit.passed]
        if passed:
            probes, largest = sum(a.probes for _, a in passed), max(a.max_deviation for _, a in passed)
            of = sum(audit.name == name for _, audit in audits)
            text = f"{name} passed {len(passed)} of {of}, {probes} probes, largest deviation {largest:g}"
            details = "; ".join(f"seed {seed}: {one_line(a.detail, 200)}" for seed, a in passed if a.detail)
            yield text + (f". {details}" if details else "")
    for seed, audit in audits:
        if not audit.passed:
            detail = f": {one_line(audit.detail, 200)}" if audit.detail else ""
            deviation = f"deviation {audit.max_deviation:g}"
            yield f"{audit.name} FAILED on seed {seed}, {audit.probes} probes, {deviation}{detail}"


def _step_text(entry: Entry) -> str:
    """A kept experiment that another is built on, in a line."""
    difference = entry.decision.difference if entry.decision is not None else None
    change = f" ({difference:+.4f})" if difference is not None else ""
    return f"{entry.number}{change}: {one_line(entry.experiment.title, 160)}"


def _llm_text(spent: Spending, model: str) -> str:
    return f"{spent.calls:.3g} requests, {spent.tokens:,.0f} tokens, ${spent.cost_usd:.4f}" + (
        f", {model}" if model else ""
    )


def _print_experiment(
    console: Console, history: History, number: int, diff: str, folder: Path, spent: Spending
) -> None:
    entry = history.entries[number]
    experiment, proposal = entry.experiment, entry.experiment.proposal

    def line(key: str, text: str, style: str = "") -> None:
        _print_line(console, f"{key + ':':12}{text}", 12, style)

    line(
        "experiment", f"{number}" + (f", on {experiment.parent}" if experiment.parent is not None else ", the baseline")
    )
    line("val_bpb", score_text(experiment))
    line("verdict", f"{experiment.verdict or 'pending'}", _STYLES.get(experiment.verdict, "red"))
    line("because", one_line(experiment.reason, 1000) or "-")
    if entry.quarantine is not None:
        seeds = ", ".join(map(str, entry.quarantine.seeds))
        line("quarantine", f"{one_line(entry.quarantine.reason, 500)}; again on seeds {seeds}", "bold yellow")
    if proposal is not None:
        line("hypothesis", one_line(proposal.hypothesis, 1000))
        if proposal.expected_effect:
            line("expected", one_line(proposal.expected_effect, 500))
        if proposal.config:
            line("config", one_line(", ".join(f"{key} = {value}" for key, value in proposal.config.items()), 2000))
        if proposal.repairs is not None:
            line("second try", f"of experiment {proposal.repairs}, which crashed")
    for label, each in zip(chain(["stands on"], repeat("")), history.lineage(experiment.parent or 0), strict=False):
        line(label, _step_text(each))
    if spent.calls:
        line("LLM", _llm_text(spent, entry.llm))
    line("commit", experiment.commit[:12] or "-")
    line("program", experiment.program or "-")
    said: set[tuple[str, str]] = set()
    for outcome in experiment.runs:
        line("run", outcome_text(outcome))
        for key, text in _more_of(outcome):
            if (key, text) not in said:  # what is the same for all runs stands below the first
                line(key, f"  {text}")
                said.add((key, text))
        if not isinstance(outcome, CompletedRun) and outcome.traceback:
            console.print(clean(outcome.traceback)[-2000:], markup=False, style="dim")
    for text in audit_texts(experiment.runs):
        line("audit", text)
    if experiment.commit:
        seed = experiment.runs[0].seed if experiment.runs else 0
        line("again", f"jaxresearch train --study {quoted(folder)} --experiment {number} --seed {seed}")
    if diff:
        console.print()
        if console.is_terminal:
            console.print(Syntax(diff, "diff", theme="ansi_dark", word_wrap=True, background_color="default"))
        else:
            console.print(diff, markup=False, end="")
