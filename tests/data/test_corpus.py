import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresearch.data.corpus import NAMES, PYTHON_STDLIB, SPLITS, find_source, split_of
from jaxresearch.data.formats import LARGE_TEXT_BYTES, LARGEST_PIECE_BYTES, cut
from jaxresearch.data.hub import HUB_DATASETS
from jaxresearch.errors import ConfigurationError, JaxresearchError


def read(path):
    return [document.text for document in find_source(path).documents()]


def error_of(path) -> str:
    with pytest.raises(JaxresearchError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


def write_parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_the_split_is_ninety_five_five_and_known_by_the_key_alone():
    splits = [split_of(f"file-{index}.py") for index in range(20_000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert split_of("json/decoder.py") == "train"


def test_python_stdlib_is_library_code_only():
    documents = list(find_source("python-stdlib").documents())
    keys = [document.key for document in documents]
    assert "json/decoder.py" in keys
    assert keys == sorted(keys)
    for key in keys:
        folders = key.split("/")
        assert not {"test", "tests", "idle_test", "site-packages", "pydoc_data", "__pycache__"} & set(folders)
        assert not folders[-1].startswith("test_")
    assert len({document.text for document in documents}) == len(documents)
    assert sum(document.size_bytes for document in documents) > 5_000_000


def test_text_is_taken_as_it_is(tmp_path):
    content = "\ufeffone\r\ntwo \t\r\n\r\n e\u0301 \n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt")[0].encode() == content


def test_a_folder_of_mixed_files_is_read_in_order_and_ignores_the_rest(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.TXT").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "zero"}\n\n{"text": "one", "id": 1}\n')
    write_parquet(tmp_path / "c.parquet", text=["three", "four"], other=[1, 2])
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    source = find_source(tmp_path)
    assert [(item.key, item.text) for item in source.documents()] == [
        ("a.jsonl#0", "zero"),
        ("a.jsonl#1", "one"),
        ("b/two.TXT#0", "two"),
        ("c.parquet#0", "three"),
        ("c.parquet#1", "four"),
    ]
    assert source.ignored == 2


def test_the_place_of_a_source_does_not_matter(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "texts").mkdir(parents=True)
        (tmp_path / place / "texts" / "a.txt").write_text("a")
    here, there = (list(find_source(tmp_path / place / "texts").documents()) for place in ("here", "there"))
    assert here == there
    shutil.copy(tmp_path / "here" / "texts" / "a.txt", tmp_path / "a.txt")
    assert list(find_source(tmp_path / "a.txt").documents()) == here
    assert list(find_source(os.path.relpath(tmp_path / "a.txt")).documents()) == here


def test_equal_documents_are_read_once_so_no_text_is_in_two_splits(tmp_path):
    lines = [{"text": f"text number {index % 300}"} for index in range(900)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    documents = list(find_source(tmp_path / "a.jsonl").documents())
    assert len(documents) == 300
    assert len({document.text for document in documents}) == 300
    assert {document.split for document in documents} == set(SPLITS)


def test_progress_rises_to_one(texts_file):
    seen = []
    list(find_source(texts_file).documents(lambda stage, done: seen.append((stage, done)), "read"))
    assert {stage for stage, _ in seen} == {"read"}
    parts = [done for _, done in seen]
    assert len(parts) > 10
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


@given(
    st.lists(
        st.sampled_from(["word ", "語" * 50, "\n", "\n\n", "\r\n \r\n\n", "x" * 30_000, "🙂" * 6_000, "y" * 3_000])
    ),
    st.integers(0, 40),
)
def test_a_large_text_is_cut_into_pieces_that_give_it_back(parts, times):
    content = ("".join(parts) * times).encode()
    pieces = list(cut(content))
    assert b"".join(pieces) == content
    if len(content) > LARGE_TEXT_BYTES:
        assert all(0 < len(piece) <= LARGEST_PIECE_BYTES for piece in pieces)
    for piece in pieces:
        piece.decode()


def test_a_megabyte_of_paragraphs_is_cut_at_paragraphs():
    content = b"A line of plain English text here.\nAnd another one.\n\n" * 20_000
    pieces = list(cut(content))
    assert 200 < len(pieces) < 300
    assert all(piece.endswith(b"\n\n") for piece in pieces)


def test_wrong_paths_name_the_key(tmp_path):
    for path, expected in [
        (tmp_path / "none.txt", "does not exist"),
        (tmp_path, "is empty"),
        ("python-stdlibs", "does not exist"),
    ]:
        with pytest.raises(ConfigurationError, match=r"corpus\.source") as caught:
            find_source(path)
        assert expected in str(caught.value)
    (tmp_path / "a.md").write_text("text")
    assert "not one of .txt, .jsonl, .parquet" in error_of(tmp_path / "a.md")
    assert "none of its 1 files is .txt, .jsonl, .parquet" in error_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    assert "neither a file nor a folder" in error_of(tmp_path / "pipe.txt")


def test_a_name_that_is_unknown_is_answered_with_all_names(tmp_path):
    assert set(NAMES) == {PYTHON_STDLIB, *HUB_DATASETS}
    assert all(name in error_of(tmp_path / "climbmx") for name in NAMES)


def test_bad_text_names_the_file_alone_and_in_a_folder(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    bad = tmp_path / "latin.txt"
    bad.write_bytes("naïve".encode("latin-1"))
    for path in (bad, tmp_path):
        message = error_of(path)
        assert "latin.txt" in message
        assert "not UTF-8: byte 2" in message
    bad.write_bytes(b"ab\0cd")
    assert "latin.txt is binary" in error_of(bad)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"txt": "b"}', 'no field "text"'),
        ('{"text": 3}', 'no field "text"'),
        ("[1]", 'no field "text"'),
        ('{"text": "a', "not JSON"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_number(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    message = error_of(path)
    assert f"{path}:3 " in message
    assert expected in message


def test_bad_parquet_is_named(tmp_path):
    assert "no column `text`, only body, id" in error_of(write_parquet(tmp_path / "a.parquet", body=["x"], id=[1]))
    assert "row 2" in error_of(write_parquet(tmp_path / "b.parquet", text=["x", None]))
    assert "row 1" in error_of(write_parquet(tmp_path / "c.parquet", text=[1, 2]))
    (tmp_path / "d.parquet").write_bytes(b"not parquet")
    assert "d.parquet is not a readable parquet" in error_of(tmp_path / "d.parquet")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = error_of(tmp_path / "a.txt")
    assert "a.txt" in message
    assert "Permission denied" in message
