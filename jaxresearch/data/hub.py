"""Corpora of the hub: which files of which dataset they are, at one commit, each under its SHA-256.

What the hub said is recorded beside the files at the first look. From then on the record rules: further shards come
from the same commit, and a file whose SHA-256 is no longer the recorded one is refused.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxresearch.data.cache import locked, sync
from jaxresearch.data.corpus import OnProgress, Source
from jaxresearch.data.fetch import Wanted, fetch
from jaxresearch.data.manifest import FileFacts, HubFacts
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.text import one_line

RECORD_FILE = "hub.json"
_PATHS_A_REQUEST = 500


@dataclass(frozen=True)
class HubDataset:
    """repo: OWNER/NAME. train, held_out: patterns of paths; what fits both is held out for validation and test."""

    repo: str
    train: str
    held_out: str


HUB_DATASETS = {
    "tinystories": HubDataset("roneneldan/TinyStories", "data/train-*.parquet", "data/validation-*.parquet"),
    "climbmix": HubDataset("karpathy/climbmix-400b-shuffle", "shard_*.parquet", "shard_06542.parquet"),
}


class _Record(BaseModel):
    """What the hub said: the commit of `revision`, its paths, and the facts of those that were wanted so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    revision: str
    commit: str
    paths: tuple[str, ...]
    files: dict[str, FileFacts]


