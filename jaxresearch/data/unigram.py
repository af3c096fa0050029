"""The unigram: what a model scores that knows how often each token occurs, and nothing else."""

from __future__ import annotations

import numpy as np

from jaxresearch.data.dataset import Corpus


def unigram_bpb(corpus: Corpus, context: int) -> float:
    """Bits per byte, on all validation rows of `context`, of the token frequencies of the training split.

    The metric is the laboratory's: summed bits of the targets that stand for bytes, over their bytes. Each count is
    raised by one, so that no token is impossible. A model that is above this has learned nothing.
    """
    counts = np.ones(corpus.vocab_size)
    for tokens in corpus.tokens("train"):
        counts += np.bincount(tokens, minlength=corpus.vocab_size)
    scored = corpus.byte_lengths > 0
    bits = np.where(scored, -np.log2(counts / counts[scored].sum()), 0.0)
    targets = np.bincount(corpus.rows("validation", context)[:, 1:].ravel(), minlength=corpus.vocab_size)
    return float(targets @ bits / (targets @ corpus.byte_lengths))
