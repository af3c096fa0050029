"""The researcher: the one pydantic-ai agent that every LLM strategy asks for a proposal.

    proposal = await ask(view, parent=view.incumbent.number)

It may read (sources, hyperparameters, history, one experiment), answers with a typed change, and gets two chances to
repair a change that does not apply, changes nothing, was tried before or does not trace.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, ParamSpec

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_ai import Agent, ModelRetry, RunContext, ToolOutput
from pydantic_ai.usage import UsageLimits

from agents.digest import clipped, digest, experiment_text, history_rows, hyperparameter_rows, is_fixed, relevant_rows
from agents.notebook import text as notes_text
from agents.space import values_of
from agents.steering import names_in, taboos, touched
from jaxresearch.errors import JaxresearchError
from jaxresearch.experiment import Experiment, Verdict
from jaxresearch.proposal import Candidate, Edit, EditError, Hyperparameter, Note, Proposal, Scalar, apply, checked_path
from jaxresearch.strategy import ProposalError, StudyView
from jaxresearch.text import clean, one_line

REPAIRS = 2
NOTES = 10
_SOURCE_CHARACTERS = 100_000
_EDIT_CHARACTERS = 200_000
_LESSONS = 5

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Lesson(BaseModel):
    """What experiments taught."""

    model_config = ConfigDict(extra="forbid")

    topic: Text = Field(description="a hyperparameter, a tag or a category; replaces an earlier lesson on it")
    text: str = Field(default="", description="one sentence; empty retires the lesson on this topic")
    experiments: list[int] = Field(default_factory=list, description="the experiments that support it")
    helps: bool | None = Field(default=None, description="whether the topic helps, if that is the lesson")


class _Change(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hypothesis: Text = Field(description="what you change and why it should help, in one or two sentences")
    expected_effect: Text = Field(description="on val_bpb, such as -0.01, with your reason or confidence")
    tag: str = Field(default="", description="a short stable name of the idea, such as swiglu or lr-up")
    predicted_change: float | None = Field(default=None, description="of val_bpb, in bits per byte, such as -0.01")
    confidence: float | None = Field(default=None, description="chance that it is kept, from 0 to 1")
    lessons: list[Lesson] = Field(default_factory=list, description="only where a notebook is shown to you")


class ConfigChange(_Change):
    """Set hyperparameters; the source stays as it is."""

    config: dict[str, Scalar] = Field(min_length=1, description="hyperparameter -> new value")


class CodeChange(_Change):
    """Edit the source; the hyperparameters stay as they are."""

    edits: list[Edit] = Field(min_length=1, description="exact search and replace, applied in order")


class Both(_Change):
    """Edit the source and set hyperparameters, where one makes no sense without the other."""

    config: dict[str, Scalar] = Field(min_length=1, description="hyperparameter -> new value")
    edits: list[Edit] = Field(min_length=1, description="exact search and replace, applied in order")


Change = ConfigChange | CodeChange | Both


@dataclass
class Desk:
    """What the agent works with during one proposal."""

    view: StudyView
    parent: int
    repairs_left: int = REPAIRS
    accepted: Proposal | None = None


async def ask(view: StudyView, parent: int, guidance: str = "", *, repairs: int | None = None) -> Proposal:
    """A proposal on top of experiment `parent` that applies, changes something, is new and passes `view.check`.

    `guidance` is added to the prompt of this one proposal. repairs: the crashed experiment that it is to repair.
    Raises `ProposalError` when none could be had, and lets errors that end a study (`JaxresearchError`) pass.
    """
    desk = Desk(view, parent)
    agent = _agent()
    prompt = digest(view, parent, guidance=guidance, prompt_version=prompt_version(), repairs=repairs)
    try:
        await agent.run(prompt, model=view.model, deps=desk, usage_limits=UsageLimits(request_limit=view.max_requests))
    except (JaxresearchError, ProposalError):
        raise
    except Exception as error:
        raise ProposalError(one_line(f"{type(error).__name__}: {error}", 500)) from error
    if desk.accepted is None:
        raise ProposalError("the model ended without a proposal")
    return desk.accepted


def prompt_version() -> str:
    """The first 12 hexadecimal digits of the prompt file's SHA-256."""
    return hashlib.sha256(_instructions().encode()).hexdigest()[:12]


@functools.cache
def _instructions() -> str:
    return resources.files("agents").joinpath("prompts/researcher.md").read_text(encoding="utf-8")


@functools.cache
def _agent() -> Agent[Desk, Change]:
    agent = Agent(
        output_type=[
            ToolOutput(ConfigChange, name="propose_config"),
            ToolOutput(CodeChange, name="propose_code"),
            ToolOutput(Both, name="propose_both"),
        ],
        deps_type=Desk,
        instructions=_instructions(),
        name="researcher",
        retries={"tools": REPAIRS, "output": REPAIRS},
        tools=[_safely(tool) for tool in _TOOLS],
    )
    agent.output_validator(_reviewed)
    return agent


