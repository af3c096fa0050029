"""The manifest: what a prepared corpus is made of. `corpus.json` in its folder."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxresearch.data.corpus import Split
from jaxresearch.errors import JaxresearchError

FORMAT_VERSION = 1
"""Grows with any change of splits, files or packing; folders of another version are prepared anew."""

MANIFEST_FILE = "corpus.json"
TOKENIZER_FILE = "tokenizer.json"
BYTE_LENGTHS_FILE = "byte_lengths.npy"
SPLIT_FOLDERS: dict[Split, str] = {"train": "train", "validation": "validation", "test": "sealed/test"}
"""The test split has a place of its own, so that whoever must not see it can be given the rest."""
ROWS_FOLDERS: dict[Split, str] = {"train": "rows", "validation": "rows", "test": "sealed/rows"}
SEALED = "sealed/"


class SplitFacts(BaseModel):
    """documents, text_bytes: of UTF-8; tokens: BOS not counted; shards: names within the split's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    text_bytes: int
    tokens: int
    shards: tuple[str, ...]


class FileFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int
    sha256: str


class HubFacts(BaseModel):
    """Which files of which dataset: `commit` is what `revision` was; files: path -> size and SHA-256, in reading order.

    held_out: the paths that validation and test come from; train: those of training text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    revision: str
    commit: str
    held_out: tuple[str, ...]
    train: tuple[str, ...]
    files: dict[str, FileFacts]


class Manifest(BaseModel):
    """name, source: what was read, and as what kind; no path, so that equal texts have equal manifests.

    fingerprint: "sha256:..." of the documents' SHA-256s in order, split by split. It names the text.
    tokenizer: "sha256:..." of tokenizer.json.
    ignored_files: files of the folder that were no text; they were left out.
    python: the interpreter that prepared it; the standard library differs between builds.
    files: path in the folder -> size and SHA-256, for all files but this one and the packed rows.
    hub: where the text was fetched from; None for text of this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    name: str
    source: str
    fingerprint: str
    tokenizer: str
    vocab_size: int
    ignored_files: int
    python: str
    splits: dict[Split, SplitFacts]
    files: dict[str, FileFacts]
    hub: HubFacts | None = None

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Raises JaxresearchError when `folder` holds no corpus, or one of another format version."""
        again = "Run `jaxresearch prepare` again."
        try:
            content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            version = content.get("format_version")
            if version != FORMAT_VERSION:
                raise JaxresearchError(f"{folder} has format version {version}, not {FORMAT_VERSION}.", fix=again)
            return cls.model_validate(content)
        except FileNotFoundError:
            raise JaxresearchError(f"{folder} holds no prepared corpus.", fix=again) from None
        except (OSError, ValueError, AttributeError, ValidationError) as error:
            first = str(error).splitlines()[0].rstrip(".")
            raise JaxresearchError(f"{folder / MANIFEST_FILE} is not readable: {first}.", fix=again) from None


def this_python() -> str:
    """Such as "CPython 3.11.7 linux": the implementation, version and platform of the running interpreter."""
    return f"{platform.python_implementation()} {platform.python_version()} {sys.platform}"
