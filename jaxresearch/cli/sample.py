"""`sample`: text from a trained model."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from jaxresearch.cli.common import Output, output_options
from jaxresearch.cli.live import RunDisplay
from jaxresearch.text import clean


@click.command(epilog='Example: jaxresearch sample studies/mine --prompt "def main(" --tokens 50 --temperature 0.7')
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("experiment", type=click.IntRange(0), required=False)
@click.option("--prompt", default="", help="What the text begins with; the beginning of a document when left out.")
@click.option("--tokens", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many, at most.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0: always the likeliest token."
)
@click.option("--top-k", type=click.IntRange(1), help="Choose among this many of the likeliest only.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the choices.")
@output_options
def sample(
    study: Path,
    experiment: int | None,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    output: Output,
) -> None:
    """Text from the final state of EXPERIMENT; of the best one kept when left out."""
    from jaxresearch.study.sampling import sample_study
    from jaxresearch.study.study import Study

    if not math.isfinite(temperature):
        raise click.BadParameter("it must be finite.", param_hint="--temperature")
    prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # an argument may be any bytes
    opened = Study.open(study, read_only=True)
    try:
        with RunDisplay(output) as display:
            found = asyncio.run(
                sample_study(
                    opened,
                    opened.history.incumbent_number if experiment is None else experiment,
                    prompt,
                    tokens=tokens,
                    temperature=temperature,
                    top_k=top_k,
                    seed=seed,
                    on_preparation=display.preparing,
                    on_progress=display.update,
                )
            )
    finally:
        opened.close()
    text = clean(found.text)
    facts = {"study": str(study), **asdict(found), "prompt": clean(prompt), "text": text}
    output.result(facts, lambda console: console.print(Text(clean(prompt) + text)))
