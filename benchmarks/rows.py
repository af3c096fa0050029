"""Batches of real text for benchmarks; numpy alone, so that a PyTorch process need not import JAX."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def text_rows(vocab_size: int, context: int, rows: int) -> np.ndarray:
    """i32[rows, context + 1]: the project's own sources, byte by byte. Text, so that the loss falls as in real runs."""
    text = b"".join(path.read_bytes() for path in sorted((ROOT / "jaxresearch").rglob("*.py")))
    tokens = np.frombuffer(text, np.uint8).astype(np.int32) % vocab_size
    starts = np.arange(rows) * context % (len(tokens) - context - 1)
    return np.stack([tokens[start : start + context + 1] for start in starts])


class Rows:
    """The trainer's BatchSource over `text_rows`."""

    def __init__(self, vocab_size: int, context: int, rows: int = 256) -> None:
        self.rows = text_rows(vocab_size, context, rows)

    def take(self, cursor: int, batch: int) -> tuple[np.ndarray, int]:
        return self.rows[np.arange(cursor, cursor + batch) % len(self.rows)], cursor + batch
