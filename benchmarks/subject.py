"""The subject as the laboratory runs it, but without its sandbox, for benchmarks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaxresearch.program import program, tracer, verifier
from jaxresearch.program.fused import Kernel
from jaxresearch.training import trainer

ROOT = Path(__file__).resolve().parents[1]


def prepare_subject(
    config: Mapping[str, object], platform: str, *, kernel: Kernel | None = None, tree: Path = ROOT
) -> tuple[program.LoadedProgram, dict[str, float]]:
    """`models/` in `tree` with every hyperparameter of `config`, traced, verified, stored, loaded; its runtime inputs.

    kernel: of attention, put in where it may be.
    """
    request = {"tree": str(tree), "config": dict(config), "evaluation_batch": 1, "platform": platform}
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]  # of another tree, it may be
    header, blobs = tracer.trace(request)
    signature = verifier.Signature(1, int(config["context"]), int(config["vocab_size"]))
    said = {"traced": header["traced"], "phases": [tuple(p) for p in header["phases"]], "metrics": header["metrics"]}
    limits = verifier.ProgramLimits(program_bytes=64_000_000, constant_bytes=65536, parameters=2_000_000_000)
    verified = verifier.verify(blobs, wanted=signature, limits=limits, **said)
    with tempfile.TemporaryDirectory() as folder:
        stored = program.store(
            Path(folder), verified, platform=platform, leaves=header["leaves"],
            signature=(signature.batch, signature.context, signature.vocab_size), **said,
        )  # fmt: skip
        loaded = program.load(Path(folder), stored.program, kernel)
    return loaded, {field["name"]: float(field["value"]) for field in header["hyperparameters"] if field["traced"]}


def compile_subject(config: Mapping[str, object], platform: str) -> tuple[trainer.CompiledProgram, dict[str, float]]:
    """The trainer's executables of `prepare_subject`; its runtime inputs."""
    loaded, values = prepare_subject(config, platform)
    return trainer.compile_program(loaded), values
