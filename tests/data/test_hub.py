"""Corpora of the hub, against a stub of it: fetched whole and checked, resumed, pinned, or refused in one line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from jaxresearch.cli import main
from jaxresearch.data import Corpus, fetch, prepare
from jaxresearch.data.shards import read_documents
from jaxresearch.errors import ConfigurationError, JaxresearchError

from .stub_hub import StubHub, parquet_bytes
from .texts import VOCAB_SIZE, make_texts

pytest.importorskip("huggingface_hub", reason="the [hub] extra is not installed")

REPO = "karpathy/climbmix-400b-shuffle"
FIRST, SECOND, PINNED = "shard_00000.parquet", "shard_00001.parquet", "shard_06542.parquet"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """Three shards of climbmix; two documents of the first stand in the pinned one too."""
    held_out = make_texts(120, seed=9)
    texts = {FIRST: make_texts(150, seed=1) + held_out[:2], SECOND: make_texts(150, seed=2), PINNED: held_out}
    stub = StubHub(REPO, {path: parquet_bytes(some) for path, some in texts.items()})
    monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("jaxresearch.data.fetch.FIRST_WAIT_SECONDS", 0.01)
    yield stub
    stub.close()


def raw(root: Path) -> Path:
    (folder,) = (root / "hub").iterdir()
    return folder


def names(root: Path) -> set[str]:
    return {path.name for path in raw(root).iterdir()}


def documents(corpus: Corpus, split: str) -> list[str]:
    folder = corpus.folder / ("sealed/test" if split == "test" else split)
    return [corpus.tokenizer.decode(ids) for ids in read_documents(folder, corpus.manifest.splits[split].shards)]


def refused(root: Path, source: str = "climbmix", **options) -> JaxresearchError:
    with pytest.raises(JaxresearchError) as caught:
        prepare(source, VOCAB_SIZE, root, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_one_shard_and_the_pinned_one_make_a_corpus(hub: StubHub, tmp_path: Path):
    stages: list[str] = []
    corpus = prepare("climbmix", VOCAB_SIZE, tmp_path, lambda stage, done: stages.append(stage))
    corpus.verify()
    assert names(tmp_path) == {"hub.json", FIRST, PINNED}
    assert (raw(tmp_path) / FIRST).read_bytes() == hub.files[FIRST]
    facts = corpus.manifest.hub
    assert facts is not None
    assert (facts.repo, facts.revision, facts.commit) == (REPO, "main", hub.commit)
    assert (facts.held_out, facts.train) == ((PINNED,), (FIRST,))
    assert {path: file.sha256 for path, file in facts.files.items()} == {
        path: hub._facts(path)["lfs"]["oid"] for path in (PINNED, FIRST)
    }
    assert stages[0].startswith("fetch: 0 of 2 files")
    assert "encode" in stages
    assert any(stage.startswith("fetch: 2 of 2 files") for stage in stages)


def test_validation_and_test_are_the_pinned_shard_and_no_training_text(hub: StubHub, tmp_path: Path):
    corpus = prepare("climbmix", VOCAB_SIZE, tmp_path)
    validation, test, train = (documents(corpus, split) for split in ("validation", "test", "train"))
    assert sorted(validation + test) == sorted(make_texts(120, seed=9))
    assert min(len(validation), len(test)) > 40
    assert train == make_texts(150, seed=1), "two of its documents were in the pinned shard: they are not trained on"


def test_more_shards_change_neither_what_is_scored_nor_the_tokenizer(hub: StubHub, tmp_path: Path):
    one, two = (prepare("climbmix", VOCAB_SIZE, tmp_path, shards=shards) for shards in (1, 2))
    assert one.fingerprint != two.fingerprint
    assert one.tokenizer_fingerprint == two.tokenizer_fingerprint
    assert (one.rows("validation", 32) == two.rows("validation", 32)).all()
    assert documents(one, "test") == documents(two, "test")
    assert documents(two, "train") == make_texts(150, seed=1) + make_texts(150, seed=2)
    assert hub.downloads(FIRST) == [None], "the second preparation fetched only what was missing"


def test_what_is_prepared_needs_no_hub_nor_the_raw_files(hub: StubHub, tmp_path: Path):
    corpus = prepare("climbmix", VOCAB_SIZE, tmp_path)
    hub.close()
    asked = len(hub.requests)
    (raw(tmp_path) / FIRST).unlink()
    assert prepare("climbmix", VOCAB_SIZE, tmp_path).folder == corpus.folder
    assert len(hub.requests) == asked


def test_tinystories_holds_out_its_own_validation_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    files = {
        "data/train-00000-of-00002-abc.parquet": parquet_bytes(make_texts(150, seed=1)),
        "data/train-00001-of-00002-def.parquet": parquet_bytes(make_texts(150, seed=2)),
        "data/validation-00000-of-00001-012.parquet": parquet_bytes(make_texts(120, seed=9)),
        "README.md": b"stories",
    }
    stub = StubHub("roneneldan/TinyStories", files)
    monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
    corpus = prepare("tinystories", VOCAB_SIZE, tmp_path)
    stub.close()
    assert corpus.manifest.hub.train == ("data/train-00000-of-00002-abc.parquet",)
    assert sorted(documents(corpus, "validation") + documents(corpus, "test")) == sorted(make_texts(120, seed=9))


def test_a_copy_of_the_dataset_can_be_named(hub: StubHub, tmp_path: Path):
    hub.repo = "me/copy"
    corpus = prepare("climbmix", VOCAB_SIZE, tmp_path, repo="me/copy", revision=hub.commit)
    assert (corpus.manifest.hub.repo, corpus.manifest.hub.revision) == ("me/copy", hub.commit)


def test_a_dropped_connection_is_taken_up_where_it_broke(hub: StubHub, tmp_path: Path):
    hub.drops[FIRST] = [5000, 0, 700]
    prepare("climbmix", VOCAB_SIZE, tmp_path).verify()
    assert hub.downloads(FIRST) == [None, "bytes=5000-", "bytes=5000-", "bytes=5700-"]


def test_files_come_at_the_same_time(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    both, send = threading.Barrier(2, timeout=20), hub._send_file

    def together(request, name):
        both.wait()
        send(request, name)

    monkeypatch.setattr(hub, "_send_file", together)
    prepare("climbmix", VOCAB_SIZE, tmp_path)
    assert not both.broken


def test_a_path_that_leads_out_of_the_cache_is_no_shard(hub: StubHub, tmp_path: Path):
    hub.files["shard_/../../../evil.parquet"] = hub.files[FIRST]
    assert "the 2 training shards" in refused(tmp_path, shards=3).message


def test_a_server_without_ranges_sends_it_from_the_start(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.drops[FIRST] = [5000]
    whole = hub._send_file

    def without_range(request, name):
        del request.headers["Range"]
        whole(request, name)

    monkeypatch.setattr(hub, "_send_file", without_range)
    prepare("climbmix", VOCAB_SIZE, tmp_path)
    assert (raw(tmp_path) / FIRST).read_bytes() == hub.files[FIRST]


def test_connections_that_bring_nothing_are_given_up_and_what_came_is_kept(hub: StubHub, tmp_path: Path):
    hub.drops[FIRST] = [5000] + [0] * 50
    assert f"the hub at {hub.endpoint} cannot be reached" in refused(tmp_path).message
    assert f"{FIRST}.part" in names(tmp_path)
    assert FIRST not in names(tmp_path)
    hub.drops[FIRST] = []
    prepare("climbmix", VOCAB_SIZE, tmp_path).verify()
    assert hub.downloads(FIRST)[-1] == "bytes=5000-"


def test_a_damaged_shard_is_fetched_again(hub: StubHub, tmp_path: Path):
    hub.corrupt[FIRST] = 1
    prepare("climbmix", VOCAB_SIZE, tmp_path).verify()
    assert hub.downloads(FIRST) == [None, None]
    assert (raw(tmp_path) / FIRST).read_bytes() == hub.files[FIRST]


def test_a_shard_that_stays_damaged_is_refused(hub: StubHub, tmp_path: Path):
    hub.corrupt[FIRST] = 2
    error = refused(tmp_path)
    assert f"{FIRST} arrived damaged twice: its SHA-256 is " in error.message
    assert not {FIRST, f"{FIRST}.part"} & names(tmp_path)
    prepare("climbmix", VOCAB_SIZE, tmp_path).verify()


def test_a_shard_that_was_damaged_on_the_disk_is_fetched_again(hub: StubHub, tmp_path: Path):
    prepare("climbmix", VOCAB_SIZE, tmp_path)
    for damaged in (b"cut", b"!" + hub.files[FIRST][1:]):
        (raw(tmp_path) / FIRST).write_bytes(damaged)
        prepare("climbmix", VOCAB_SIZE + len(hub.downloads(FIRST)), tmp_path)
        assert (raw(tmp_path) / FIRST).read_bytes() == hub.files[FIRST]
    assert len(hub.downloads(FIRST)) == 3


def test_a_branch_that_moves_on_changes_nothing_here(hub: StubHub, tmp_path: Path):
    one = prepare("climbmix", VOCAB_SIZE, tmp_path)
    hub.main = "2" * 40
    two = prepare("climbmix", VOCAB_SIZE, tmp_path, shards=2)
    assert two.manifest.hub.commit == one.manifest.hub.commit == hub.commit
    assert "has no revision main" in refused(tmp_path / "new").message, "a new cache would ask for what main is now"


def test_a_file_that_changed_at_the_recorded_commit_is_refused(hub: StubHub, tmp_path: Path):
    prepare("climbmix", VOCAB_SIZE, tmp_path)
    hub.files[FIRST] = parquet_bytes(make_texts(150, seed=3))
    error = refused(tmp_path, shards=2)
    assert f"{FIRST} of {REPO} was changed on the hub" in error.message
    assert str(raw(tmp_path)) in error.fix
    hub.commit = "2" * 40
    assert "its recorded commit is gone" in refused(tmp_path, shards=2).message


def test_a_hub_that_is_down_or_busy_is_one_line(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.status = 503
    assert "answered 503" in refused(tmp_path).message
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert "cannot be reached" in refused(tmp_path).message
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.status = None
    prepare("climbmix", VOCAB_SIZE, tmp_path)


def test_wrong_names_and_numbers_are_one_line(hub: StubHub, tmp_path: Path):
    assert "shows no dataset nobody/nothing" in refused(tmp_path, repo="nobody/nothing").message
    assert "shows no dataset a/b/c" in refused(tmp_path, repo="a/b/c").message
    assert "has no revision v9" in refused(tmp_path, revision="v9").message
    error = refused(tmp_path, shards=3)
    assert isinstance(error, ConfigurationError)
    assert "corpus.shards: 3 is more than the 2 training shards" in error.message
    del hub.files[PINNED]
    assert f"has no file {PINNED}" in refused(tmp_path / "other").message
    assert "corpus.repo" in refused(tmp_path, source="python-stdlib", repo="a/b").message


def test_a_file_without_sha256_is_refused(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = hub._facts
    monkeypatch.setattr(hub, "_facts", lambda name: {**facts(name), "lfs": None})
    assert "knows no SHA-256" in refused(tmp_path).message


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refused(tmp_path)
    assert "huggingface_hub is not installed" in error.message
    assert error.fix.startswith("pip install 'jaxresearch[hub]'")


def test_a_full_disk_is_the_disk_s_fault(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch._Transfer, "_stream", full)
    assert "cannot write to the cache" in refused(tmp_path).message


def test_the_token_goes_to_the_hub_only(hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    answer = hub._answer
    monkeypatch.setattr(
        hub, "_answer", lambda request: (seen.append(request.headers["Authorization"]), answer(request))
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    corpus = prepare("climbmix", VOCAB_SIZE, tmp_path)
    assert set(seen) == {"Bearer hf_secret"}
    for path in [*raw(tmp_path).rglob("*"), *corpus.folder.rglob("*")]:
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_a_killed_fetch_is_taken_up_where_it_stopped(hub: StubHub, tmp_path: Path):
    half = len(hub.files[FIRST]) // 2
    hub.stuck[FIRST] = half
    code = (
        f"from pathlib import Path; from jaxresearch.data import prepare; prepare('climbmix', 320, Path('{tmp_path}'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    part = tmp_path / "hub" / f"{REPO.replace('/', '--')}@main" / f"{FIRST}.part"
    while not (part.exists() and part.stat().st_size == half):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    prepare("climbmix", VOCAB_SIZE, tmp_path).verify()
    assert hub.downloads(FIRST) == [None, f"bytes={half}-"]


def test_a_raw_shard_is_plain_parquet(hub: StubHub, tmp_path: Path):
    prepare("climbmix", VOCAB_SIZE, tmp_path)
    assert pyarrow.parquet.read_table(raw(tmp_path) / FIRST)["text"].to_pylist()[:150] == make_texts(150, seed=1)


def test_the_command_fetches_with_plain_lines_on_a_pipe(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("JAXRESEARCH_CACHE", str(tmp_path))
    arguments = ["prepare", "climbmix", "--shards", "2", "--vocab-size", str(VOCAB_SIZE), "--set", "context=32"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert "fetch: 0 of 3 files" in shown.err
    assert "fetch: 3 of 3 files" in shown.err
    assert "\r" not in shown.err
    assert f"{REPO} at {hub.commit}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "climbmix", "--corpus", "tinystories"], "two corpora"),
        (["prepare", "python-stdlib", "--shards", "2"], "--shards is for tinystories and climbmix"),
        (["prepare", "climbmix", "--shards", "0"], "corpus.shards"),
    ],
)
def test_wrong_usage_of_prepare(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
