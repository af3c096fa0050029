import os
import shutil

import numpy as np
import pytest

from jaxresearch.data import Corpus, dataset, evaluation_rows, open_sealed_test, unigram_bpb
from jaxresearch.data.cache import file_sha256
from jaxresearch.data.dataset import _packed_rows
from jaxresearch.errors import ConfigurationError, JaxresearchError

CONTEXT = 32


@pytest.fixture
def own(corpus, tmp_path) -> Corpus:
    """A copy that a test may spoil."""
    shutil.copytree(corpus.folder, tmp_path / "copy")
    return Corpus.open(tmp_path / "copy")


def test_rows_are_the_split_packed(corpus):
    for split in ("train", "validation"):
        rows = corpus.rows(split, CONTEXT)
        assert isinstance(rows, np.memmap)
        assert rows.dtype == np.uint16
        assert rows.shape[1] == CONTEXT + 1
        assert (rows[:, 0] == corpus.tokenizer.bos).all()
        lost = corpus.manifest.splits[split].tokens - int((rows != corpus.tokenizer.bos).sum())
        assert 0 <= lost <= CONTEXT
        assert (rows == corpus.rows(split, CONTEXT)).all()


def test_rows_of_an_interrupted_packing_are_packed_again(own):
    expected = np.array(own.rows("train", CONTEXT))
    path = own.folder / "rows" / f"train-{CONTEXT}.npy"
    path.rename(path.with_suffix(".draft"))
    path.with_suffix(".draft").write_bytes(b"half")
    assert (own.rows("train", CONTEXT) == expected).all()
    assert not path.with_suffix(".draft").exists()


def test_the_test_split_is_refused_but_by_its_own_function(own):
    with pytest.raises(JaxresearchError, match="test split"):
        own.rows("test", CONTEXT)
    with pytest.raises(JaxresearchError, match="sealed"):
        next(own.tokens("test"))
    rows = open_sealed_test(own, CONTEXT)
    assert rows.shape[1] == CONTEXT + 1
    test = {tuple(row) for row in rows.tolist()}
    assert not test & {tuple(row) for row in own.rows("train", CONTEXT).tolist()}
    outside = [path for path in own.folder.rglob("*test*") if "sealed" not in path.parts]
    assert outside == []


def test_without_its_sealed_part_a_corpus_still_trains_and_scores(own):
    shutil.rmtree(own.folder / "sealed")
    corpus = Corpus.open(own.folder)
    assert len(corpus.rows("train", CONTEXT)) > len(corpus.rows("validation", CONTEXT)) > 0
    corpus.verify(sealed=False)
    with pytest.raises(JaxresearchError, match="is missing"):
        open_sealed_test(corpus, CONTEXT)


@pytest.mark.parametrize("name", ["byte_lengths.npy", "train/tokens-00000.npy", "validation/offsets-00000.npy"])
def test_missing_cut_and_changed_files_are_named(own, name):
    path = own.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(JaxresearchError, match=f"{name} was changed"):
        Corpus.open(own.folder).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(JaxresearchError, match=f"{name} has .* bytes, not"):
        Corpus.open(own.folder)
    path.unlink()
    with pytest.raises(JaxresearchError, match=f"{name} is missing"):
        Corpus.open(own.folder)


