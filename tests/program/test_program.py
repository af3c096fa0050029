import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.program.program import load, program_folder, program_name, store
from tests.laboratory import ROOT
from tests.program.modules import (
    BATCH,
    CONTEXT,
    F32,
    PHASES,
    TOKENS,
    TRACED,
    VOCAB,
    WEIGHT,
    exported,
    honest,
    init,
    logits,
    step,
    step_arguments,
    verified,
)


def keep(root: Path, found=None):
    return store(
        root,
        found or verified(),
        platform="cpu",
        traced=TRACED,
        phases=PHASES,
        leaves=("weight",),
        metrics=("loss",),
        signature=(BATCH, CONTEXT, VOCAB),
    )


def named(*blobs: bytes) -> str:
    return program_name([module.text for module in verified(*blobs).modules], TRACED, PHASES)


def from_source(source: str) -> bytes:
    """`logits` from a source text, so that lines, comments and names can differ."""
    space = {"jnp": jnp}
    exec(compile(source, "candidate.py", "exec"), space)
    return exported(space["logits"], WEIGHT, TOKENS)


PLAIN = "def logits(weight, tokens):\n    row = weight[tokens]\n    return [row * 2.0]\n"


@pytest.mark.parametrize(
    "same",
    [
        "\n\n\n\n\n" + PLAIN,
        "# a remark\n" + PLAIN.replace("[tokens]", "[tokens]  # picked"),
        "def logits(w, x):\n    picked = w[x]\n    unused = 3\n    return [picked * 2.0]\n",
        "def logits(weight, tokens):\n    def doubled(x):\n        return x * 2.0\n    return [doubled(weight[tokens])]\n",
    ],
)
def test_lines_comments_and_local_names_do_not_change_a_programs_name(same):
    assert named(from_source(same)) == named(from_source(PLAIN))


@pytest.mark.parametrize("other", ["* 2.0000002", "* 3.0", "+ 2.0", "* 2.0 * 1.5"])
def test_a_changed_constant_or_operation_is_another_program(other):
    assert named(from_source(PLAIN.replace("* 2.0", other))) != named(from_source(PLAIN))


def test_large_constants_differ_by_one_element():
    def baked(last):
        table = np.arange(200.0, dtype=np.float32)
        table[-1] = last
        return named(exported(lambda w, t: [w[t] + jnp.asarray(table).max()], WEIGHT, TOKENS))

    assert baked(1.0) != baked(2.0)


def test_phases_and_names_of_inputs_belong_to_the_name():
    texts = [module.text for module in verified().modules]
    names = {program_name(texts, *rest) for rest in ((TRACED, PHASES), (("wd",), PHASES), (TRACED, ((1.0, 3, 7),)))}
    assert len(names) == 3
    assert program_name(["ab", "c"], (), ()) != program_name(["a", "bc"], (), ())


def test_a_program_comes_back_as_it_was_stored(tmp_path):
    manifest = keep(tmp_path)
    loaded = load(tmp_path, manifest.program)
    assert loaded.manifest == manifest
    assert (manifest.parameters, manifest.phases, len(loaded.steps)) == (64, PHASES, 1)
    (weight,) = jax.jit(loaded.init.call)(jnp.uint32(3), jnp.float32(0.5))
    assert (np.asarray(weight) == 1.5).all()
    after, loss = jax.jit(loaded.steps[0].call)(
        weight, jnp.zeros((3, 7), jnp.int32), jnp.float32(0.5), jnp.float32(0.5)
    )
    assert (np.asarray(after) == 1.25).all()
    assert loss == 1.5


