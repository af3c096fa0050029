"""Runs INSIDE the sandbox: imports a candidate's `models`, traces it, writes StableHLO to standard output.

This file goes there alone, so it imports nothing of ours. Whatever it writes may be forged by the
candidate, which shares its process; the laboratory believes nothing of it beyond the StableHLO, and verifies that.

It may be started before there is a candidate; until its standard input is closed, it imports what candidates import.

Standard input: one JSON object {"tree", "config", "evaluation_batch", "platform", "limits": {...}}.
Standard output: 8 bytes length (big-endian), a JSON header of that length, the modules, of the sizes in "blobs".
"""

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import json
import os
import resource
import sys
import traceback

USUAL = ("jax", "jax.numpy", "jax.export", "flax.nnx", "optax")
"""What most candidates import. One that fails is left to them, who may not need it."""


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the candidate prints is a log, never a result
    for name in USUAL:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what was imported stays; to look through it again and again is a tenth of a trace
    request = json.loads(sys.stdin.buffer.read())
    set_limits(request["limits"])
    sys.dont_write_bytecode = True
    try:
        header, blobs = trace(request)
    except BaseException as error:  # the candidate may raise anything, SystemExit and KeyboardInterrupt included
        header, blobs = {"error": explain(error), "traceback": traceback.format_exc()[-8192:]}, []
    encoded = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    out.write(len(encoded).to_bytes(8, "big") + encoded + b"".join(blobs))
    out.flush()
    os._exit(0)


def set_limits(limits: dict) -> None:
    """Hard limits of this process and its children, in bytes and seconds."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, key in (("RLIMIT_AS", "memory_bytes"), ("RLIMIT_FSIZE", "file_bytes"), ("RLIMIT_CPU", "cpu_seconds")):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = int(limits[key]) if hard == resource.RLIM_INFINITY else min(int(limits[key]), hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            print(f"tracer: {name} cannot be set on this system", file=sys.stderr)


def explain(error: BaseException) -> str:
    """One line: what was raised, and the candidate's own line that raised it."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if f"{os.sep}models{os.sep}" in frame.filename:
            where = f" (models/{os.path.basename(frame.filename)}, line {frame.lineno})"
    if isinstance(error, SyntaxError) and error.filename:
        where = f" (models/{os.path.basename(error.filename)}, line {error.lineno})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"[:500]


def import_subject(tree: str):
    """The candidate's package `models`, whatever else of that name is installed; then its `recipe`."""
    folder = os.path.join(tree, "models")
    init = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("models", init, submodule_search_locations=[folder])
    if spec is None or spec.loader is None:
        raise ImportError(f"{init} is not a Python file")
    package = importlib.util.module_from_spec(spec)
    sys.modules["models"] = package
    spec.loader.exec_module(package)
    return importlib.import_module("models.recipe")


def trace(request: dict) -> tuple[dict, list[bytes]]:
    import jax
    import jax.numpy as jnp
    from jax import export

    recipe = import_subject(request["tree"])
    hyperparameters = recipe.hyperparameters(request["config"])
    subject = recipe.build(hyperparameters)
    fields = [describe(field, hyperparameters) for field in dataclasses.fields(hyperparameters)]
    names = sorted(field["name"] for field in fields if field["traced"])
    context, batch = request["config"]["context"], request["evaluation_batch"]

    def struct(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    scalar, count = struct((), jnp.float32), len(names)
    shapes = jax.eval_shape(subject.init, struct((), jnp.uint32), dict.fromkeys(names, scalar))
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [struct(leaf.shape, leaf.dtype) for _, leaf in paths]

    def lower(function, *arguments):
        jitted = jax.jit(function, keep_unused=True)
        exported = export.export(jitted, platforms=[request["platform"]])(*arguments)
        return exported.mlir_module_serialized

    def init(seed, *values):
        return jax.tree.leaves(subject.init(seed, dict(zip(names, values, strict=True))))

    metrics: list[str] = []

    def train_step(*flat):
        state = jax.tree.unflatten(tree, flat[: len(leaves)])
        tokens, progress = flat[len(leaves) : len(leaves) + 2]
        values = dict(zip(names, flat[len(leaves) + 2 :], strict=True))
        state, reported = subject.train_step(state, tokens, progress, values)
        metrics[:] = ["loss", *sorted(set(reported) - {"loss"})]
        return [*jax.tree.leaves(state), *(jnp.float32(reported[name]) for name in metrics)]

    def logits(*flat):
        return subject.logits(jax.tree.unflatten(tree, flat[:-1]), flat[-1])

    phases = [[float(until), int(rows), int(length)] for until, rows, length in subject.phases]
    blobs = [lower(init, struct((), jnp.uint32), *[scalar] * count)]
    for _, rows, length in phases:
        tokens = struct((rows, length + 1), jnp.int32)
        blobs.append(lower(train_step, *leaves, tokens, scalar, *[scalar] * count))
    blobs.append(lower(logits, *leaves, struct((batch, context), jnp.int32)))
    header = {
        "hyperparameters": fields,
        "traced": names,
        "phases": phases,
        "leaves": [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths],
        "metrics": metrics,
    }
    return header, blobs


def describe(field: dataclasses.Field, hyperparameters: object) -> dict:
    """One hyperparameter as plain data."""
    facts = field.metadata
    return {
        "name": field.name,
        "value": getattr(hyperparameters, field.name),
        "low": facts.get("low"),
        "high": facts.get("high"),
        "log": bool(facts.get("log", False)),
        "traced": bool(facts.get("traced", False)),
        "choices": list(facts.get("choices") or ()),
        "doc": str(facts.get("doc") or ""),
    }


if __name__ == "__main__":
    main()
