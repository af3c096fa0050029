"""Data: text in, batches out. Corpora, tokenizer, packing; deterministic in the text and the seed."""

from jaxresearch.data.batches import Batches
from jaxresearch.data.cache import default_cache_root
from jaxresearch.data.dataset import Corpus, evaluation_rows, open_sealed_test
from jaxresearch.data.manifest import Manifest, SplitFacts
from jaxresearch.data.prefetch import Prefetched
from jaxresearch.data.prepare import prepare, prepare_corpus
from jaxresearch.data.tokenizer import Tokenizer
from jaxresearch.data.unigram import unigram_bpb

__all__ = [
    "Batches",
    "Corpus",
    "Manifest",
    "Prefetched",
    "SplitFacts",
    "Tokenizer",
    "default_cache_root",
    "evaluation_rows",
    "open_sealed_test",
    "prepare",
    "prepare_corpus",
    "unigram_bpb",
]
