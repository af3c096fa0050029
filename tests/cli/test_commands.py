"""Commands without a study: doctor, prepare, train, the listings; and wrong usage of each."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxresearch.errors import JaxresearchError
from jaxresearch.execution.process import Confinement, WorkerProcess
from jaxresearch.execution.worker import WorkerSettings
from jaxresearch.sandbox.worker_tier import WorkerTier
from tests.cli.conftest import Result
from tests.data.texts import make_texts

TRAIN_KEYS = {
    "val_bpb", "loss", "steps", "tokens", "flops", "train_seconds", "compile_seconds", "eval_seconds", "trace_seconds",
    "total_seconds", "tokens_per_second", "mfu", "peak_memory_bytes", "parameters", "program", "corpus", "tokenizer",
    "seed", "budget", "device", "threads", "jax", "attention", "sandbox", "flags",
}  # fmt: skip


def test_every_command_has_help_that_ends_with_an_example(command: Callable[..., Result]):
    listed = command("--help")
    assert listed.status == 0
    lines = listed.stdout.split("Commands:")[1].splitlines()
    assert not [line for line in lines if line.endswith("...")], "each says its sentence to the end"
    names = [line.split()[0] for line in lines if line[2:3].strip()]
    assert {"doctor", "prepare", "train", "run", "resume", "status", "show", "export"} <= set(names)
    for name in names:
        shown = command(name, "--help")
        assert shown.status == 0
        assert f"Example: jaxresearch {name}" in " ".join(shown.stdout.split())


def test_no_command_shows_the_help(command: Callable[..., Result]):
    result = command()
    assert (result.status, result.stderr) == (0, "")
    assert "Start with:" in result.stdout


def test_strategies_and_subjects_are_listed_with_a_line_each(command: Callable[..., Result]):
    strategies = {row["name"]: row for row in command("strategies", "--json").json["strategies"]}
    assert strategies["greedy"]["summary"]
    assert {name for name, row in strategies.items() if not row["asks_model"]} == {"random_search", "tpe", "cmaes"}
    assert command("subjects", "--json").json["subjects"][0]["name"] == "gpt"
    assert "greedy" in command("strategies").stdout


def test_doctor_says_what_this_machine_has_and_no_key(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-value-that-must-not-appear")
    facts = command("doctor", "--json").json
    assert facts["provider_keys"] == ["OPENAI_API_KEY"] or "OPENAI_API_KEY" in facts["provider_keys"]
    assert facts["sandbox_tier"] in ("bubblewrap", "landlock", "subprocess")
    assert facts["worker_tier"].split()[0] in ("bubblewrap", "landlock", "unsandboxed")
    assert "jax" in facts["versions"]
    assert "cpu" in facts["devices"]
    assert "must-not-appear" not in json.dumps(facts) + command("doctor").stdout


def test_doctor_promises_no_tier_in_which_no_worker_starts(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    """Every self-test passes there; only a worker that is started finds that its box is of no use."""
    start = WorkerProcess.start

    async def start_outside(settings: WorkerSettings, confinement: Confinement | None = None) -> WorkerProcess:
        if confinement is not None:
            raise JaxresearchError("the worker did not start: exit status 1.")
        return await start(settings)

    if "unsandboxed" in command("doctor", "--json").json["worker_tier"]:
        pytest.skip("no tier holds here")
    monkeypatch.setattr(WorkerProcess, "start", start_outside)
    tier = command("doctor", "--json").json["worker_tier"]
    assert tier.startswith("unsandboxed (")
    assert "exit status 1" in tier

    async def start_nowhere(settings: WorkerSettings, confinement: Confinement | None = None) -> WorkerProcess:
        raise JaxresearchError("the worker did not start: no Python.")

    monkeypatch.setattr(WorkerProcess, "start", start_nowhere)
    assert command("doctor", "--json").json["worker_tier"] == "none (the worker did not start: no Python)"


def test_doctor_tells_of_a_full_disk_and_goes_on(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    async def full() -> WorkerTier:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jaxresearch.execution.trial.try_worker", full)
    facts = command("doctor", "--json").json
    assert facts["worker_tier"].startswith("none (No space left on device: ")
    assert facts["sandbox_tier"]


def test_a_required_sandbox_that_is_not_there_refuses_in_one_line(
    command: Callable[..., Result], config_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("jaxresearch.sandbox.selftest.shutil.which", lambda name: None)
    result = command("train", "--config", config_file, "--require-sandbox", "bubblewrap")
    assert result.status == 1
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert (
        "sandbox.require: bubblewrap is required, and tracing would not have it here: bubblewrap: bwrap is not" in last
    )
    assert "apt-get install bubblewrap" in result.stderr
    assert command("train", "--require-sandbox", "docker").status == 2


def test_prepare_reports_the_corpus(command: Callable[..., Result], config_file: Path):
    facts = command("prepare", "--config", config_file, "--json").json
    assert set(facts["splits"]) == {"train", "validation", "test"}
    assert facts["corpus"].startswith("sha256:")
    assert 0 < facts["unigram_bpb"] < 8
    assert "unigram" in command("prepare", "--config", config_file).stdout


def test_prepare_takes_a_folder_of_mixed_files(command: Callable[..., Result], cache_root: Path, tmp_path: Path):
    texts = make_texts(300, seed=5)
    (tmp_path / "one.txt").write_text("\n\n".join(texts[:200]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "two.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[200:]))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    facts = command("prepare", "--corpus", tmp_path, "--vocab-size", 320, "--set", "context=16", "--json").json
    assert facts["splits"]["train"]["documents"] > 90


def test_train_prints_what_scripts_rely_on(command: Callable[..., Result], config_file: Path):
    result = command("train", "--config", config_file, "--seed", 3, "--json")
    assert result.status == 0
    assert set(result.json) >= TRAIN_KEYS
    assert result.json["seed"] == 3
    assert result.json["budget"] == "6steps"
    assert result.json["steps"] == 6


def test_train_twice_in_two_processes_agrees_to_the_last_digit(process: Callable, config_file: Path):
    both = [process("train", "--config", config_file, "--budget", "9steps", "--json") for _ in range(2)]
    first, second = (json.loads(each.communicate(timeout=240)[0]) for each in both)
    assert first["val_bpb"] == second["val_bpb"]
    assert first["identity"] == second["identity"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["frobnicate"], 2, "No such command"),
        (["train", "--bugdet", "3s"], 2, "No such option"),
        (["train", "--budget", "soon"], 2, "'soon' is not a budget"),
        (["train", "--set", "limits.trace_secnds=3"], 2, "limits.trace_secnds"),
        (["train", "--set", "nonsense"], 2, "expected key=value"),
        (["train", "--config", "/no/such.yaml"], 2, "/no/such.yaml"),
        (["train", "--experiment", "3"], 2, "--experiment needs --study"),
        (["train", "--set", "subject.source=nobody"], 2, "nobody"),
        (["prepare", "--corpus", "/no/such/text"], 2, "/no/such/text"),
        (["run", "--strategy", "wishful"], 2, "no strategy 'wishful'"),
        (["run", "--set", "strategy.widht=3"], 2, "strategy.widht"),
        (["run", "--llm", "nobody:nothing"], 2, "nobody"),
        (["run", "--llm", "nobody:nothing", "--llm", "builtin"], 2, "nobody"),
        (["run", "--llm", "vertex:b@20250929, builtin"], 2, "20250929"),
        (["run", "--experiments", "-1"], 2, "experiments"),
        (["run", "--experiments", "many"], 2, "'many' is not a whole number"),
        (["run", "--max-cost", "much"], 2, "'much' is not a number"),
        (["run", "--executor", "moon"], 2, "'moon' is not one of 'local', 'ray'"),
        (["run", "--study", "caf\udce9"], 2, r"caf\xe9 is not UTF-8"),
        (["prepare", "caf\udce9"], 2, r"corpus.source: the path caf\xe9 is not UTF-8"),
        (["resume", "/no/such/study"], 1, "holds no study"),
        (["status", "/no/such/study"], 1, "holds no study"),
        (["export", "/no/such/study", "--format", "xml"], 2, "xml"),
    ],
)
def test_wrong_input_gets_one_clear_line(
    command: Callable[..., Result], arguments: list[str], status: int, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.status == status
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_closed_to_us_is_one_line_that_names_it(command: Callable[..., Result], monkeypatch):
    exists = Path.exists

    def closed(path: Path) -> bool:
        if path.name == "elsewhere":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed)
    result = command("run", "--study", "elsewhere")
    assert (result.status, len(result.stderr.splitlines())) == (1, 1)
    assert "elsewhere cannot be used: Permission denied." in result.stderr


def test_a_group_without_a_command_shows_its_help(command: Callable[..., Result]):
    result = command("cloud")
    assert (result.status, result.stderr) == (0, "")
    assert "after a preemption, and stops when it is done." in " ".join(result.stdout.split()), "to the end"


def test_a_value_that_the_subject_refuses_is_a_wrong_configuration(command: Callable[..., Result], config_file: Path):
    result = command("train", "--config", config_file, "--set", "subject.hyperparameters.depht=3")
    assert result.status == 2
    assert "subject.hyperparameters: depht" in result.stderr


def test_an_error_with_json_is_still_one_object(command: Callable[..., Result]):
    result = command("train", "--budget", "soon", "--json")
    assert result.status == result.json["exit_status"] == 2
    assert "soon" in result.json["error"]


def test_a_subject_that_does_not_trace_says_where(command: Callable[..., Result], config_file: Path, tmp_path: Path):
    (tmp_path / "recipe.py").write_text("def hyperparameters(config):\n    raise ValueError('no such luck')\n")
    result = command("train", "--config", config_file, "--set", f"subject.source={tmp_path}")
    assert result.status == 1
    assert "no such luck" in result.stderr
    assert "models/recipe.py, line 2" in result.stderr