def test_storing_twice_changes_nothing(tmp_path):
    first = keep(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert keep(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_stored_program_has_the_name_of_the_traced_one(tmp_path):
    """Serialising and reading back must be the identity on the canonical form."""
    program = keep(tmp_path).program
    folder = program_folder(tmp_path, program)
    blobs = [(folder / f"{name}.mlirbc").read_bytes() for name in ("init", "train_step_0", "logits")]
    assert named(*blobs) == program


def test_what_was_verified_here_is_what_would_be_read(tmp_path):
    program = keep(tmp_path, found := verified()).program
    read, known = load(tmp_path, program), load(tmp_path, program, verified=found)
    assert (known.manifest, known.attention, known.state) == (read.manifest, read.attention, read.state)
    for one, other in zip((read.init, *read.steps, read.logits), (known.init, *known.steps, known.logits), strict=True):
        assert one.mlir_module_serialized == other.mlir_module_serialized


@pytest.mark.parametrize("known", [False, True], ids=["read", "verified-here"])
@pytest.mark.parametrize("name", ["init.mlirbc", "logits.mlirbc", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_artefact_is_detected_and_says_which(tmp_path, name, damage, known):
    program = keep(tmp_path, found := verified()).program
    path = program_folder(tmp_path, program) / name
    blob = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        middle = len(blob) // 2
        flipped = blob[:middle] + bytes([blob[middle] ^ 0x80]) + blob[middle + 1 :]
        path.write_bytes({"flip": flipped, "truncate": blob[:-9], "empty": b""}[damage])
    with pytest.raises(JaxresearchError, match=f"program {program[:19]}"):
        load(tmp_path, program, verified=found if known else None)


@pytest.mark.parametrize("known", [False, True], ids=["read", "verified-here"])
def test_a_program_under_another_ones_name_is_refused(tmp_path, known):
    first = keep(tmp_path, found := verified())
    second = keep(tmp_path, verified(from_source(PLAIN)))
    target = program_folder(tmp_path, first.program)
    for path in program_folder(tmp_path, second.program).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    with pytest.raises(JaxresearchError, match="not its own"):
        load(tmp_path, first.program, verified=found if known else None)


def test_an_exchanged_program_cannot_pass_for_one_of_another_jax(tmp_path):
    first, second = keep(tmp_path), keep(tmp_path, verified(from_source(PLAIN)))
    target = program_folder(tmp_path, first.program)
    for path in program_folder(tmp_path, second.program).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    manifest = target / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "jax": "0.9.9"}))
    with pytest.raises(JaxresearchError, match=r"was stored by jax 0\.9\.9, and jax .* reads it differently"):
        load(tmp_path, first.program)


def test_a_program_of_another_jax_that_still_has_its_name_is_read(tmp_path):
    program = keep(tmp_path).program
    manifest = program_folder(tmp_path, program) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "jax": "0.9.9"}))
    assert load(tmp_path, program).manifest.jax == "0.9.9"


def test_a_manifest_that_claims_other_phases_is_refused(tmp_path):
    program = keep(tmp_path).program
    path = program_folder(tmp_path, program) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "phases": [[1.0, 4, 6]]}))
    with pytest.raises(JaxresearchError, match="not its own"):
        load(tmp_path, program)


@pytest.mark.parametrize(
    "name", ["", "sha256:", "sha256:" + "g" * 64, "../../etc/passwd", "sha256:../" + "a" * 61, "a" * 65]
)
def test_what_is_no_programs_name_leads_to_no_folder(tmp_path, name):
    with pytest.raises(JaxresearchError, match="not the name of a program"):
        load(tmp_path, name)


RUN_ELSEWHERE = """
import sys, jax, numpy as np
from pathlib import Path
from jaxresearch.program.program import load
loaded = load(Path(sys.argv[1]), sys.argv[2])
(weight,) = jax.jit(loaded.init.call)(np.uint32(7), np.float32(0.3))
tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
print(np.asarray(jax.jit(loaded.logits.call)(weight, tokens)[0]).tobytes().hex())
"""


def test_logits_are_bit_identical_in_another_process(tmp_path):
    def noisy(seed, lr):
        return [jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB)) * lr]

    def deep(weight, tokens):
        return [jnp.tanh(weight[tokens] @ weight @ jax.nn.softmax(weight))]

    first = exported(noisy, jax.ShapeDtypeStruct((), jnp.uint32), F32)
    blobs = first, exported(step, *step_arguments()), exported(deep, WEIGHT, TOKENS)
    program = keep(tmp_path, verified(*blobs)).program
    here = jax.jit(lambda: deep(*noisy(jnp.uint32(7), jnp.float32(0.3)), jnp.arange(8).reshape(2, 4)))()
    command = [sys.executable, "-c", RUN_ELSEWHERE, str(tmp_path), program]
    printed = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(2)]
    assert printed[0] == printed[1]
    elsewhere = np.frombuffer(bytes.fromhex(printed[0].strip()), np.float32).reshape(2, 4, 8)
    np.testing.assert_allclose(elsewhere, here[0], atol=1e-6)


def test_the_honest_modules_here_are_what_the_helpers_say():
    assert named() == named(*honest())
    assert named(exported(logits, WEIGHT, TOKENS)) == named()
    assert init(jnp.uint32(2), 1.0)[0].shape == (VOCAB, VOCAB)
