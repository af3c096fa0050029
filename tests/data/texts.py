"""Small made-up texts to prepare corpora from."""

import json
import random
from pathlib import Path

VOCAB_SIZE = 320


def make_texts(count: int, seed: int = 0, words_each: int = 150) -> list[str]:
    """Texts of made-up words, with digits, line ends and characters of two to four bytes."""
    generator = random.Random(seed)
    letters = "aeiourstnlmkäß語🙂"
    lexicon = ["".join(generator.choices(letters, k=generator.randint(1, 7))) for _ in range(200)] + ["1234", "x_y"]
    return [" ".join(generator.choices(lexicon, k=generator.randint(5, 2 * words_each))) + ".\n" for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
