"""The sealed test, by a real worker: only a request that says so is scored on it."""

from __future__ import annotations

from jaxresearch.data import Corpus
from jaxresearch.data.dataset import open_sealed_test
from jaxresearch.data.manifest import ROWS_FOLDERS
from jaxresearch.experiment import CompletedRun
from tests.laboratory import CONTEXT, Laboratory


def test_the_test_split_is_scored_only_when_asked(laboratory: Laboratory, baseline, tiny_corpus: Corpus):
    packed = tiny_corpus.folder / ROWS_FOLDERS["test"] / f"test-{CONTEXT}.npy"
    packed.unlink(missing_ok=True)  # other tests share this corpus, and may have confirmed a study on it
    plain = laboratory.executor
    ordinary = laboratory.runner.run(plain.run(laboratory.request(baseline, seed=41), lambda _: None))
    assert isinstance(ordinary, CompletedRun)
    assert ordinary.test_bpb is None
    assert not packed.exists(), "the worker has not opened the sealed split"
    tested = laboratory.runner.run(plain.run(laboratory.request(baseline, seed=41, split="test"), lambda _: None))
    assert isinstance(tested, CompletedRun)
    assert packed.exists()
    assert len(open_sealed_test(tiny_corpus, CONTEXT)) > 0
    assert tested.val_bpb == ordinary.val_bpb, "training is the same"
    assert tested.test_bpb is not None
    assert tested.test_bpb != tested.val_bpb
    assert abs(tested.test_bpb - tested.val_bpb) < 1.0
    assert len(tested.audits) > len(ordinary.audits)
