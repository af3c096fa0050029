import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxresearch.config import validate_config
from jaxresearch.data import Corpus, default_cache_root, open_sealed_test, prepare, prepare_corpus, unigram_bpb
from jaxresearch.data.shards import ShardWriter, read_documents
from jaxresearch.errors import ConfigurationError, JaxresearchError

from .texts import VOCAB_SIZE, make_texts, write_jsonl

KILLED_MIDWAY = """
import sys, time
from pathlib import Path
from jaxresearch.data import prepare

def stop(stage, done):
    if stage == "encode":
        print("here", flush=True)
        time.sleep(60)

prepare(sys.argv[1], 320, Path(sys.argv[2]), stop)
"""


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith(".lock-")]


def counting():
    stages = []
    return stages, lambda stage, done: stages.append(stage)


def test_a_corpus_holds_every_token_of_every_document_in_its_split(texts_file, corpus):
    texts = [json.loads(line)["text"] for line in texts_file.read_text().splitlines()]
    facts = corpus.manifest.splits
    assert sum(split.documents for split in facts.values()) == len(texts)
    assert sum(split.text_bytes for split in facts.values()) == sum(len(text.encode()) for text in texts)
    found = []
    for split, folder in [("train", "train"), ("validation", "validation"), ("test", "sealed/test")]:
        documents = list(read_documents(corpus.folder / folder, facts[split].shards))
        assert sum(map(len, documents)) == facts[split].tokens
        found += [corpus.tokenizer.decode(document) for document in documents]
    assert sorted(found) == sorted(texts)


def test_the_manifest_says_what_it_is(corpus):
    manifest = corpus.manifest
    assert corpus.folder.name == f"tales-{manifest.fingerprint[7:19]}-v{VOCAB_SIZE}"
    assert manifest.tokenizer == corpus.tokenizer.fingerprint == corpus.tokenizer_fingerprint
    assert manifest.files["tokenizer.json"].sha256 == manifest.tokenizer.removeprefix("sha256:")
    assert (corpus.byte_lengths == corpus.tokenizer.byte_lengths).all()
    assert (manifest.source, manifest.vocab_size, manifest.python) == ("file", VOCAB_SIZE, manifest.python)
    assert str(corpus.folder.parent) not in (corpus.folder / "corpus.json").read_text()


def test_the_same_text_is_a_cache_hit_and_a_changed_one_another_corpus(tmp_path):
    source, root = write_jsonl(tmp_path / "a.jsonl", make_texts(200)), tmp_path / "cache"
    first = prepare(source, VOCAB_SIZE, root)
    stages, on_progress = counting()
    assert prepare(source, VOCAB_SIZE, root, on_progress).folder == first.folder
    assert set(stages) == {"read"}
    assert prepare(source, VOCAB_SIZE + 1, root).fingerprint == first.fingerprint
    write_jsonl(source, [*make_texts(200), "one more"])
    changed = prepare(source, VOCAB_SIZE, root)
    assert changed.fingerprint != first.fingerprint
    assert len(leftovers(root)) == 3


