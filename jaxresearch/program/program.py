"""Program: a verified, traced candidate on disk, named by the SHA-256 of its canonical form."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax import export
from pydantic import BaseModel, ConfigDict

from jaxresearch.data.cache import sync
from jaxresearch.errors import JaxresearchError
from jaxresearch.program import stablehlo
from jaxresearch.program.fused import Kernel, settle_attention
from jaxresearch.program.verifier import VerifiedModules

_SCHEME = "sha256:"
_FIX = "Trace the candidate again, or restore the file from a backup."


class Manifest(BaseModel):
    """What a stored program is. Everything but the names of leaves and metrics was read off the verified modules."""

    model_config = ConfigDict(frozen=True)

    program: str
    platform: str
    jax: str
    traced: tuple[str, ...]
    phases: tuple[tuple[float, int, int], ...]
    leaves: tuple[str, ...]
    metrics: tuple[str, ...]
    step_flops: tuple[float | None, ...]
    logits_flops: float | None
    parameters: int
    constant_bytes: int
    context: int
    evaluation_batch: int
    vocab_size: int
    artefacts: dict[str, str]


@dataclass(frozen=True)
class LoadedProgram:
    """Callables with flat positional arguments.

    init(seed, *traced) -> leaves; steps[phase](*leaves, tokens, progress, *traced) -> (*leaves, *metrics);
    logits(*leaves, tokens) -> f32[batch, context, vocab].
    attention: what computes it, for the record: a kernel's name, or `xla` with the reason in brackets.
    """

    manifest: Manifest
    init: export.Exported
    steps: tuple[export.Exported, ...]
    logits: export.Exported
    attention: str = "xla"

    @property
    def state(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the leaves of the state."""
        return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.init.out_avals]


def program_name(texts: Sequence[str], traced: Sequence[str], phases: Sequence[tuple[float, int, int]]) -> str:
    """ "sha256:..." over the canonical texts, the names of the runtime inputs and the phases."""
    return _SCHEME + stablehlo.digest([*texts, json.dumps([list(traced), [list(phase) for phase in phases]])])


def program_folder(root: Path, program: str) -> Path:
    """Where `root` keeps the program of that name. Refuses anything that is not such a name."""
    digest = program.removeprefix(_SCHEME)
    if len(digest) != 64 or any(c not in "0123456789abcdef" for c in digest):
        raise JaxresearchError(f"{program!r} is not the name of a program.")
    return root / digest


def store(
    root: Path,
    verified: VerifiedModules,
    *,
    platform: str,
    traced: Sequence[str],
    phases: Sequence[tuple[float, int, int]],
    leaves: Sequence[str],
    metrics: Sequence[str],
    signature: tuple[int, int, int],
) -> Manifest:
    """Write the program below `root`, atomically; storing one that is there changes nothing, but repairs it."""
    names = ["init", *(f"train_step_{i}" for i in range(len(phases))), "logits"]
    blobs = {f"{name}.mlirbc": blob for name, blob in zip(names, verified.blobs, strict=True)}
    batch, context, vocab_size = signature
    manifest = Manifest(
        program=program_name([module.text for module in verified.modules], traced, phases),
        platform=platform,
        jax=jax.__version__,
        traced=tuple(traced),
        phases=tuple(phases),
        leaves=tuple(leaves),
        metrics=tuple(metrics),
        step_flops=verified.step_flops,
        logits_flops=verified.logits_flops,
        parameters=verified.parameters,
        constant_bytes=verified.constant_bytes,
        context=context,
        evaluation_batch=batch,
        vocab_size=vocab_size,
        artefacts={name: _SCHEME + hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()},
    )
    folder = program_folder(root, manifest.program)
    if _is_whole(root, manifest.program):
        return manifest
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    try:
        for name, blob in {**blobs, "manifest.json": manifest.model_dump_json(indent=1).encode()}.items():
            with (draft / name).open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():  # left by an interrupted copy, or damaged since
            shutil.rmtree(folder)
        draft.rename(folder)
        sync(root)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise  # else another process stored the same program meanwhile
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _is_whole(root: Path, program: str) -> bool:
    """Whether the program is stored, every artefact as its manifest has it."""
    try:
        manifest = read_manifest(root, program)
        blobs = {name: (program_folder(root, program) / name).read_bytes() for name in manifest.artefacts}
    except (OSError, JaxresearchError):
        return False
    return all(
        _SCHEME + hashlib.sha256(blobs[name]).hexdigest() == digest for name, digest in manifest.artefacts.items()
    )


def read_manifest(root: Path, program: str) -> Manifest:
    """What a stored program says it is; `load` checks that it is so. Raises `JaxresearchError`."""
    try:
        return Manifest.model_validate_json((program_folder(root, program) / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise JaxresearchError(f"program {program[:19]} cannot be read: {error}.", fix=_FIX) from None


def load(
    root: Path, program: str, kernel: Kernel | None = None, verified: VerifiedModules | None = None
) -> LoadedProgram:
    """Read a stored program back, checking that it is the one that its name says. Raises `JaxresearchError`.

    kernel: put in the place of every attention that the laboratory knows, if it agrees with that on this machine.
    verified: what this process has verified and stored under that name. Where the files still hold that, byte for byte,
    it need not be read again.
    """
    folder, fix = program_folder(root, program), _FIX
    manifest = read_manifest(root, program)
    try:
        blobs = {name: (folder / name).read_bytes() for name in manifest.artefacts}
    except OSError as error:
        raise JaxresearchError(f"program {program[:19]} cannot be read: {error}.", fix=fix) from None
    for name, digest in manifest.artefacts.items():
        if _SCHEME + hashlib.sha256(blobs[name]).hexdigest() != digest:
            raise JaxresearchError(f"program {program[:19]}: {name} is damaged.", fix=fix)
    names = ["init", *(f"train_step_{i}" for i in range(len(manifest.phases))), "logits"]
    in_order = tuple(blobs[f"{name}.mlirbc"] for name in names)
    known = verified if verified is not None and verified.blobs == in_order else None
    modules = known.modules if known is not None else [stablehlo.parse(blob) for blob in in_order]
    found = program_name([module.text for module in modules], manifest.traced, manifest.phases)
    if found != program and manifest.jax != jax.__version__:
        # Its word that another jax stored it is no reason to believe it: whoever exchanged it could write that too.
        raise JaxresearchError(
            f"program {program[:19]} was stored by jax {manifest.jax}, and jax {jax.__version__} reads it differently.",
            fix=f"Use jax {manifest.jax} for this study, or start another one.",
        )
    if found != program:
        raise JaxresearchError(f"program {program[:19]} is stored under a name that is not its own.", fix=fix)
    if known is not None and kernel is None:
        settled, attention = known.plain, "xla"
    else:
        settled, attention = settle_attention(modules, kernel, manifest.platform)
    init, *steps, logits = (stablehlo.to_exported(module, manifest.platform) for module in settled)
    return LoadedProgram(manifest, init, tuple(steps), logits, attention)
