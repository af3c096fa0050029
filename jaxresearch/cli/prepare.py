"""`prepare`: text in, shards and tokenizer out."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from jaxresearch.cli.common import Output, config_options, make_config, output_options
from jaxresearch.cli.live import Display


@click.command(epilog="Example: jaxresearch prepare climbmix --shards 2")
@click.argument("name_or_path", required=False)
@click.option(
    "--corpus",
    metavar="NAME_OR_PATH",
    help="The same as an option. python-stdlib; tinystories or climbmix, from the hub; or .txt/.jsonl/.parquet files "
    "or a folder of them.",
)
@click.option("--shards", type=int, help="Training shards of a corpus of the hub.")
@click.option("--vocab-size", type=int, help="Tokens of the byte-level BPE.")
@config_options
@output_options
def prepare(
    name_or_path: str | None,
    corpus: str | None,
    shards: int | None,
    vocab_size: int | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    output: Output,
) -> None:
    """Build a corpus: fetch it, splits, tokenizer, shards. A corpus that is already there is only checked."""
    from jaxresearch.data import prepare_corpus, unigram_bpb
    from jaxresearch.data.hub import HUB_DATASETS

    if name_or_path and corpus:
        raise click.UsageError(f"two corpora: {name_or_path} and --corpus {corpus}. Give one.")
    config = make_config(
        config_file,
        settings,
        corpus__source=name_or_path or corpus,
        corpus__shards=shards,
        corpus__vocab_size=vocab_size,
    )
    if shards is not None and config.corpus.source not in HUB_DATASETS:
        raise click.UsageError(f"--shards is for {' and '.join(HUB_DATASETS)}, not for {config.corpus.source}.")
    with Display(output) as display:
        made = prepare_corpus(config, display.preparing)
        rows = {split: len(made.rows(split, config.context)) for split in ("train", "validation")}
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
        "context": config.context,
        "rows": rows,
        "hub": None if manifest.hub is None else manifest.hub.model_dump(),
    }

    def show(console: Console) -> None:
        table = Table("split", "documents", "bytes", "tokens", box=None, header_style="bold", pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, split in manifest.splits.items():
            table.add_row(name, f"{split.documents:,}", f"{split.text_bytes:,}", f"{split.tokens:,}")
        console.print(table)
        console.print(f"vocabulary   {made.vocab_size} tokens; the unigram scores {baseline:.3f} bits per byte")
        if manifest.hub is not None:
            console.print(f"from         {manifest.hub.repo} at {manifest.hub.commit}", markup=False)
        console.print(f"fingerprint  {made.fingerprint}", markup=False)
        console.print(f"folder       {made.folder}", markup=False)

    output.result(facts, show)
