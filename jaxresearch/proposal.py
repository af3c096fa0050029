"""Proposal: what a strategy asks for. Candidate: a proposal applied to a parent. Pure data, no I/O."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxresearch.errors import JaxresearchError
from jaxresearch.text import clean

Scalar = bool | int | float | str

SUBJECT_FOLDER = "models"
"""The only folder of a candidate that a proposal may change."""
MAX_SOURCE_CHARACTERS = 1_000_000
"""Of all files of a candidate together."""
_MAX_SETTINGS, _MAX_SETTING = 500, 200
_MAX_PATH = 200
_PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)
"""A path is shown to people and to models, and goes into commands: it may not read as a sentence, as markup, as a pattern,
and letters of other alphabets look like ours."""
_ENCODING = re.compile(
    r"(?:[ \t\f]*(?:#[^\r\n]*)?(?:\r\n?|\n))?[ \t\f]*#[^\r\n]*?coding[:=](?![ \t]*utf-?8(?![-\w.]))", re.IGNORECASE
)
"""A comment in the first two lines by which Python would read other text than everybody else (PEP 263): in UTF-7, code
can stand in what anyone takes for a comment."""


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no file or database can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds a lone surrogate, which is no Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Edit(BaseModel):
    """Replace the one place in `path` that reads exactly `search`. An empty `search` creates a new file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Text
    search: Text
    replace: Text


class Note(BaseModel):
    """A lesson that a strategy writes down with a proposal. The ledger is its notebook: it has no other memory.

    topic: what it is about; a later note on the same topic replaces it, and one with an empty text retires it.
    experiments: the numbers of those that support it. helps: whether the topic helps; None when that is not the point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: Text
    text: Text = ""
    experiments: tuple[int, ...] = ()
    helps: bool | None = None


class Proposal(BaseModel):
    """A hypothesis plus a config change, a code change, or both, on top of a parent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: int = Field(description="id of the experiment that this one builds upon")
    hypothesis: Text
    expected_effect: Text = ""
    config: dict[Text, Scalar] = Field(default_factory=dict, description="hyperparameters to set")
    edits: tuple[Edit, ...] = ()
    tag: Text = Field(default="", description="a short stable name of the idea, if the proposer has one")
    predicted_bpb: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="expected change of val_bpb against the parent; below 0 is better",
    )
    confidence: float | None = Field(default=None, ge=0, le=1, description="expected chance to be kept")
    notes: tuple[Note, ...] = Field(default=(), description="lessons from earlier experiments")
    repairs: int | None = Field(default=None, description="the crashed experiment whose idea this is, once more")


@dataclass(frozen=True)
class Hyperparameter:
    """One field of the subject's hyperparameters, as its manifest states it.

    `traced` ones are runtime inputs: changing them compiles nothing. `low` and `high` are bounds for search; `log` says
    that steps should be ratios. `choices` lists the values of one that is not a number.
    """

    name: str
    value: Scalar
    low: float | None = None
    high: float | None = None
    log: bool = False
    traced: bool = False
    choices: tuple[Scalar, ...] = ()
    doc: str = ""


@dataclass(frozen=True)
class Candidate:
    """A source tree (path -> text, all paths below `models/`) and the hyperparameters set on top of its defaults."""

    files: Mapping[str, str]
    config: Mapping[str, Scalar] = field(default_factory=dict)


class EditError(JaxresearchError):
    """An edit that cannot be applied. The message is written for whoever proposed it, to repair it from."""


def apply(proposal: Proposal, parent: Candidate) -> Candidate:
    """The candidate that `proposal` makes of `parent`. Raises `EditError` for the first edit that does not apply."""
    files = dict(parent.files)
    for edit in proposal.edits:
        path = checked_path(edit.path)
        files[path] = _edited(path, files.get(path), edit)
        if _ENCODING.match(files[path]):
            raise EditError(f"{path} declares an encoding, and sources are UTF-8.", fix="Leave the declaration out.")
        if any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in files):
            raise EditError(f"{path} cannot be a file and a folder at once.", fix="Choose another name.")
        if any(other != path and other.lower() == path.lower() for other in files):
            raise EditError(f"{path} differs only in case from another file.", fix="Choose another name.")
    if sum(map(len, files.values())) > MAX_SOURCE_CHARACTERS:
        raise EditError(f"the candidate would be larger than {MAX_SOURCE_CHARACTERS:,} characters.", fix="Write less.")
    return Candidate(files=files, config={**parent.config, **proposal.config})


