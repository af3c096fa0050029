"""Plain text: what a stranger wrote, without the characters that could drive a terminal or hide what a line says."""

from __future__ import annotations

import unicodedata

_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Control, format (bidirectional overrides, zero widths), surrogate, private, unassigned; line and paragraph marks."""


def plain_text(text: str) -> str:
    """`text` with newlines kept, tabs as spaces, and every other control or format character dropped.

    >>> plain_text("a\\x1b[31mb\\u202ec\\td")
    'a[31mbc d'
    """
    spaced = text.replace("\r\n", "\n").replace("\t", " ")
    return "".join(each for each in spaced if each == "\n" or unicodedata.category(each) not in _DROPPED)


def plain_line(text: str) -> str:
    """`text` as one line of plain text, runs of white space made one space.

    >>> plain_line("wider\\n\\tand  deeper")
    'wider and deeper'
    """
    return " ".join(plain_text("".join("\n" if each in "\v\f\r\x85\u2028\u2029" else each for each in text)).split())
