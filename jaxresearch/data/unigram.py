"""The unigram: what a model scores that knows how often each token occurs, and nothing else."""

from __future__ import annotations

import numpy as np

from jaxresearch.data.dataset import Corpus

_CHUNK_TOKENS = 2**18
"""Counted at a time: counting widens tokens to eight bytes each."""


def unigram_bpb(corpus: Corpus, context: int) -> float:
    """Bits per byte, on all validation rows of `context`, of the token frequencies of the training split.

    The metric is the laboratory's: summed bits of the targets that stand for bytes, over their bytes. Each count is
    raised by one, so that no token is impossible. A model that is above this has learned nothing.
    """
    counts = np.ones(corpus.vocab_size)
    for tokens in corpus.tokens("train"):
        for start in range(0, len(tokens), _CHUNK_TOKENS):
            counts += np.bincount(tokens[start : start + _CHUNK_TOKENS], minlength=corpus.vocab_size)
    scored = corpus.byte_lengths > 0
    bits = np.where(scored, -np.log2(counts / counts[scored].sum()), 0.0)
    targets = np.zeros(corpus.vocab_size, dtype=np.int64)
    rows = corpus.rows("validation", context)
    rows_a_chunk = max(1, _CHUNK_TOKENS // context)
    for start in range(0, len(rows), rows_a_chunk):
        targets += np.bincount(rows[start : start + rows_a_chunk, 1:].ravel(), minlength=corpus.vocab_size)
    return float(targets @ bits / (targets @ corpus.byte_lengths))
