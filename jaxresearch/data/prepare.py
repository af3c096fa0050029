"""Preparing: from a source of text to a corpus on disk that is there as a whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxresearch.data.cache import building, default_cache_root, file_sha256, locked, sweep
from jaxresearch.data.corpus import (
    MINIMUM_SPLIT_BYTES,
    SPLITS,
    Document,
    OnProgress,
    Source,
    Split,
    find_source,
    no_progress,
)
from jaxresearch.data.dataset import Corpus
from jaxresearch.data.hub import HUB_DATASETS, HubCorpus
from jaxresearch.data.manifest import (
    BYTE_LENGTHS_FILE,
    MANIFEST_FILE,
    SPLIT_FOLDERS,
    TOKENIZER_FILE,
    FileFacts,
    HubFacts,
    Manifest,
    SplitFacts,
    this_python,
)
from jaxresearch.data.shards import ShardWriter
from jaxresearch.data.tokenizer import Tokenizer
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.files import refuse_bytes

if TYPE_CHECKING:
    from jaxresearch.config import StudyConfig

_BATCH_BYTES = 2_000_000


def prepare_corpus(
    config: StudyConfig, on_progress: OnProgress = no_progress, begun_with: tuple[str, str] | None = None
) -> Corpus:
    """The corpus of a study, in the default cache, with the rows of the study's context packed.

    begun_with: fingerprints of the text and the tokenizer that a study began with. Where the source is gone, or gives
    others, and the cache holds a corpus with these, that one is taken.
    """
    settings = config.corpus
    corpus, problem = None, None
    try:
        corpus = prepare(
            settings.source,
            settings.vocab_size,
            on_progress=on_progress,
            shards=settings.shards,
            repo=settings.repo,
            revision=settings.revision,
        )
    except JaxresearchError as error:
        problem = error
    found = (corpus.fingerprint, corpus.tokenizer_fingerprint) if corpus is not None else None
    if begun_with not in (None, found) and (kept := _find_prepared(default_cache_root(), *begun_with)) is not None:
        on_progress("the text that the study began with, from the cache", 1.0)
        corpus = kept
    if corpus is None:
        assert problem is not None
        raise problem
    corpus.pack(config.context, on_progress)
    return corpus


def prepare(
    source: str | Path = "python-stdlib",
    vocab_size: int = 2048,
    cache_root: Path | None = None,
    on_progress: OnProgress = no_progress,
    *,
    shards: int = 1,
    repo: str | None = None,
    revision: str | None = None,
) -> Corpus:
    """The corpus of `source` with a tokenizer of `vocab_size`, built if the cache does not have it.

    source: a key of `HUB_DATASETS`, or as `find_source` takes it: then it is read and fingerprinted each time, so a
        changed text is another corpus. A corpus of the hub is known by the SHA-256s of its files.
    cache_root: `default_cache_root()` when None.
    on_progress: called with "fetch: ...", "read", "tokenizer" or "encode", and the part of that stage that is done.
    shards, repo, revision: of a corpus of the hub, see `HubCorpus`.

    Processes that prepare the same corpus at once take turns, and the later ones find it made. Raises JaxresearchError
    or ConfigurationError, each with one line, for text, a hub or a cache that will not do.
    """
    refuse_bytes(Path(source), "corpus.source")
    root = default_cache_root() if cache_root is None else Path(cache_root)
    try:
        if str(source) in HUB_DATASETS:
            return _from_hub(HubCorpus(str(source), shards, repo, revision, root), vocab_size, on_progress)
        for key, value in (("repo", repo), ("revision", revision)):
            if value is not None:
                raise ConfigurationError(
                    f"corpus.{key}: {source} does not come from the hub.",
                    fix=f"Leave it out, or choose one of {', '.join(HUB_DATASETS)} as corpus.source.",
                )
        return _from_files(find_source(source), root, vocab_size, on_progress)
    except OSError as error:
        raise JaxresearchError(
            f"cannot write to the cache at {root}: {error.strerror or error}.",
            fix="Make room, or point JAXRESEARCH_CACHE elsewhere.",
        ) from None


def _from_files(found: Source, root: Path, vocab_size: int, on_progress: OnProgress) -> Corpus:
    census = _take_census(found, on_progress)
    census.check_size(found)
    name = f"{found.name}-{census.fingerprint.removeprefix('sha256:')[:12]}-v{vocab_size}"

    def is_prepared() -> bool:
        return (corpus := _open_whole(root / name)) is not None and corpus.fingerprint == census.fingerprint

    def build(draft: Path) -> None:
        if _build(draft, found, vocab_size, None, on_progress) != census.fingerprint:
            raise JaxresearchError(f"{found.location} changed while it was read.", fix="Try again when it is at rest.")

    return _prepared(root, name, is_prepared, build)


def _from_hub(hub: HubCorpus, vocab_size: int, on_progress: OnProgress) -> Corpus:
    files = "".join(f"{facts.sha256} {path in hub.facts.held_out}\n" for path, facts in hub.facts.files.items())
    name = f"{hub.name}-{hashlib.sha256(files.encode()).hexdigest()[:12]}-v{vocab_size}"

    def is_prepared() -> bool:
        return (corpus := _open_whole(hub.root / name)) is not None and corpus.manifest.hub == hub.facts

    def build(draft: Path) -> None:
        _build(draft, hub.source(on_progress), vocab_size, hub.facts, on_progress)

    return _prepared(hub.root, name, is_prepared, build)


def _prepared(root: Path, name: str, is_prepared: Callable[[], bool], build: Callable[[Path], None]) -> Corpus:
    """`root/name`, built where it is not there whole."""
    if not is_prepared():  # asked before any lock, so that a read-only cache serves too
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        with locked(root, name):
            if not is_prepared():
                with building(root, name) as draft:
                    build(draft)
    return Corpus.open(root / name)


class _Count:
    """Running totals of one split; `digest` goes over its documents' SHA-256s in order."""

    def __init__(self) -> None:
        self.documents = 0
        self.text_bytes = 0
        self.digest = hashlib.sha256()

    def add(self, document: Document) -> None:
        self.documents += 1
        self.text_bytes += document.size_bytes
        self.digest.update(document.sha256)