def config_problem(config: Mapping[str, Scalar]) -> str | None:
    """Why `config` cannot be hyperparameters, whatever the subject declares; None when it can.

    Names and values are shown to people and to models, and written as JSON: names are Python's, numbers finite and of 64
    bits, texts short and without hidden characters.
    """
    if len(config) > _MAX_SETTINGS:
        return f"more than {_MAX_SETTINGS} hyperparameters are set"
    for name, value in config.items():
        if not (name.isidentifier() and name.isascii() and len(name) <= _MAX_SETTING):
            return f"{name[:60]!a} is no name of a hyperparameter"
        if isinstance(value, str) and not (len(value) <= _MAX_SETTING and clean(value) == value):
            return f"the text for {name} is longer than {_MAX_SETTING} characters, or holds hidden ones"
        if not isinstance(value, str) and not abs(value) < 2**63:  # which no NaN is, either
            return f"the number for {name} is not finite, or too large"
    return None


def checked_path(path: str) -> str:
    """`path` in normal form, or `EditError` when it is not a Python file of the subject."""
    normal = posixpath.normpath(path)
    inside = normal.startswith(f"{SUBJECT_FOLDER}/") and ".." not in normal.split("/")
    plain = _PLAIN_PATH.fullmatch(path) is not None
    hidden = any(part.startswith(".") for part in normal.split("/"))
    long = len(normal.encode(errors="replace")) > _MAX_PATH
    if path.startswith("/") or not inside or not plain or hidden or long or not normal.endswith(".py"):
        raise EditError(
            f"{path[:_MAX_PATH]!r} is not the subject: only .py files under {SUBJECT_FOLDER}/ may change.",
            fix=f"Edit a file under {SUBJECT_FOLDER}/; names are of ASCII letters, digits, _, - and dots.",
        )
    return normal


def _edited(path: str, text: str | None, edit: Edit) -> str:
    if text is None:
        if edit.search:
            raise EditError(f"{path} does not exist.", fix="To create it, leave `search` empty.")
        return edit.replace
    if not edit.search:
        raise EditError(f"{path} exists already.", fix="To change it, give the text to replace as `search`.")
    found = text.count(edit.search)
    if found == 1:
        return text.replace(edit.search, edit.replace)
    if found > 1:
        places = ", ".join(str(number) for number in _line_numbers(text, edit.search))
        raise EditError(
            f"`search` occurs {found} times in {path}, at lines {places}.",
            fix="Add surrounding lines until it occurs once.",
        )
    raise EditError(
        f"`search` does not occur in {path}. The nearest lines are:\n{_nearest(text, edit.search)}",
        fix="\nCopy the text to replace exactly, with its indentation.",
    )


def _line_numbers(text: str, search: str) -> list[int]:
    numbers, start = [], text.find(search)
    while start >= 0:
        numbers.append(text.count("\n", 0, start) + 1)
        start = text.find(search, start + 1)
    return numbers


def _nearest(text: str, search: str) -> str:
    """The window of `text` most like `search`, with line numbers. Bounded: comparing is quadratic, and text is anyone's."""
    lines = [line[:200] for line in text.splitlines()[:4000]]
    wanted = [line[:200] for line in search.strip("\n").splitlines()] or [""]
    size = min(len(wanted), 30)
    windows = range(max(1, len(lines) - size + 1))
    target = "\n".join(wanted[:size])

    def likeness(start: int) -> float:
        matcher = difflib.SequenceMatcher(None, "\n".join(lines[start : start + size]), target, autojunk=False)
        return matcher.quick_ratio()

    best = sorted(windows, key=likeness, reverse=True)[:8]
    start = max(
        best, key=lambda at: difflib.SequenceMatcher(None, "\n".join(lines[at : at + size]), target).ratio(), default=0
    )
    return "\n".join(f"{number + 1}: {lines[number]}" for number in range(start, min(start + size, len(lines))))
