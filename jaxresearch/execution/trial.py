"""A worker started for trial: a tier that holds by its self-test is worth nothing where no worker starts in it."""

from __future__ import annotations

from pathlib import Path

from jaxresearch.config import StudyConfig
from jaxresearch.data import Corpus, prepare
from jaxresearch.execution.housing import WorkerHouse
from jaxresearch.execution.local import worker_settings
from jaxresearch.sandbox.worker_tier import WorkerTier
from jaxresearch.scratch import Scratch

_DOCUMENTS = 400
_VOCAB_SIZE = 300


async def try_worker() -> WorkerTier:
    """The tier of a worker that has started here, as a study's would, and has been ended again.

    Its corpus and its folders are made for it and removed. Raises `JaxresearchError` where none starts in any tier.
    """
    with Scratch("jaxresearch-trial-") as root:
        corpus = _corpus(root)
        config = StudyConfig.model_validate({"context": 64, "evaluation": {"tokens": 1024}})
        settings = worker_settings(config, corpus, programs=root / "programs", runs=root / "runs")
        house = WorkerHouse(settings.model_copy(update={"compilation_cache": root / "xla"}))
        try:
            worker = await house.start(sealed=False)
            await worker.kill()
        finally:
            house.close()
    assert house.tier is not None  # `start` has chosen it
    return house.tier


def _corpus(root: Path) -> Corpus:
    """A small one, of numbers."""
    text = root / "numbers.jsonl"
    lines = (" ".join(str(number * step) for step in range(40)) for number in range(_DOCUMENTS))
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return prepare(text, _VOCAB_SIZE, root / "cache")