class _Census:
    """How much text each split has, and the fingerprint of it all."""

    def __init__(self) -> None:
        self.splits: dict[Split, _Count] = {split: _Count() for split in SPLITS}

    def add(self, document: Document) -> None:
        self.splits[document.split].add(document)

    @property
    def fingerprint(self) -> str:
        lines = "".join(f"{split} {count.digest.hexdigest()}\n" for split, count in self.splits.items())
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"

    def check_size(self, source: Source) -> None:
        """Raises JaxresearchError when some split has too little text to score anything on."""
        documents = sum(count.documents for count in self.splits.values())
        text_bytes = sum(count.text_bytes for count in self.splits.values())
        if not text_bytes:
            raise JaxresearchError(f"{source.location} is empty: there is no text in it.", fix="Give some text.")
        for split, count in self.splits.items():
            if count.text_bytes < MINIMUM_SPLIT_BYTES:
                raise JaxresearchError(
                    f"{source.location} is too small: of its {text_bytes:,} bytes in {documents:,} documents, "
                    f"the {split} split got {count.text_bytes:,}, and {MINIMUM_SPLIT_BYTES:,} are needed.",
                    fix="Give at least 100 documents and about 200,000 bytes (one .txt file is cut into documents "
                    "when it is larger than 64 kB).",
                )


def _take_census(source: Source, on_progress: OnProgress) -> _Census:
    census = _Census()
    for document in source.documents(on_progress, "read"):
        census.add(document)
    return census


def _find_prepared(root: Path, fingerprint: str, tokenizer: str) -> Corpus | None:
    """A whole corpus in `root` of this text and tokenizer, whatever its name."""
    for path in sorted(root.glob(f"*/{MANIFEST_FILE}")):
        try:
            manifest = Manifest.load(path.parent)
        except JaxresearchError:
            continue
        if (manifest.fingerprint, manifest.tokenizer) == (fingerprint, tokenizer) and (
            found := _open_whole(path.parent)
        ):
            return found
    return None


def _open_whole(folder: Path) -> Corpus | None:
    try:
        corpus = Corpus.open(folder)
        corpus.check_bytes(sealed=True)
    except JaxresearchError:
        return None
    return corpus


def _build(folder: Path, source: Source, vocab_size: int, hub: HubFacts | None, on_progress: OnProgress) -> str:
    """Writes the corpus, a stream from end to end, and returns its fingerprint."""
    documents = source.sample.documents(on_progress, "tokenizer")
    tokenizer = Tokenizer.train((item.text for item in documents if item.split == "train"), vocab_size)
    tokenizer.save(folder / TOKENIZER_FILE)
    np.save(folder / BYTE_LENGTHS_FILE, tokenizer.byte_lengths)

    writers: dict[Split, ShardWriter] = {split: ShardWriter(folder / SPLIT_FOLDERS[split]) for split in SPLITS}
    census = _Census()
    try:
        for batch in _batches(source.documents(on_progress, "encode")):
            for document, tokens in zip(batch, tokenizer.encode_batch([item.text for item in batch]), strict=True):
                census.add(document)
                writers[document.split].add(tokens)
    finally:
        for writer in writers.values():
            writer.close()
    census.check_size(source)

    Manifest(
        name=source.name,
        source=source.kind,
        fingerprint=census.fingerprint,
        tokenizer=tokenizer.fingerprint,
        vocab_size=vocab_size,
        ignored_files=source.ignored,
        python=this_python(),
        splits={
            split: SplitFacts(
                documents=writer.documents,
                text_bytes=census.splits[split].text_bytes,
                tokens=writer.tokens,
                shards=tuple(writer.shards),
            )
            for split, writer in writers.items()
        },
        files={
            path.relative_to(folder).as_posix(): FileFacts(size_bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        hub=hub,
    ).save(folder)
    return census.fingerprint


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Runs of documents of a few megabytes, enough to keep every core of the tokenizer busy."""
    batch: list[Document] = []
    size_bytes = 0
    for document in documents:
        batch.append(document)
        size_bytes += document.size_bytes
        if size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
