"""The size of a candidate's sources: what makes one simpler than another, and what a constraint on lines counts.

Comments, blank lines and docstrings are not code. Joining lines makes fewer of them but no fewer tokens, so both are
counted; only candidates that have less of both are simpler by their code. Where text can be run as code, a comment, a
docstring or one long string may be all of the model: there each character counts as a token, and each line as code.

Sources are read as Python reads them. A carriage return ends a line, and so a comment; names in other letters of the same
meaning (a fullwidth `exec`) are the same names; what stands in braces of an f-string is code.
"""

from __future__ import annotations

import io
import re
import tokenize
import unicodedata
from collections import Counter
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from jaxresearch.proposal import Candidate

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_RUN_TEXT = frozenset(
    "exec eval compile __import__ importlib runpy builtins __builtins__ __globals__ globals locals vars pickle marshal "
    "codeop get_type_hints __subclasses__".split()
)
"""Names by which Python runs text, or comes by what does."""
_FORMATTED = re.compile(r"[rR]?[fF][rR]?['\"]")
_WORD = re.compile(r"\w+|[^\w\s]")


class CodeSize(BaseModel):
    """lines, tokens: of code, in all files. lines_added: lines of code that the baseline does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: int
    tokens: int
    lines_added: int


def code_size(candidate: Candidate, baseline: Candidate) -> CodeSize:
    """The size of `candidate`. A line that only moved, or whose indentation changed, is not added."""
    lines, tokens = _code(candidate)
    known, _ = _code(baseline)
    return CodeSize(lines=lines.total(), tokens=tokens, lines_added=(lines - known).total())


def _code(candidate: Candidate) -> tuple[Counter[str], int]:
    lines: Counter[str] = Counter()
    tokens = 0
    runs_text = any(map(_runs_text, candidate.files.values()))
    for text in candidate.files.values():
        found, count = (_text_lines(text), len(text)) if runs_text else _code_lines(text)
        lines.update(found)
        tokens += count
    return lines, tokens


@lru_cache(maxsize=64)
def _code_lines(text: str) -> tuple[tuple[str, ...], int]:
    """The stripped lines of `text` that hold code, and its tokens. What is no Python counts line by line, word by word."""
    rows, tokens, statement = set(), 0, []
    text = _as_python_reads(text)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in _LAYOUT:
                statement.append(token)
            elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
                if any(each.type != tokenize.STRING or _is_formatted(each) for each in statement):  # else a docstring
                    tokens += sum(map(_weight, statement))
                    rows |= {row for each in statement for row in range(each.start[0], each.end[0] + 1)}
                statement = []
    except (tokenize.TokenError, SyntaxError, RecursionError):
        return _text_lines(text), len(text.split())
    lines = io.StringIO(text).readlines()
    return tuple(lines[row - 1].strip() for row in sorted(rows) if row <= len(lines)), tokens


def _as_python_reads(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_formatted(token: tokenize.TokenInfo) -> bool:
    """Whether it is a whole f-string; from Python 3.12 on these are tokens of their own."""
    return token.type == tokenize.STRING and _FORMATTED.match(token.string) is not None


def _weight(token: tokenize.TokenInfo) -> int:
    return len(_WORD.findall(token.string)) if _is_formatted(token) else 1


def _names_in(token: tokenize.TokenInfo) -> list[str]:
    words = _WORD.findall(token.string) if _is_formatted(token) else [token.string] * (token.type == tokenize.NAME)
    return [unicodedata.normalize("NFKC", word) for word in words]


def _text_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@lru_cache(maxsize=64)
def _runs_text(text: str) -> bool:
    try:
        tokens = tokenize.generate_tokens(io.StringIO(_as_python_reads(text)).readline)
        return any(name in _RUN_TEXT for each in tokens for name in _names_in(each))
    except (tokenize.TokenError, SyntaxError, RecursionError):
        return False  # it cannot be run itself
