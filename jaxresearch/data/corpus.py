"""Reading documents: from the standard library of the running Python, or from a user's files.

A document is a piece of text with a key. The key alone decides the split; the text is taken as it is, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from jaxresearch.data.formats import READERS, read_source_code
from jaxresearch.errors import ConfigurationError, JaxresearchError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

PYTHON_STDLIB = "python-stdlib"
NAMES = (PYTHON_STDLIB, "tinystories", "climbmix")
"""What `corpus.source` may be beside a path; those after the first come from the hub (`hub.py`)."""
MINIMUM_SPLIT_BYTES = 2_000
"""Text that each split needs: a thousand tokens or so, a few rows of a short context."""

OnProgress = Callable[[str, float], None]
"""Called with a stage and the part of it that is done, 0 to 1."""

_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


def no_progress(stage: str, done: float) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True)
class Document:
    """key: names the document within its source; text: never empty; sha256: of the text's UTF-8 bytes."""

    key: str
    text: str
    sha256: bytes
    size_bytes: int
    split: Split


def split_of(key: str) -> Split:
    """90 % train, 5 % validation, 5 % test, by the first 8 bytes of the key's SHA-256.

    >>> split_of("json/decoder.py")
    'train'
    """
    position = _position(key)
    return "train" if position < 0.90 else "validation" if position < 0.95 else "test"


def held_out_split_of(key: str) -> Split:
    """Half validation, half test: for the documents of a file that was held out as a whole."""
    return "validation" if _position(key) < 0.5 else "test"


def _position(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True)
class Source:
    """Files to read documents from. `documents` may be called again and again; it streams, one file at a time.

    name: short and fit for a file name.
    root: the folder that keys are relative to.
    files: in the order in which they are read.
    size_bytes: of all files together.
    ignored: how many files of `root` are no text that we read.
    held_out: the first of `files`, where those are all that validation and test come from, and the others are all
        training text; else none, and keys decide in each file.
    """

    name: str
    kind: Literal["python-stdlib", "file", "folder", "hub"]
    root: Path
    files: tuple[Path, ...]
    size_bytes: int
    ignored: int = 0
    held_out: tuple[Path, ...] = ()

    @property
    def location(self) -> Path:
        """What to name in an error."""
        return self.files[0] if self.kind == "file" else self.root

    @property
    def sample(self) -> Source:
        """What the tokenizer learns from: everything; of held-out files and training shards, the first shard's text.

        So the tokenizer does not depend on how many shards there are.
        """
        if not self.held_out:
            return self
        files = self.files[: len(self.held_out) + 1]
        return replace(self, files=files, size_bytes=_total_bytes(files))

    def documents(self, on_progress: OnProgress = no_progress, stage: str = "read") -> Iterator[Document]:
        """All documents, no two of the same text: the first key in order keeps it, so no text is in two splits.

        Where files are held out, only their texts are remembered: memory does not grow with the training shards, no
        text of theirs is in training, and a text that training shards repeat stays repeated.
        Raises JaxresearchError, naming the file, for one that cannot be read as text.
        """
        seen: set[bytes] = set()
        done_bytes, end_bytes, shown = 0, 0, 0.0
        for path in self.files:
            held_out = path in self.held_out
            end_bytes += path.stat().st_size if path.exists() else 0
            for key, text in self._texts(path):
                encoded = text.encode()
                sha256 = hashlib.sha256(encoded).digest()
                if encoded and sha256 not in seen:
                    if held_out or not self.held_out:
                        seen.add(sha256)
                    yield Document(key, text, sha256, len(encoded), self._split(key, held_out))
                done_bytes = min(done_bytes + len(encoded), end_bytes)  # an estimate: compressed files hold more
                done = min(0.99, done_bytes / max(1, self.size_bytes))
                if done >= shown + 0.01:
                    on_progress(stage, done)
                    shown = done
        on_progress(stage, 1.0)

    def _split(self, key: str, held_out: bool) -> Split:
        if not self.held_out:
            return split_of(key)
        return held_out_split_of(key) if held_out else "train"

    def _texts(self, path: Path) -> Iterator[tuple[str, str]]:
        relative = path.relative_to(self.root).as_posix()
        try:
            if self.kind == "python-stdlib":
                yield from ((relative, text) for text in read_source_code(path))
                return
            for index, text in enumerate(READERS[path.suffix.lower()](path)):
                yield f"{relative}#{index}", text
        except OSError as error:
            raise JaxresearchError(
                f"cannot read {path}: {error.strerror or error}.", fix="Check that it exists and that you may read it."
            ) from None


def find_source(spec: str | Path) -> Source:
    """The source that `corpus.source` names: `python-stdlib`, a file, or a folder (read recursively, sorted by path).

    Raises ConfigurationError where there is no such path or nothing of a known format, and JaxresearchError where a
    folder cannot be listed.
    """
    if str(spec) == PYTHON_STDLIB:
        return _python_stdlib(Path(sysconfig.get_path("stdlib")))
    path = Path(spec).expanduser()
    known = ", ".join(READERS)
    try:
        if path.is_dir():
            return _folder(path.resolve())
        if path.is_file():
            if path.suffix.lower() not in READERS:
                raise ConfigurationError(f"corpus.source: {path} is not one of {known}.", fix="Convert or rename it.")
            path = path.parent.resolve() / path.name
            return Source(_slug(path.stem), "file", path.parent, (path,), path.stat().st_size)
    except OSError as error:
        raise JaxresearchError(f"cannot read {path}: {error.strerror or error}.", fix="Check that you may.") from None
    wrong = "is neither a file nor a folder" if path.exists() else "does not exist"
    raise ConfigurationError(
        f"corpus.source: {path} {wrong}.", fix=f"Give {', '.join(NAMES)}, a file ({known}), or a folder of such files."
    )


def _python_stdlib(root: Path) -> Source:
    files = []
    for path in _walk(root):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if path.suffix == ".py" and not path.name.startswith("test_") and _NOT_LIBRARY.isdisjoint(relative.parts):
            files.append(path)
    if not files:
        raise JaxresearchError(
            f"this Python has no standard library sources at {root}.",
            fix="Give a path to text of your own as --corpus, or use a Python that ships its .py files.",
        )
    return Source(PYTHON_STDLIB, "python-stdlib", root, tuple(files), _total_bytes(files))


def _folder(root: Path) -> Source:
    paths = _walk(root)
    files = [path for path in paths if path.suffix.lower() in READERS and not path.name.startswith(".")]
    ignored = len(paths) - len(files)
    if not files:
        holds = f"none of its {ignored} files is" if ignored else "it is empty: no file is"
        raise ConfigurationError(
            f"corpus.source: nothing to read in {root}: {holds} {', '.join(READERS)}.", fix="Name another folder."
        )
    return Source(_slug(root.name), "folder", root, tuple(files), _total_bytes(files), ignored)


def _walk(root: Path) -> list[Path]:
    """All files below `root`, sorted by relative posix path; hidden folders and links to folders are not entered."""

    def refuse(error: OSError) -> None:
        raise JaxresearchError(f"cannot read {error.filename}: {error.strerror}.", fix="Check that you may.") from None

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [path for name in names if (path := Path(folder, name)).is_file()]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _total_bytes(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:40] or "text"