def test_a_prepared_corpus_is_found_without_writing_to_the_cache(texts_file, corpus, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    assert prepare(texts_file, VOCAB_SIZE, corpus.folder.parent).folder == corpus.folder


def test_two_caches_get_equal_corpora(texts_file, corpus, tmp_path):
    again = prepare(texts_file, VOCAB_SIZE, tmp_path)
    assert again.manifest == corpus.manifest


def test_the_tokenizer_sees_the_training_split_only(tmp_path):
    from jaxresearch.data.corpus import split_of

    marker = "ZQ" * 40 + " "
    texts = [
        text if split_of(f"a.jsonl#{index}") == "train" else marker * 5 + text
        for index, text in enumerate(make_texts(200))
    ]
    tokenizer = prepare(write_jsonl(tmp_path / "a.jsonl", texts), VOCAB_SIZE, tmp_path / "cache").tokenizer
    assert b"ZQ" not in b" ".join(tokenizer.token_bytes)


@pytest.mark.parametrize("stage", ["read", "tokenizer", "encode"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_no_half_corpus(texts_file, tmp_path, stage, error):
    def interrupt(now, done):
        if now == stage and done > 0.5:
            raise error

    with pytest.raises(error):
        prepare(texts_file, VOCAB_SIZE, tmp_path, interrupt)
    assert leftovers(tmp_path) == []
    assert prepare(texts_file, VOCAB_SIZE, tmp_path).manifest.vocab_size == VOCAB_SIZE


def test_what_a_killed_process_left_is_swept_by_the_next(texts_file, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_MIDWAY, str(texts_file), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    other = write_jsonl(tmp_path / "other.jsonl", make_texts(200, seed=1))
    prepare(other, VOCAB_SIZE, tmp_path)
    assert any(name.startswith(".building-tales") for name in leftovers(tmp_path)), "it is alive: hands off"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    prepare(other, VOCAB_SIZE + 1, tmp_path)
    assert not any(name.startswith((".building", "tales")) for name in leftovers(tmp_path))


def test_processes_that_prepare_the_same_at_once_make_one(texts_file, tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        folders = pool.starmap(_prepare_folder, [(texts_file, tmp_path)] * 3)
    assert len(set(folders)) == 1
    assert leftovers(tmp_path) == [folders[0].name]
    Corpus.open(folders[0]).verify()


def _prepare_folder(source: Path, root: Path) -> Path:
    return prepare(source, VOCAB_SIZE, root).folder


@pytest.mark.parametrize("name", ["tokenizer.json", "sealed/test/tokens-00000.npy", "corpus.json"])
def test_a_damaged_corpus_is_made_again(texts_file, tmp_path, name):
    folder = prepare(texts_file, VOCAB_SIZE, tmp_path).folder
    (folder / name).write_text("{}")
    prepare(texts_file, VOCAB_SIZE, tmp_path).verify()
    assert leftovers(tmp_path) == [folder.name]


def test_too_small_says_how_much_there_is_and_how_much_is_needed(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["short", "texts"])
    with pytest.raises(JaxresearchError) as caught:
        prepare(source, VOCAB_SIZE, tmp_path)
    message = str(caught.value)
    assert "a.jsonl is too small: of its 10 bytes in 2 documents, the train split got 10, and 2,000 are" in message
    assert "at least 100 documents" in caught.value.fix
    (tmp_path / "empty.txt").touch()
    with pytest.raises(JaxresearchError, match=r"empty\.txt is empty"):
        prepare(tmp_path / "empty.txt", VOCAB_SIZE, tmp_path)


def test_too_large_a_vocabulary_leaves_nothing(texts_file, tmp_path):
    with pytest.raises(ConfigurationError, match=r"corpus\.vocab_size: 60000 is too much"):
        prepare(texts_file, 60_000, tmp_path)
    assert leftovers(tmp_path) == []


def test_text_that_goes_bad_or_changes_between_passes_is_an_error_of_its_own(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(200))

    def change(stage, done):
        if stage == "tokenizer" and done == 1.0:
            write_jsonl(source, make_texts(200, seed=1))

    with pytest.raises(JaxresearchError, match="changed while it was read"):
        prepare(source, VOCAB_SIZE, tmp_path / "cache", change)

    def spoil(stage, done):
        if stage == "read" and done == 1.0:
            source.write_text("no json\n")

    with pytest.raises(JaxresearchError, match="is not JSON"):
        prepare(source, VOCAB_SIZE, tmp_path / "cache", spoil)
    assert leftovers(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_one_line(texts_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JaxresearchError, match=r"cannot write to the cache at .*: Not a directory") as caught:
        prepare(texts_file, VOCAB_SIZE, tmp_path / "file" / "cache")
    assert "JAXRESEARCH_CACHE" in caught.value.fix


def test_the_cache_root_follows_the_environment(monkeypatch):
    monkeypatch.setenv("JAXRESEARCH_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert default_cache_root() == Path("/own")
    monkeypatch.delenv("JAXRESEARCH_CACHE")
    assert default_cache_root() == Path("/shared/jaxresearch")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_root() == Path.home() / ".cache" / "jaxresearch"


def test_many_shards_read_as_one(tmp_path):
    writer = ShardWriter(tmp_path / "split", shard_tokens=100)
    documents = [np.arange(length, dtype=np.uint16) for length in (30, 90, 1, 200, 7)]
    for document in documents:
        writer.add(document)
    writer.close()
    assert len(writer.shards) == 3
    read = list(read_documents(tmp_path / "split", writer.shards))
    assert [document.tolist() for document in read] == [document.tolist() for document in documents]


def test_a_megabyte_of_one_text_file_gives_every_split_its_share(tmp_path):
    paragraphs = [text + "\n" for text in make_texts(1300, words_each=180)]
    (tmp_path / "book.txt").write_text("".join(paragraphs))
    facts = prepare(tmp_path / "book.txt", VOCAB_SIZE, tmp_path).manifest.splits
    total = sum(split.text_bytes for split in facts.values())
    assert total == (tmp_path / "book.txt").stat().st_size > 1_000_000
    assert facts["train"].text_bytes / total == pytest.approx(0.9, abs=0.04)
    assert min(split.text_bytes for split in facts.values()) > 20_000


@pytest.mark.slow
def test_the_python_standard_library(tmp_path):
    corpus = prepare(cache_root=tmp_path)
    facts = corpus.manifest.splits
    assert corpus.name == "python-stdlib"
    assert facts["train"].tokens > 1_000_000
    assert 2.5 < facts["train"].text_bytes / facts["train"].tokens < 3.5
    assert min(len(corpus.rows("validation", 256)), len(open_sealed_test(corpus, 256))) > 100
    assert 2.5 < unigram_bpb(corpus, 256) < 4
    assert os.listdir(corpus.folder / "sealed")


def test_a_study_finds_its_text_in_the_cache_when_the_source_is_gone_or_another(texts_file, tmp_path, monkeypatch):
    root, text = tmp_path / "cache", tmp_path / "texts.jsonl"
    monkeypatch.setenv("JAXRESEARCH_CACHE", str(root))
    shutil.copy(texts_file, text)
    settings = {"context": 16, "corpus": {"source": str(text), "vocab_size": VOCAB_SIZE}}
    config = validate_config(settings)
    first = prepare_corpus(config)
    wanted = (first.fingerprint, first.tokenizer_fingerprint)
    write_jsonl(text, make_texts(500))
    assert prepare_corpus(config).fingerprint != first.fingerprint
    assert prepare_corpus(config, begun_with=wanted).folder == first.folder
    first.folder.rename(root / "brought-from-elsewhere")
    text.unlink()
    assert prepare_corpus(config, begun_with=wanted).folder == root / "brought-from-elsewhere"
    (root / "brought-from-elsewhere" / "byte_lengths.npy").unlink()
    with pytest.raises(ConfigurationError, match="does not exist"):
        prepare_corpus(config, begun_with=wanted)


@pytest.mark.parametrize("name", ["tokenizer.json", "train/tokens-00000.npy", "byte_lengths.npy"])
def test_a_corpus_with_a_bit_that_was_flipped_is_made_again(texts_file, tmp_path, name):
    path = prepare(texts_file, VOCAB_SIZE, tmp_path).folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    prepare(texts_file, VOCAB_SIZE, tmp_path)
    assert path.read_bytes() == content
