"""What several rooms' tests share: one small corpus, one sandbox, one warm worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is LLVM's. Here it optimises nothing; XLA's own passes, and what a program means, stay as they are.
# `XLA_FLAGS= make test` compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxresearch.data import Corpus, prepare
from jaxresearch.sandbox import Sandbox, choose_sandbox
from tests.data.texts import make_texts, write_jsonl
from tests.laboratory import BASELINE, VOCAB_SIZE, Laboratory, tiny_config

hypothesis.settings.register_profile("busy", deadline=None)  # a machine may be slow; no test asserts a time
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """JAXRESEARCH_CACHE of the whole test session."""
    root = tmp_path_factory.mktemp("jaxresearch-cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("JAXRESEARCH_CACHE", str(root))
    yield root
    patch.undo()


@pytest.fixture(scope="session")
def tiny_corpus(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    source = write_jsonl(tmp_path_factory.mktemp("tiny") / "tiny.jsonl", make_texts(400))
    return prepare(source, VOCAB_SIZE, cache_root)


@pytest.fixture(scope="session")
def config_file(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file of a study whose runs take a fraction of a second."""
    folder = tmp_path_factory.mktemp("config")
    text = write_jsonl(folder / "tiny.jsonl", make_texts(400))
    settings = tiny_config(experiments=3).model_dump(mode="json", exclude_none=True)
    settings["corpus"]["source"] = str(text)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def sandbox(runner: asyncio.Runner) -> Sandbox:
    """The strongest tier that holds here."""
    return runner.run(choose_sandbox())


@pytest.fixture(scope="session")
def make_laboratory(
    runner: asyncio.Runner, tiny_corpus: Corpus, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Laboratory]]:
    """Laboratories with settings of their own; each costs the start of a worker."""
    made: list[Laboratory] = []

    def make(**changes: Any) -> Laboratory:
        root = tmp_path_factory.mktemp("laboratory")
        made.append(Laboratory(runner, tiny_config(**changes), tiny_corpus, sandbox, root))
        return made[-1]

    yield make
    for laboratory in made:
        laboratory.close()


@pytest.fixture(scope="session")
def laboratory(make_laboratory: Callable[..., Laboratory]) -> Laboratory:
    """The one that tests share while they leave it in order."""
    return make_laboratory()


@pytest.fixture(scope="session")
def baseline(laboratory: Laboratory):
    """The honest subject, traced."""
    return laboratory.traced(BASELINE)
