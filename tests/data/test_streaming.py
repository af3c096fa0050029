"""Memory stays bounded: preparing does not collect its text, and training reads a corpus that would not fit."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxresearch.data import Batches, Prefetched, prepare, unigram_bpb
from jaxresearch.data.npy import NpyWriter

from .stub_hub import StubHub, parquet_bytes
from .texts import VOCAB_SIZE, make_texts

DRAWS = """
import resource, sys
from pathlib import Path
import numpy as np
from jaxresearch.data import Batches, Prefetched

status = Path("/proc/self/status").read_text().split()
used = int(status[status.index("VmData:") + 1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)
rows = np.load(sys.argv[1], mmap_mode="r")
batches = Prefetched(Batches(rows, 1, seed=0))
cursor = 0
for _ in range(50):
    drawn, cursor = batches.take(cursor, 16)
    assert drawn.shape == (16, rows.shape[1])
batches.close()
try:
    np.array(rows)
except MemoryError:
    print(rows.nbytes, "bytes did not fit, and were drawn from")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_rows_that_are_larger_than_memory_are_drawn_from(tmp_path: Path):
    path, shape = tmp_path / "rows.npy", (2**19, 2049)
    np.lib.format.open_memmap(path, "w+", np.uint16, shape)  # a sparse file: two gigabytes, and no disk used
    command = [sys.executable, "-c", DRAWS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        f"{2 * shape[0] * shape[1]} bytes did not fit, and were drawn from\n",
    ), done.stderr


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache with 12 fetched shards of climbmix, each of about 250 kB of text."""
    pytest.importorskip("huggingface_hub", reason="the [hub] extra is not installed")
    files = {f"shard_{index:05d}.parquet": parquet_bytes(make_texts(250, seed=index)) for index in range(12)}
    files["shard_06542.parquet"] = parquet_bytes(make_texts(120, seed=99))
    hub = StubHub("karpathy/climbmix-400b-shuffle", files)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    prepare("climbmix", VOCAB_SIZE, tmp_path, shards=12)
    hub.close()
    return tmp_path


def peak_bytes(cache: Path, count: int) -> tuple[int, int]:
    """(most bytes held at once while `count` shards are prepared, packed and drawn from; their text's bytes)."""
    tracemalloc.start()
    corpus = prepare("climbmix", VOCAB_SIZE + 1, cache, shards=count)
    unigram_bpb(corpus, 32)
    batches, cursor = Prefetched(Batches(corpus.rows("train", 32), 1, seed=0)), 0
    for _ in range(20):
        _, cursor = batches.take(cursor, 16)
    batches.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, corpus.manifest.splits["train"].text_bytes


def test_preparing_more_shards_takes_no_more_memory(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["jaxresearch.data.prepare"], "_BATCH_BYTES", 50_000)
    (few, few_text), (many, many_text) = peak_bytes(shards, 4), peak_bytes(shards, 12)
    print(few, many, few_text, many_text)
    assert many_text > 2.9 * few_text > 2_000_000
    assert many - few < (many_text - few_text) / 8


def test_a_streamed_array_is_what_numpy_would_have_saved(tmp_path: Path):
    blocks = [np.arange(6, dtype=np.uint16).reshape(2, 3), np.empty((0, 3), np.uint16), np.ones((500, 3), np.uint16)]
    with NpyWriter(tmp_path / "streamed.npy", np.uint16, (3,)) as file:
        for block in blocks:
            file.append(block)
    np.save(tmp_path / "whole.npy", np.concatenate(blocks))
    assert (tmp_path / "streamed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
