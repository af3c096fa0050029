"""`prepare`: text in, shards and tokenizer out."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jaxresearch.cli.common import Output, config_options, make_config, output_options
from jaxresearch.cli.live import Display


@click.command(epilog="Example: jaxresearch prepare --corpus ~/books")
@click.option("--corpus", metavar="NAME_OR_PATH", help="python-stdlib, or .txt/.jsonl/.parquet files or a folder.")
@click.option("--vocab-size", type=int, help="Tokens of the byte-level BPE.")
@config_options
@output_options
def prepare(
    corpus: str | None,
    vocab_size: int | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> None:
    """Build a corpus: splits, tokenizer, shards. A corpus that is already there is only checked."""
    from jaxresearch.data import prepare as build
    from jaxresearch.data import unigram_bpb

    config = make_config(config_file, settings, corpus__source=corpus, corpus__vocab_size=vocab_size)
    with Display(output) as display:
        made = build(config.corpus.source, config.corpus.vocab_size, on_progress=display.preparing)
        baseline = unigram_bpb(made, config.context)
    manifest = made.manifest
    facts = {
        "corpus": made.fingerprint,
        "tokenizer": made.tokenizer_fingerprint,
        "name": made.name,
        "folder": str(made.folder),
        "vocab_size": made.vocab_size,
        "splits": {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()},
        "unigram_bpb": baseline,
    }

    def show(console: Console) -> None:
        table = Table("split", "documents", "bytes", "tokens", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, split in manifest.splits.items():
            table.add_row(name, f"{split.documents:,}", f"{split.text_bytes:,}", f"{split.tokens:,}")
        console.print(table)
        console.print(f"vocabulary   {made.vocab_size} tokens; the unigram scores {baseline:.3f} bits per byte")
        console.print(f"fingerprint  {made.fingerprint}", markup=False)
        console.print(f"folder       {made.folder}", markup=False)

    output.result(facts, show)
