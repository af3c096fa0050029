"""Whole studies through the command line: what a user sees, what a script reads, what an attacker gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxresearch.study.events import encode
from jaxresearch.study.ledger import Ledger
from tests.agents.fake_openai import FakeOpenAI, Reply, message, refusal
from tests.cli.conftest import Result
from tests.laboratory import BASELINE

STATUS_KEYS = {
    "study", "strategy", "llm", "experiments", "verdicts", "baseline", "incumbent", "noise_floor",
    "accelerator_seconds", "wall_seconds", "utilisation", "llm_cost_usd", "llm_tokens", "finished",
}  # fmt: skip
KEY = "sk-test-0123456789abcdef"


def test_a_study_ends_with_a_table_and_the_commands_to_go_on(command: Callable[..., Result], finished: Path):
    facts = command("status", finished, "--json").json
    assert set(facts) >= STATUS_KEYS
    assert facts["finished"] is True
    assert facts["experiments"] == 3 == sum(facts["verdicts"].values())
    assert facts["baseline"]["runs"] >= 3  # the incumbent may be asked for more pairs
    shown = command("status", finished).stdout
    assert "baseline" in shown
    assert f"jaxresearch show {finished}" in shown
    assert f"jaxresearch export {finished}" in shown


def test_show_gives_hypothesis_diff_runs_audits_and_the_way_to_run_it_again(
    command: Callable[..., Result], finished: Path
):
    facts = command("show", finished, 1, "--json").json
    assert facts["proposal"]["hypothesis"]
    assert facts["diff"].startswith("diff --git")
    assert facts["verdict"]
    assert facts["reason"]
    assert {audit["name"] for audit in facts["runs"][0]["audits"]} >= {"causality", "batch independence"}
    again = facts["runs"][0]
    rerun = command("train", "--study", finished, "--experiment", 1, "--seed", again["seed"], "--json").json
    assert rerun["val_bpb"] == again["val_bpb"]
    shown = command("show", finished, 1).stdout
    assert f"jaxresearch train --study {finished} --experiment 1" in shown
    assert "attention:    xla" in shown
    assert command("show", finished, 99).status == 1


def test_the_tsv_is_autoresearchs(command: Callable[..., Result], finished: Path, tmp_path: Path):
    rows = [line.split("\t") for line in command("export", finished, "--format", "tsv").stdout.splitlines()]
    assert rows[0] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert len(rows) == 5
    assert rows[1][3] == "keep"
    assert all(len(row) == 5 and row[3] in ("keep", "discard", "crash") for row in rows[1:])
    assert command("export", finished, "-o", tmp_path / "results.tsv").status == 0
    assert (tmp_path / "results.tsv").read_text().splitlines()[1].split("\t") == rows[1]


def test_a_finished_study_resumes_to_nothing_more(command: Callable[..., Result], finished: Path):
    before = command("status", finished, "--json").json
    after = command("resume", finished, "--json").json
    assert (after["verdicts"], after["incumbent"]) == (before["verdicts"], before["incumbent"])


def test_a_finished_study_replays_without_training(command: Callable[..., Result], finished: Path):
    facts = command("replay", finished, "--json").json
    assert facts["same"]
    assert facts["proposals"] + 1 == facts["verdicts"]


def test_who_only_looks_opens_nothing_to_write(
    command: Callable[..., Result], finished: Path, monkeypatch: pytest.MonkeyPatch
):
    """A study may lie on a disk, or in a copy, that cannot be written."""
    monkeypatch.setattr("jaxresearch.study.ledger._connect", lambda path, mode: pytest.fail(f"{path}: {mode}"))
    looks = (["status"], ["show"], ["show", 1], ["replay"], ["export"], ["export", "--format", "jsonl"])
    for name, *rest in looks:
        assert command(name, finished, *rest).status == 0


def test_a_folder_in_use_is_refused(command: Callable[..., Result], config_file: Path, finished: Path):
    result = command("run", "--config", config_file, "--study", finished)
    assert result.status == 1
    assert "resume" in result.stderr
    assert len(result.stderr.splitlines()) == 1, "at once: no corpus is prepared for it"


def test_a_study_for_ray_without_ray_is_not_begun(
    command: Callable[..., Result], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = command("run", "--config", config_file, "--study", tmp_path / "study", "--executor", "ray")
    assert result.status == 2
    assert "jaxresearch[ray]" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_study_ends_as_one_that_was_not(
    command: Callable[..., Result], process: Callable, config_file: Path, finished: Path, tmp_path: Path
):
    folder = tmp_path / "killed"
    running = process("run", "--config", config_file, "--study", folder, "--json")
    _wait_for(folder, running, experiments=2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    facts = command("resume", folder, "--json").json
    whole = command("status", finished, "--json").json
    assert facts["verdicts"] == whole["verdicts"]
    assert facts["incumbent"] == whole["incumbent"]
    shown = [command("show", each, "--json").json["experiments"] for each in (folder, finished)]
    titles = [[(e["number"], e["proposal"] and e["proposal"]["hypothesis"], e["verdict"]) for e in s] for s in shown]
    assert titles[0] == titles[1]


def test_an_interrupted_study_stops_cleanly_and_says_how_to_go_on(
    command: Callable[..., Result], process: Callable, config_file: Path, tmp_path: Path
):
    folder = tmp_path / "interrupted"
    running = process("run", "--config", config_file, "--study", folder, "--experiments", 50)
    _wait_for(folder, running, experiments=1)
    running.send_signal(signal.SIGINT)
    _, progress = running.communicate(timeout=120)
    assert running.returncode == 130
    assert f"jaxresearch resume {folder}" in progress
    assert command("status", folder, "--json").json["finished"] is False


PEEK = {
    "hypothesis": "look at the next token",
    "expected_effect": "everything",
    "edits": [
        {
            "path": "models/gpt.py",
            "search": "        return linear(norm(x_BxTxD), self.head)",
            "replace": "        ahead_BxT = jnp.roll(tokens_BxT, -1, axis=1)\n"
            "        return linear(norm(x_BxTxD), self.head) + 5 * jax.nn.one_hot(ahead_BxT, h.vocab_size)",
        }
    ],
}
PRINTED = {
    "hypothesis": "print a score",
    "expected_effect": "fame",
    "edits": [
        {
            "path": "models/recipe.py",
            "search": "from models.optimizer import optimizer",
            "replace": "from models.optimizer import optimizer\n\n"
            "print('val_bpb: 0.1')\nprint('{\"result\": {\"val_bpb\": 0.1}}')",
        }
    ],
}
BROKEN = {
    "hypothesis": "divide by zero while tracing",
    "expected_effect": "none",
    "edits": [
        {
            "path": "models/recipe.py",
            "search": "def build(hyperparameters: Hyperparameters) -> Recipe:",
            "replace": "def build(hyperparameters: Hyperparameters) -> Recipe:\n    1 / 0",
        }
    ],
}
GARBLED = {
    "hypothesis": "lose a bracket",
    "expected_effect": "none",
    "edits": [
        {
            "path": "models/gpt.py",
            "search": "x0_BxTxD = norm(lookup(self.token_embedding, tokens_BxT, h))",
            "replace": "x0_BxTxD = norm(lookup(self.token_embedding, tokens_BxT, h)",
        }
    ],
}


FASTER = {"hypothesis": "faster", "expected_effect": "a little", "config": {"matrix_lr": 0.06}}


def _code(facts: dict) -> Reply:
    return message(tool="propose_code", arguments=json.dumps(facts))


def test_a_provider_that_cheats_gains_nothing_and_the_study_goes_on(
    command: Callable[..., Result], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A peek is invalid; a printed score is a log, and its program a duplicate; code that stays broken is a crash."""
    assert PEEK["edits"][0]["search"] in BASELINE.files["models/gpt.py"]
    fine = message(tool="propose_config", arguments=json.dumps(FASTER))
    printed, broken, garbled = _code(PRINTED), _code(BROKEN), _code(GARBLED)
    replies = [_code(PEEK), *[printed] * 3, *[broken] * 3, *[garbled] * 3, fine]
    with FakeOpenAI(*replies) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        folder = tmp_path / "cheated"
        result = command(
            "run", "--config", config_file, "--study", folder, "--llm", "openai-chat:gpt-4o-mini",
            "--experiments", 5, "--json",
        )  # fmt: skip
    assert result.status == 0, result.stderr
    experiments = command("show", folder, "--json").json["experiments"]
    verdicts = [experiment["verdict"] for experiment in experiments[1:]]
    assert verdicts[:4] == ["invalid", "duplicate", "crash", "crash"]
    assert verdicts[4] in ("keep", "discard")
    assert all(experiment["val_bpb"] is None for experiment in experiments[1:5])
    assert "causality" in experiments[1]["reason"]
    assert "ZeroDivisionError" in experiments[3]["reason"]
    assert "SyntaxError" in experiments[4]["reason"]
    assert result.json["incumbent"]["val_bpb"] > 1
    assert result.json["llm_tokens"] > 0
    events = "".join(encode(stored.event) for stored in Ledger.open(folder / "ledger.sqlite").read())
    assert KEY not in result.stdout + result.stderr + events
    assert KEY.encode() not in (folder / "ledger.sqlite").read_bytes()


