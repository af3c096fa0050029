"""A study's copy in a bucket: taken while it runs, gone on with elsewhere, to the same end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from jaxresearch.cloud.copying import fetch, save
from jaxresearch.errors import JaxresearchError

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
from fakes import Bench, config
from test_durability import SHORT, assert_same, drive, wait_for

from jaxresearch.study.events import RunStarted


def test_a_copy_of_a_running_study_ends_as_the_study_would_have(tmp_path: Path):
    bench = Bench(tmp_path / "study", config(len(SHORT)))
    study, bucket = bench.create(), tmp_path / "bucket/night"
    process = drive(bench.folder)
    try:
        for count in (2, 5, 7):
            wait_for(study, RunStarted, count)
            assert save(bench.folder, bucket) > 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for empty in sorted(bucket.rglob("*"), reverse=True):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()  # as in a bucket, which holds no folders
    assert not (bucket / "lock").exists()
    fetch(bucket, tmp_path / "elsewhere/study")
    there = Bench(tmp_path / "elsewhere/study")
    assert there.open().history.seq > 10
    whole = Bench(tmp_path / "whole", config(len(SHORT))).run(SHORT)
    assert_same(there.run(SHORT), whole)


def test_what_the_study_removed_is_removed_and_what_is_there_is_not_copied_again(tmp_path: Path):
    study = Bench(tmp_path / "study", config(len(SHORT))).run(SHORT)
    study.close()
    folder, bucket = tmp_path / "study", tmp_path / "bucket"
    old = folder / "runs/abc/checkpoints/10"
    old.mkdir(parents=True)
    (old / "data").write_bytes(b"x" * 100)
    first = save(folder, bucket)
    assert (bucket / "runs/abc/checkpoints/10/data").exists()
    (old / "data").unlink()
    assert save(folder, bucket) < first
    assert not (bucket / "runs/abc/checkpoints/10/data").exists()
    assert not list(bucket.rglob(".draft-*"))


def test_a_run_that_was_done_again_is_copied_again(tmp_path: Path):
    Bench(tmp_path / "study", config(1)).create().close()
    path = tmp_path / "study/runs/abc/nats.npy"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    save(tmp_path / "study", tmp_path / "bucket")
    fetch(tmp_path / "bucket", tmp_path / "elsewhere")  # the machine was taken away before the ledger had that run
    again = tmp_path / "elsewhere/runs/abc/nats.npy"
    count = save(tmp_path / "elsewhere", tmp_path / "bucket")
    again.write_bytes(b"other")
    assert save(tmp_path / "elsewhere", tmp_path / "bucket") == count + 1
    assert (tmp_path / "bucket/runs/abc/nats.npy").read_bytes() == b"other"


def test_what_cannot_be_copied_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(JaxresearchError, match="holds no study"):
        save(tmp_path, tmp_path / "bucket")
    study = Bench(tmp_path / "study", config(1)).create()
    study.close()
    with pytest.raises(JaxresearchError, match="inside the study"):
        save(tmp_path / "study", tmp_path / "study/copy")
    with pytest.raises(JaxresearchError, match="is there already"):
        fetch(tmp_path / "study", tmp_path / "study")
    (tmp_path / "file").touch()
    with pytest.raises(JaxresearchError, match="could not be copied"):
        save(tmp_path / "study", tmp_path / "file/bucket")
