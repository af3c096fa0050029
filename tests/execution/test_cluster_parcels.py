"""Parcels: what travels between driver and nodes arrives whole, and nowhere else than it should. No Ray needed."""

from __future__ import annotations

import hashlib
import shutil
import sys

import pytest

from jaxresearch.config import validate_config
from jaxresearch.data import Corpus
from jaxresearch.data.manifest import MANIFEST_FILE, SEALED
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.execution.cluster import parcels
from jaxresearch.execution.cluster.connection import Cluster, Needs
from jaxresearch.program.program import program_folder
from tests.laboratory import Laboratory


def test_a_folder_arrives_as_it_was_without_drafts_and_links(tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "nats.npy").write_bytes(b"1")
    (source / "deep" / "state").write_bytes(b"2")
    (source / ".draft-x").write_bytes(b"half")
    (source / "link").symlink_to("/etc/passwd")
    packed = parcels.pack_folder(source)
    assert packed == {"nats.npy": b"1", "deep/state": b"2"}
    parcels.unpack(packed, tmp_path / "target")
    assert parcels.pack_folder(tmp_path / "target") == packed
    assert parcels.pack_folder(tmp_path / "absent") == {}


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", ""])
def test_a_parcel_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(JaxresearchError, match="no name of a file"):
        parcels.unpack({name: b""}, tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_damaged_program_is_brought_again(laboratory: Laboratory, baseline, tmp_path):
    files = parcels.pack_folder(program_folder(laboratory.root / "programs", baseline.program))
    folder = program_folder(tmp_path, baseline.program)
    assert not parcels.has_program(tmp_path, baseline.program)
    parcels.unpack_whole(files, folder)
    assert parcels.has_program(tmp_path, baseline.program)
    (folder / "init.mlirbc").write_bytes(b"flipped")
    assert not parcels.has_program(tmp_path, baseline.program)
    parcels.unpack_whole(files, folder)
    assert parcels.has_program(tmp_path, baseline.program)


def test_a_corpus_is_asked_for_without_its_sealed_test_and_its_manifest_last(tiny_corpus: Corpus, tmp_path):
    manifest = tiny_corpus.manifest
    missing = parcels.missing_files(tmp_path, manifest, sealed=False)
    assert missing[-1] == MANIFEST_FILE
    assert not any(name.startswith(SEALED) for name in missing)
    assert any(name.startswith(SEALED) for name in parcels.missing_files(tmp_path, manifest, sealed=True))
    for name in missing:
        part = parcels.part_path(tmp_path, name)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes((tiny_corpus.folder / name).read_bytes())
        parcels.accept_file(tmp_path, name, manifest)
    assert parcels.missing_files(tmp_path, manifest, sealed=False) == []
    assert Corpus.open(tmp_path).fingerprint == tiny_corpus.fingerprint


def test_a_file_of_a_corpus_that_was_changed_is_asked_for_again(tiny_corpus: Corpus, tmp_path):
    shutil.copytree(tiny_corpus.folder, tmp_path / "corpus")
    path = tmp_path / "corpus" / "byte_lengths.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert parcels.missing_files(tmp_path / "corpus", tiny_corpus.manifest, sealed=False) == ["byte_lengths.npy"]


def test_a_file_that_arrived_otherwise_is_refused(tiny_corpus: Corpus, tmp_path):
    name = "tokenizer.json"
    parcels.part_path(tmp_path, name).write_bytes(b"another")
    with pytest.raises(JaxresearchError, match="arrived damaged"):
        parcels.accept_file(tmp_path, name, tiny_corpus.manifest)
    assert list(tmp_path.iterdir()) == []


def test_needs_are_said_in_the_terms_of_ray():
    assert Needs(2, "TPU", 4, {"spot": 1}).options == {
        "num_cpus": 2,
        "num_gpus": 0,
        "resources": {"spot": 1, "TPU": 4},
    }
    assert Needs(1, "GPU", 2).options == {"num_cpus": 1, "num_gpus": 2, "resources": {}}
    assert str(Needs(1, "GPU", 2)) == "1 CPU, 2 GPU"


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"jaxresearch\[ray\]"):
        Cluster("auto")


@pytest.mark.parametrize("address", ["ray://somewhere:10001", "somewhere", "host:port"])
def test_an_address_that_cannot_be_one_is_refused(address):
    with pytest.raises(ConfigurationError, match=r"execution\.ray_address"):
        Cluster(address)


def test_two_corpora_share_a_name_only_when_they_are_equal(tiny_corpus: Corpus):
    manifest = tiny_corpus.manifest
    assert parcels.corpus_name(manifest) == parcels.corpus_name(manifest.model_copy(update={"python": "another"}))
    other = manifest.model_copy(update={"tokenizer": "sha256:" + hashlib.sha256(b"").hexdigest()})
    assert parcels.corpus_name(manifest) != parcels.corpus_name(other)


def test_a_study_on_a_cluster_can_be_told_where_it_is_now():
    config = validate_config({"execution": {"executor": "ray", "ray_address": "a:1"}})
    assert config.reaching("b:2").execution.ray_address == "b:2"
    assert config.reaching(None) == config