class HubCorpus:
    """Some shards of a dataset. `facts` says which; `source` fetches what is missing of them, and reads them.

    name: a key of `HUB_DATASETS`. shards: of training text, from the first on. repo, revision: instead of the
    dataset's own repository, and of `main`. root: the cache.
    """

    def __init__(self, name: str, shards: int, repo: str | None, revision: str | None, root: Path) -> None:
        dataset = HUB_DATASETS[name]
        self.name, self._dataset, self._shards, self.root = name, dataset, shards, root
        self._repo, self._revision = repo or dataset.repo, revision or "main"
        self._place = re.sub(r"[^\w.@-]", "-", f"{self._repo}@{self._revision}".replace("/", "--"))
        self.folder = root / "hub" / self._place

    @cached_property
    def facts(self) -> HubFacts:
        """Taken from the record; the hub is asked only for what is not in it. Raises JaxresearchError."""
        record = self._recorded()
        if record is None or not self._wanted(record.paths) <= record.files.keys():
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.root, f"hub-{self._place}"):
                record = self._ask(self._recorded())
        held_out, train = self._choose(record.paths)
        return HubFacts(
            repo=record.repo,
            revision=record.revision,
            commit=record.commit,
            held_out=held_out,
            train=train,
            files={path: record.files[path] for path in (*held_out, *train)},
        )

    def source(self, on_progress: OnProgress) -> Source:
        """The files, fetched where they are not here yet, as something to read documents from."""
        wanted = [Wanted(path, self._url(path), facts) for path, facts in self.facts.files.items()]
        with locked(self.root, f"hub-{self._place}"), self._told():
            fetch(wanted, self.folder, on_progress)
        return Source(
            name=self.name,
            kind="hub",
            root=self.folder,
            files=tuple(self.folder / path for path in self.facts.files),
            size_bytes=sum(file.size_bytes for file in self.facts.files.values()),
            held_out=tuple(self.folder / path for path in self.facts.held_out),
        )

    def _choose(self, paths: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(held out, training) paths among those that the dataset has."""
        held_out = tuple(sorted(path for path in paths if _fits(path, self._dataset.held_out)))
        train = tuple(sorted({path for path in paths if _fits(path, self._dataset.train)} - set(held_out)))
        if not held_out or not train:
            lacking = self._dataset.train if held_out else self._dataset.held_out
            raise JaxresearchError(
                f"{self._repo} has no file {lacking} at {self._revision}, so it is no {self.name}.",
                fix="Check corpus.repo and corpus.revision.",
            )
        if self._shards > len(train):
            raise ConfigurationError(
                f"corpus.shards: {self._shards} is more than the {len(train)} training shards of {self.name}.",
                fix="Lower it.",
            )
        return held_out, train[: self._shards]

    def _wanted(self, paths: Sequence[str]) -> set[str]:
        held_out, train = self._choose(paths)
        return {*held_out, *train}

    def _recorded(self) -> _Record | None:
        path = self.folder / RECORD_FILE
        try:
            return _Record.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise JaxresearchError(
                f"{path} is not readable: {one_line(str(error), 120)}", fix=f"Delete {self.folder} to fetch it anew."
            ) from None

    def _ask(self, record: _Record | None) -> _Record:
        """The record with all that is wanted, from the hub and onto the disk."""
        with self._told():
            if record is None:
                info = self._api.dataset_info(self._repo, revision=self._revision)
                paths = tuple(sibling.rfilename for sibling in info.siblings or ())
                record = _Record(repo=self._repo, revision=self._revision, commit=str(info.sha), paths=paths, files={})
            found = dict(self._listed(sorted(self._wanted(record.paths)), record.commit))
        for path, facts in found.items():
            known = record.files.get(path, facts)
            if known != facts:
                raise JaxresearchError(
                    f"{path} of {self._repo} was changed on the hub: its SHA-256 was {known.sha256[:12]}... and is now "
                    f"{facts.sha256[:12]}...",
                    fix=f"Scores would not be comparable. To start again from what is there now, delete {self.folder}.",
                )
        record = record.model_copy(update={"files": {**record.files, **found}})
        draft = self.folder / f".{RECORD_FILE}"
        draft.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        sync(draft)
        draft.rename(self.folder / RECORD_FILE)
        return record

    def _listed(self, paths: list[str], commit: str) -> Iterator[tuple[str, FileFacts]]:
        missing = set(paths)
        for start in range(0, len(paths), _PATHS_A_REQUEST):
            some = paths[start : start + _PATHS_A_REQUEST]
            for info in self._api.get_paths_info(self._repo, some, revision=commit, repo_type="dataset"):
                lfs = getattr(info, "lfs", None)
                if lfs is None:
                    raise JaxresearchError(
                        f"the hub knows no SHA-256 of {info.path} in {self._repo}: it is no LFS file.",
                        fix="Name another corpus.repo.",
                    )
                missing.discard(info.path)
                yield info.path, FileFacts(size_bytes=lfs.size, sha256=lfs.sha256)
        if missing:
            raise JaxresearchError(
                f"{self._repo} has no {min(missing)} at {commit[:12]} any more.",
                fix=f"To start again from what is there now, delete {self.folder}.",
            )

    def _url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self._repo, path, repo_type="dataset", revision=self.facts.commit, endpoint=self._api.endpoint
        )

    @cached_property
    def _api(self) -> Any:
        """The library's client. HF_ENDPOINT is read now, not when the library was imported; so is HF_TOKEN."""
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise JaxresearchError(
                f"{self.name} comes from the hub, and huggingface_hub is not installed.",
                fix="pip install 'jaxresearch[hub]', or choose another --corpus, such as python-stdlib.",
            ) from None
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns whatever the client raises into one line."""
        endpoint = self._api.endpoint
        from huggingface_hub import errors

        try:
            yield
        except JaxresearchError:
            raise
        except errors.RevisionNotFoundError:
            raise JaxresearchError(
                f"{self._repo} has no revision {self._revision} on the hub, or its recorded commit is gone.",
                fix=f"Check corpus.revision; to start again from what is there now, delete {self.folder}.",
            ) from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise JaxresearchError(
                f"the hub at {endpoint} shows no dataset {self._repo}.",
                fix="Check corpus.repo; a private or gated one needs HF_TOKEN.",
            ) from None
        except errors.HfHubHTTPError as error:
            raise JaxresearchError(
                f"the hub at {endpoint} answered {error.response.status_code}.",
                fix="Run the same command later: what has arrived is kept.",
            ) from None
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError):
                raise  # the disk's, not the hub's
            raise self._unreachable(endpoint, error) from None
        except Exception as error:  # the transport's own; which library that is changes with the client's version
            if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
                raise
            raise self._unreachable(endpoint, error) from None

    def _unreachable(self, endpoint: str, error: Exception) -> JaxresearchError:
        return JaxresearchError(
            f"the hub at {endpoint} cannot be reached: {one_line(str(error), 120).rstrip('.') or type(error).__name__}.",
            fix="Check the network and run the same command again: what has arrived is kept. Or choose another --corpus, "
            "such as python-stdlib.",
        )


def _fits(path: str, pattern: str) -> bool:
    """Whether a path of the hub fits; a star stands for no slash, so that no path leads out of our folder."""
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)