def test_lengths_that_candidates_choose_do_not_fill_the_cache(own, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_PACKED_LENGTHS", 3)
    folder = own.folder / "rows"
    shutil.rmtree(folder, ignore_errors=True)
    for index, length in enumerate((8, 9, 10, 11, 12)):
        own.provide_rows([length, 10_000_000])
        os.utime(folder / f"train-{length}.npy", (index, index))
    assert {path.name for path in folder.glob("train-*.npy")} == {f"train-{length}.npy" for length in (10, 11, 12)}
    own.provide_rows([10])
    own.provide_rows([13])
    assert {path.name for path in folder.glob("train-*.npy")} == {f"train-{length}.npy" for length in (10, 12, 13)}


def test_verify_notices_changed_rows(own):
    own.rows("validation", CONTEXT)
    own.verify()
    path = own.folder / "rows" / f"validation-{CONTEXT}.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(JaxresearchError, match=r"validation-32\.npy was changed"):
        own.verify()
    path.write_bytes(b"nothing")
    with pytest.raises(JaxresearchError, match=r"validation-32\.npy"):
        own.rows("validation", CONTEXT)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("hash_is_known", [True, False])
def test_rows_that_are_not_what_was_written_are_packed_anew(own, hash_is_known):
    own.pack(CONTEXT)
    expected = {split: np.array(own.rows(split, CONTEXT)) for split in ("train", "validation")}
    for split, kept in expected.items():
        path = own.folder / "rows" / f"{split}-{CONTEXT}.npy"
        for at in (-2, 9):  # in a row, and in the head, which says what the file holds
            flip(path, at)
            if not hash_is_known:
                path.with_suffix(".sha256").unlink()
            own.provide_rows([CONTEXT])
            own.provide_evaluation(CONTEXT)
            assert (own.rows(split, CONTEXT) == kept).all()
            assert path.with_suffix(".sha256").read_text() == file_sha256(path)


def test_sound_rows_are_left_as_they_are(own):
    own.pack(CONTEXT)
    path = own.folder / "rows" / f"validation-{CONTEXT}.npy"
    path.with_suffix(".sha256").unlink()  # a cache from before hashes were kept
    os.utime(path, (1, 1))
    own.provide_evaluation(CONTEXT)
    assert path.stat().st_mtime == 1
    assert path.with_suffix(".sha256").exists()


def test_rows_of_the_sealed_test_that_were_changed_are_packed_anew(own):
    expected = np.array(open_sealed_test(own, CONTEXT))
    flip(own.folder / "sealed/rows" / f"test-{CONTEXT}.npy", -2)
    assert (open_sealed_test(own, CONTEXT) == expected).all()


def test_a_folder_that_is_no_corpus_or_of_another_version_says_so(own, tmp_path):
    with pytest.raises(JaxresearchError, match="holds no prepared corpus"):
        Corpus.open(tmp_path / "none")
    manifest = own.folder / "corpus.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(JaxresearchError, match="has format version 99, not 1"):
        Corpus.open(own.folder)
    for broken in ("[]", text[:100], text.replace('"name"', '"nome"')):
        manifest.write_text(broken)
        with pytest.raises(JaxresearchError, match="not readable"):
            Corpus.open(own.folder)


def test_evaluation_rows_are_whole_batches_spread_evenly(corpus):
    rows = corpus.rows("validation", CONTEXT)
    chosen = evaluation_rows(corpus, CONTEXT, tokens=4 * CONTEXT * 3 + 5, batch=4)
    assert chosen.dtype == np.int32
    assert chosen.shape == (3, 4, CONTEXT + 1)
    places = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in chosen.reshape(12, -1)]
    gaps = np.diff(places)
    assert gaps.min() >= len(rows) // 12
    assert gaps.max() <= len(rows) // 12 + 1
    everything = evaluation_rows(corpus, CONTEXT, tokens=10**9, batch=4)
    assert everything.shape[0] == len(rows) // 4


def test_evaluation_without_one_batch_says_what_to_change(corpus):
    with pytest.raises(ConfigurationError, match=r"evaluation\.tokens: 100 .* 4 x 32 = 128"):
        evaluation_rows(corpus, CONTEXT, tokens=100, batch=4)
    with pytest.raises(ConfigurationError, match=r"evaluation\.batch: 100000 rows"):
        evaluation_rows(corpus, CONTEXT, tokens=10**9, batch=100_000)


def test_unigram_is_the_entropy_of_the_tokens_over_their_bytes(corpus):
    counts = np.bincount(np.concatenate(list(corpus.tokens("train"))), minlength=corpus.vocab_size) + 1.0
    bits = -np.log2(counts / counts[: corpus.tokenizer.bos].sum())
    targets = np.array(corpus.rows("validation", CONTEXT))[:, 1:].ravel()
    targets = targets[targets != corpus.tokenizer.bos]
    expected = bits[targets].sum() / corpus.byte_lengths[targets].sum()
    assert unigram_bpb(corpus, CONTEXT) == pytest.approx(expected)
    assert 1 < unigram_bpb(corpus, CONTEXT) < 8


def test_rows_of_a_context_longer_than_the_text_are_none(corpus):
    assert _packed_rows(corpus, "validation", 60_000).shape == (0, 60_001)