P = ParamSpec("P")


def _safely(tool: Callable[P, str]) -> Callable[P, str]:
    """`tool`, so that no exception but `ModelRetry` leaves it: any other would abort the agent's run."""

    @functools.wraps(tool)
    def safe(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return tool(*args, **kwargs)
        except ModelRetry:
            raise
        except Exception as error:
            raise ModelRetry(one_line(f"{tool.__name__} failed: {error}", 400)) from error

    return safe


def read_source(context: RunContext[Desk], path: str) -> str:
    """The exact text of one source file of the experiment that you build on.

    Args:
        path: such as models/gpt.py
    """
    files = context.deps.view.candidate(context.deps.parent).files
    name = checked_path(path)
    if name not in files:
        raise ModelRetry(f"There is no {name}. The files are: {', '.join(sorted(files))}.")
    text = files[name]
    if len(text) > _SOURCE_CHARACTERS:
        return f"{text[:_SOURCE_CHARACTERS]}\n[cut at {_SOURCE_CHARACTERS} of {len(text)} characters]"
    return text


def list_hyperparameters(context: RunContext[Desk]) -> str:
    """The hyperparameters of the experiment that you build on: value, bounds, choices and meaning, one JSON a line."""
    return hyperparameter_rows(context.deps.view.hyperparameters(context.deps.parent))


def history(context: RunContext[Desk], first: int = 0) -> str:
    """What was tried and what came of it: 100 experiments, one JSON a line. A negative effect is better.

    Args:
        first: number of the first experiment to show
    """
    if not 0 <= first < len(context.deps.view.experiments):
        raise ModelRetry(f"Experiments are numbered 0 to {len(context.deps.view.experiments) - 1}.")
    return history_rows(context.deps.view, first)


def relevant_history(context: RunContext[Desk]) -> str:
    """Of a long history what bears on your proposal: ancestors of the experiment that you build on, what was kept, near
    misses, and the newest of each kind of change. 200 experiments at most, one JSON a line. A negative effect is better."""
    return relevant_rows(context.deps.view, context.deps.parent)


def show_experiment(context: RunContext[Desk], number: int) -> str:
    """One experiment: hypothesis, diff, score of each seed, training curve, verdict and reason.

    Args:
        number: of the experiment
    """
    if not 0 <= number < len(context.deps.view.experiments):
        raise ModelRetry(f"Experiments are numbered 0 to {len(context.deps.view.experiments) - 1}.")
    return experiment_text(context.deps.view, number)


def notebook(context: RunContext[Desk]) -> str:
    """What the study has taught: tries and keeps by category, lessons, and predictions against outcomes."""
    return notes_text(context.deps.view, NOTES) or "Nothing was tried yet."


_TOOLS = (read_source, list_hyperparameters, history, relevant_history, show_experiment, notebook)


async def _reviewed(context: RunContext[Desk], change: Change) -> Change:
    """Accept `change`, or say precisely what to repair.

    After the last repair, a proposal that applies goes to the laboratory as it is, so that the failure of an idea is an
    experiment with a verdict, which later proposals can see; one that does not apply is given up.
    """
    desk = context.deps
    try:
        proposal = as_proposal(change, desk.view, desk.parent)
        unfit = find_problem(proposal, desk.view)
        problem = unfit or syntax_problem(proposal, desk.view) or await desk.view.check(proposal)
    except JaxresearchError:
        raise
    except Exception as error:
        raise ProposalError(one_line(f"the proposal could not be checked: {error}", 500)) from error
    if problem is None or (unfit is None and desk.repairs_left == 0):
        desk.accepted = desk.accepted or proposal
        return change
    problem = clipped(problem, 4000)
    if desk.repairs_left == 0:
        raise ProposalError(f"still wrong after {REPAIRS} repairs: {problem}")
    desk.repairs_left -= 1
    raise ModelRetry(problem)


def as_proposal(change: Change, view: StudyView, parent: int) -> Proposal:
    """`change` as a proposal, in plain text and with each value in its hyperparameter's own type."""
    known = {each.name: each for each in view.hyperparameters(parent)}
    config = {} if isinstance(change, CodeChange) else change.config
    return Proposal(
        parent=parent,
        hypothesis=one_line(change.hypothesis, 500) or "no hypothesis",
        expected_effect=one_line(change.expected_effect, 300),
        config={name: _typed(value, known[name]) if name in known else value for name, value in config.items()},
        edits=() if isinstance(change, ConfigChange) else tuple(change.edits),
        tag=one_line(change.tag, 80),
        predicted_bpb=_finite(change.predicted_change),
        confidence=_share(change.confidence),
        notes=tuple(map(_as_note, change.lessons[:_LESSONS])),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _share(value: float | None) -> float | None:
    """`value` as a probability; 80 is taken for 80 %, and what cannot be one for none."""
    if value is None or not 0 <= value <= 100:
        return None
    return value if value <= 1 else value / 100


def _as_note(lesson: Lesson) -> Note:
    return Note(
        topic=one_line(lesson.topic, 80),
        text=one_line(lesson.text, 240),
        experiments=tuple(lesson.experiments[:20]),
        helps=lesson.helps,
    )


def find_problem(proposal: Proposal, view: StudyView) -> str | None:
    """Why `proposal` cannot be an experiment, written for whoever repairs it."""
    parent = view.candidate(proposal.parent)
    hyperparameters = view.hyperparameters(proposal.parent)
    if sum(len(edit.replace) for edit in proposal.edits) > _EDIT_CHARACTERS:
        return f"The edits hold more than {_EDIT_CHARACTERS} characters. Propose a smaller change."
    forbidden = touched(names_in(proposal), taboos(view.instructions))
    if forbidden is not None:
        return f"{forbidden} is taboo: the person who runs this study asks to leave it as it is."
    for edit in proposal.edits:
        if clean(edit.replace) != edit.replace:
            return f"The edit of {one_line(edit.path, 100)} holds control or invisible formatting characters."
    try:
        candidate = apply(proposal, parent)
    except EditError as error:
        return str(error)
    return (
        _config_problem(proposal, hyperparameters, code_changes=candidate.files != parent.files)
        or _no_change(proposal, candidate, parent, hyperparameters)
        or _repetition(proposal, candidate, view)
    )


def syntax_problem(proposal: Proposal, view: StudyView) -> str | None:
    """Where the files that `proposal` changes are not Python. It must apply."""
    parent = view.candidate(proposal.parent)
    candidate = apply(proposal, parent)
    for path, text in candidate.files.items():
        if text == parent.files.get(path):
            continue
        try:
            ast.parse(text, filename=path)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            lines = text.splitlines()
            near = "\n".join(f"{at + 1}: {lines[at]}" for at in range(max(0, line - 3), min(len(lines), line + 2)))
            return f"After your edits {path} is not Python: {error}.\n{near}"
    return None


def _config_problem(
    proposal: Proposal, hyperparameters: tuple[Hyperparameter, ...], *, code_changes: bool
) -> str | None:
    known = {each.name: each for each in hyperparameters}
    for name, value in proposal.config.items():
        if name in known:
            problem = _value_problem(value, known[name])
            if problem:
                return problem
        elif not code_changes:  # an edit may declare a new hyperparameter; tracing will tell
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)
            return f"There is no hyperparameter {name!r}. Did you mean: {', '.join(nearest)}?"
    return None


def _value_problem(value: Scalar, known: Hyperparameter) -> str | None:
    kind = type(known.value)
    if type(value) is not kind:
        return f"{known.name} is {kind.__name__}, and {value!r} is not."
    if known.choices and value not in known.choices:
        return f"{known.name} is one of {', '.join(map(repr, known.choices))}, and {value!r} is not."
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if is_fixed(known):
        return f"{known.name} is the laboratory's own and stays {known.value}."
    if not math.isfinite(value):
        return f"{known.name} must be finite."
    if (known.low is not None and value < known.low) or (known.high is not None and value > known.high):
        return f"{known.name} = {value} is outside its bounds, {known.low} to {known.high}."
    return None


def _typed(value: Scalar, known: Hyperparameter) -> Scalar:
    """`value` in the type of `known` where nothing is lost: 3.0 for 3, 1 for 1.0."""
    if isinstance(value, bool) or isinstance(known.value, bool):
        return value
    if isinstance(known.value, float) and isinstance(value, int):
        return float(value)
    if isinstance(known.value, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _no_change(
    proposal: Proposal, candidate: Candidate, parent: Candidate, hyperparameters: tuple[Hyperparameter, ...]
) -> str | None:
    before = {each.name: each.value for each in hyperparameters}
    same_values = all(name in before and before[name] == value for name, value in proposal.config.items())
    if same_values and candidate.files == parent.files:
        return f"This changes nothing: experiment {proposal.parent} has these values and this source already."
    return None


def _repetition(proposal: Proposal, candidate: Candidate, view: StudyView) -> str | None:
    values = values_of(view)
    wanted = {**values[0], **candidate.config}
    for each in view.experiments:
        earlier = each.proposal
        if each.verdict in (Verdict.INFRASTRUCTURE, Verdict.DUPLICATE):
            continue  # the first was never tried, the second repeats one that stands before it
        if earlier is not None and earlier.edits == proposal.edits and earlier.config == proposal.config:
            if proposal.edits:
                return f"Experiment {each.number} made exactly these changes ({_outcome(each)}). Try another."
            if earlier.parent == proposal.parent:
                return f"Experiment {each.number} set exactly these values ({_outcome(each)}). Try another."
        if values[each.number] == wanted and view.candidate(each.number).files == candidate.files:
            return f"Experiment {each.number} had exactly this source and these values ({_outcome(each)}). Try another."
    return None


def _outcome(experiment: Experiment) -> str:
    return str(experiment.verdict or "pending")
