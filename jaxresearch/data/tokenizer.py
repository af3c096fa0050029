"""The tokenizer: byte-level BPE, so that every text has tokens and every token stands for known bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from jaxresearch.errors import ConfigurationError, JaxresearchError

SPECIAL_TOKENS = ("<|bos|>", "<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>")
SMALLEST_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
LARGEST_VOCAB_SIZE = 2**16

# GPT-4's way to split text into words (OpenAI's tiktoken, `cl100k_base`), but with groups of at most two digits.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to token ids and back.

    The last four ids are specials. They exist only here, not in the BPE, so no text can ever become one: a document
    that says "<|bos|>" is seven characters like any others.
    """

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size() + len(SPECIAL_TOKENS)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """The BPE of `vocab_size` tokens, specials and all 256 bytes included. Equal texts give equal tokenizers.

        Raises ConfigurationError when `vocab_size` is out of bounds, or more than `texts` have merges for.
        """
        if not SMALLEST_VOCAB_SIZE <= vocab_size <= LARGEST_VOCAB_SIZE:
            raise ConfigurationError(
                f"corpus.vocab_size: {vocab_size} is out of bounds.",
                fix=f"Choose from {SMALLEST_VOCAB_SIZE} to {LARGEST_VOCAB_SIZE}.",
            )
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT_PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        trained = cls(bpe)
        if trained.vocab_size != vocab_size:
            raise ConfigurationError(
                f"corpus.vocab_size: {vocab_size} is too much for this text, which has only {trained.vocab_size}.",
                fix="Lower corpus.vocab_size or give more text.",
            )
        return trained

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer that `save` wrote. Raises JaxresearchError when the file is not one."""
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception
            raise JaxresearchError(f"{path} is not a readable tokenizer: {error}.", fix="Prepare it again.") from None

    def save(self, path: Path) -> None:
        """Writes the canonical JSON: its SHA-256 is the fingerprint."""
        path.write_text(self._canonical, encoding="utf-8")

    @cached_property
    def _canonical(self) -> str:
        return json.dumps(json.loads(self._bpe.to_str()), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        return f"sha256:{hashlib.sha256(self._canonical.encode()).hexdigest()}"

    @property
    def bos(self) -> int:
        """The id that stands in front of every document."""
        return self.vocab_size - len(SPECIAL_TOKENS)

    def encode(self, text: str) -> np.ndarray:
        """uint16[n] ids, BOS not among them."""
        return next(self.encode_batch([text]))

    def encode_batch(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """uint16[n] for each text, on all cores."""
        for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; specials have none, and broken UTF-8 shows as U+FFFD."""
        return b"".join(self.token_bytes[token] for token in ids).decode(errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; none for specials. A token may hold only a part of a character."""
        value = {character: byte for byte, character in enumerate(_byte_alphabet())}
        table = [b""] * self.vocab_size
        for token, index in self._bpe.get_vocab(with_added_tokens=False).items():
            table[index] = bytes(value[character] for character in token)
        return tuple(table)

    @property
    def byte_lengths(self) -> np.ndarray:
        """int32[V]: how many UTF-8 bytes each id stands for; 0 for specials, which are never scored."""
        return np.array([len(piece) for piece in self.token_bytes], dtype=np.int32)


def _byte_alphabet() -> list[str]:
    """The character by which byte-level BPE writes each byte (GPT-2, `bytes_to_unicode`): printable Latin-1 as it
    is, the other bytes as the characters from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
