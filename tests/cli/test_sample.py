"""`sample` on a real study, `verify` of its checkpoints, and a run that was killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jaxresearch.data import Corpus
from jaxresearch.errors import JaxresearchError
from jaxresearch.program.mesh import one_device
from jaxresearch.program.program import load
from jaxresearch.study.events import RunFinished
from jaxresearch.study.ledger import Ledger
from jaxresearch.study.study import Study
from jaxresearch.study.verification import compare_scores
from jaxresearch.training import seal
from jaxresearch.training.checkpoints import read_state
from tests.cli.conftest import Result
from tests.laboratory import CONTEXT, EVALUATION_BATCH


def likeliest(folder: Path, corpus: Corpus, prompt: str, tokens: int) -> list[int]:
    """The likeliest continuation by the baseline's state, straight from its program."""
    study = Study.open(folder)
    run, layout = study.history.baseline.experiment.checkpointed, study.layout
    study.close()
    program = load(layout.programs, run.program)
    placement = one_device()
    targets = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placement.leaf(s)) for s in program.state]
    state = seal.find_named(seal.checkpoint_folder(layout.runs, run.identity), run.checkpoint)
    leaves, _ = read_state(state, seal.read_seal(state), targets)
    logits = jax.jit(program.logits.call)
    ids = [corpus.tokenizer.bos, *corpus.tokenizer.encode(prompt).tolist()]
    for _ in range(tokens):
        window = ids[-CONTEXT:]
        rows = np.zeros((EVALUATION_BATCH, CONTEXT), np.int32)
        rows[:, : len(window)] = window
        ids.append(int(np.argmax(logits(*leaves, rows)[0][1, len(window) - 1, : corpus.tokenizer.bos + 1])))
    return ids[-tokens:]


def test_temperature_zero_gives_the_likeliest_text_of_that_state(
    command: Callable[..., Result], finished: Path, tiny_corpus: Corpus
):
    """A prompt longer than the context, so that the window slides; bytes that are no text; a terminal's commands."""
    prompt = "the \x1b[31mred\u202e <|bos|> \udcff" + "a b c " * 8
    asked = ("sample", finished, 0, "--prompt", prompt, "--tokens", 4, "--temperature", 0)
    facts = command(*asked, "--json").json
    heard = prompt.replace("\udcff", "\ufffd")
    assert facts["tokens"] == likeliest(finished, tiny_corpus, heard, 4)
    assert facts["experiment"] == 0
    result = command(*asked, "--seed", 5)
    assert result.status == 0
    assert result.stdout.startswith("the [31mred <|bos|> \ufffda b c")
    assert facts["text"] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("99",), 1, "has no experiment 99. It has 0 to 3."),
        (("0", "--temperature", "nan"), 2, "must be finite"),
        (("0", "--temperature", "-1"), 2, "--temperature"),
        (("0", "--top-k", "0"), 2, "--top-k"),
        (("0", "--tokens", "0"), 2, "--tokens"),
    ],
)
def test_what_cannot_be_sampled_is_refused(command: Callable[..., Result], finished: Path, arguments, status, why):
    result = command("sample", finished, *arguments)
    assert result.status == status
    assert why in result.stderr


def test_a_changed_byte_of_a_checkpoint_is_found(command: Callable[..., Result], finished: Path, tmp_path: Path):
    folder = tmp_path / "changed"
    shutil.copytree(finished, folder, symlinks=True)
    study = Study.open(folder)
    run = study.history.incumbent.experiment.checkpointed
    study.close()
    assert command("verify", folder, "--json").json["checkpoints"] >= 1
    state = seal.state_folder(seal.checkpoint_folder(folder / "runs", run.identity), run.steps)
    path = max(state.rglob("ocdbt*/d/*"), key=lambda each: each.stat().st_size)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    verified = command("verify", folder)
    assert verified.status == 1
    assert f"its checkpoint is damaged: {path.relative_to(state)} was changed" in verified.stderr
    sampled = command("sample", folder, "--tokens", 1)
    assert sampled.status == 1
    assert f"The checkpoint cannot be used: {path.relative_to(state)} was changed. Check the study" in sampled.stderr


STEPS = 1500


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_very_same_score(
    command: Callable[..., Result], process: Callable, config_file: Path, tmp_path: Path
):
    settings = yaml.safe_load(config_file.read_text())
    settings |= {"budget": f"{STEPS}steps", "experiments": 0}
    settings["execution"] |= {"checkpoint_seconds": 0.05}
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump(settings))
    folder = tmp_path / "killed"
    running = process("run", "--config", config, "--study", folder)
    _wait(lambda: list(folder.glob("runs/*/checkpoints/*.json")), running)
    for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert _finished_runs(folder) == []
    again = process("resume", folder)
    _wait(lambda: _finished_runs(folder), again)
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate()
    resumed = _finished_runs(folder)[0]
    assert 0 < resumed["resumed"][0]["steps"] < STEPS
    assert 0 < resumed["resumed"][0]["progress"] < 1
    assert resumed["checkpoint_note"] == ""
    whole = command("train", "--config", config, "--json").json
    for name in ("val_bpb", "loss", "steps", "tokens", "flops", "curve"):
        assert resumed[name] == whole[name], name


def _finished_runs(folder: Path) -> list[dict]:
    ledger = Ledger.open(folder / "ledger.sqlite", read_only=True)
    events = [stored.event for stored in ledger.read()]
    ledger.close()
    return [event.outcome.model_dump(mode="json") for event in events if isinstance(event, RunFinished)]


def _wait(condition: Callable[[], object], running) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_verify_scores_kept_states_again_to_the_last_digit(command: Callable[..., Result], finished: Path):
    facts = command("verify", finished, "--rescore", "--json").json
    assert len(facts["rescored"]) >= 1
    assert all(each["exact"] and each["recorded_bpb"] == each["repeated_bpb"] for each in facts["rescored"])
    assert "to the last digit" in command("verify", finished, "--rescore").stdout


def test_another_score_is_refused_and_a_little_rounding_elsewhere_is_not(finished: Path):
    study = Study.open(finished)
    run = study.history.baseline.experiment.checkpointed
    study.close()
    here = {name: getattr(run, name) for name in ("device", "threads", "devices", "processes", "jax")}
    elsewhere = {**here, "threads": run.threads + 1}
    near = run.val_bpb + 1e-7
    assert compare_scores("here", run, run.val_bpb, here, what="scored again").exact
    with pytest.raises(JaxresearchError, match="scored again"):
        compare_scores("here", run, near, here, what="scored again")
    assert not compare_scores("there", run, near, elsewhere, what="scored again").exact
    with pytest.raises(JaxresearchError, match="scored again"):
        compare_scores("there", run, run.val_bpb + 0.01, elsewhere, what="scored again")
