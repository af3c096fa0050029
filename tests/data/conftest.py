"""One small corpus, prepared once for all tests that only read."""

from pathlib import Path

import pytest

from jaxresearch.data import Corpus, prepare

from .texts import VOCAB_SIZE, make_texts, write_jsonl


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("texts") / "tales.jsonl", make_texts(200))


@pytest.fixture(scope="session")
def corpus(texts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """For reading only."""
    return prepare(texts_file, VOCAB_SIZE, tmp_path_factory.mktemp("cache"))