def test_a_provider_that_refuses_stops_the_study_with_one_line_and_it_resumes_with_another(
    command: Callable[..., Result], config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "refused"
    with FakeOpenAI(refusal(401, "invalid_api_key", "Incorrect API key")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        result = command("run", "--config", config_file, "--study", folder, "--llm", "openai-chat:gpt-4o-mini")
    assert result.status == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    assert "resume" in errors[0]
    facts = command("resume", folder, "--llm", "builtin", "--json").json
    assert facts["experiments"] == 3
    assert facts["finished"] is True


def _wait_for(folder: Path, running: subprocess.Popen, *, experiments: int, seconds: float = 240) -> None:
    """Wait until the study holds that many experiments beside the baseline."""
    from jaxresearch.errors import JaxresearchError
    from jaxresearch.study.study import Study

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        try:
            study = Study.open(folder)
        except JaxresearchError:
            time.sleep(0.05)
            continue
        found = len(study.history.contenders)
        study.close()
        if found >= experiments:
            return
        time.sleep(0.05)
    raise AssertionError("the study did not come that far")


def test_verify_finds_a_study_in_order_and_trains_a_run_again_to_the_last_digit(
    command: Callable[..., Result], finished: Path
):
    facts = command("verify", finished, 0, "--json").json
    assert facts["scores"] >= 6
    assert facts["programs"] >= 1
    assert len(facts["repeated"]) >= 3
    assert all(each["exact"] for each in facts["repeated"])


@pytest.mark.parametrize("what", ["score", "program", "ledger"])
def test_verify_finds_what_was_edited(command: Callable[..., Result], finished: Path, tmp_path: Path, what: str):
    import shutil
    import sqlite3

    import numpy as np

    study = tmp_path / "edited"
    shutil.copytree(finished, study)
    match what:
        case "score":
            path = next(study.glob("runs/*/nats.npy"))
            np.save(path, np.load(path) * 0.9)
        case "program":
            path = next(study.glob("programs/*/train_step_0.mlirbc"))
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        case "ledger":
            with sqlite3.connect(study / "ledger.sqlite") as connection:
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
                    connection.execute(f"DROP TRIGGER {name}")
                connection.execute(
                    "UPDATE events SET payload = replace(payload, '1.', '0.') WHERE kind = 'run_finished'"
                )
    result = command("verify", study)
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith("Error:")


def test_a_finished_study_is_confirmed_reported_and_exported(
    command: Callable[..., Result], finished: Path, tmp_path: Path
):
    import shutil

    study = tmp_path / "my study"
    shutil.copytree(finished, study)
    assert command("status", study, "--json").json["test"] is None
    confirmed = command("confirm", study, "--seeds", 2, "--json")
    assert confirmed.status == 0, confirmed.stderr
    assert command("status", study, "--json").json["test"] == confirmed.json["conclusion"]
    shown = command("status", study).stdout
    assert f"test       {confirmed.json['conclusion']}" in shown
    assert f"jaxresearch export '{study}' --format tsv" in shown, "a command that a shell takes as it stands"
    assert "opened before" in command("confirm", study).stderr
    page, figure = tmp_path / "page.html", tmp_path / "progress.svg"
    reported = command("report", study, "-o", page, "--figure", figure)
    assert reported.status == 0, reported.stderr
    assert "baseline" in page.read_text()
    assert figure.read_text().lstrip().startswith("<?xml")
    record = command("export", study, "--format", "json", "-o", tmp_path / "record.json")
    assert record.status == 0, record.stderr
    assert len(json.loads((tmp_path / "record.json").read_text())["experiments"]) == 4
    assert command("replay", study).status == 0
    assert command("verify", study).status == 0
