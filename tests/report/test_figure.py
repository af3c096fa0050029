"""The figure for a paper, and the command that writes it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxresearch.cli.app import _status
from jaxresearch.errors import JaxresearchError
from jaxresearch.report.build import read_record
from jaxresearch.report.figure import write_progress
from jaxresearch.study.study import Study
from jaxresearch.text import clean
from tests.laboratory import tiny_config


def test_equal_records_give_equal_figures_of_text(study: Path, tmp_path: Path):
    record = read_record(study)
    for name in ("a.svg", "b.svg"):
        write_progress(record, tmp_path / name)
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert text == (tmp_path / "b.svg").read_text("utf-8")
    ElementTree.fromstring(text)
    assert "validation bits per byte" in text
    assert f"#{record.incumbent}" in text


@pytest.mark.parametrize("name", ["h.svg", "h.png", "h.pdf"])
def test_hostile_text_makes_a_sound_figure(hostile_study: Path, tmp_path: Path, name: str):
    write_progress(read_record(hostile_study), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert len(content) > 3000
    if name.endswith("svg"):
        root = ElementTree.fromstring(content)
        assert not [each for each in root.iter() if each.tag.endswith(("script", "foreignObject", "image"))]
        assert clean(content.decode()) == content.decode()


def test_a_format_that_is_none_is_refused_first(study: Path, tmp_path: Path, capsys):
    with pytest.raises(JaxresearchError, match="no format"):
        write_progress(read_record(study), tmp_path / "x.docx")
    assert _status(["report", str(study), "-o", str(tmp_path / "r.html"), "--figure", str(tmp_path / "x.docx")]) == 1
    assert not (tmp_path / "r.html").exists()
    assert "--figure" in capsys.readouterr().err


def test_the_command_writes_both(study: Path, tmp_path: Path, capsys):
    page, figure = tmp_path / "r.html", tmp_path / "p.png"
    assert _status(["report", str(study), "-o", str(page), "--figure", str(figure), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == page.stat().st_size
    assert facts["experiments"] == 40
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert _status(["report", str(tmp_path), "-o", str(page)]) == 1


def test_a_study_that_has_not_run_has_a_report(tmp_path: Path):
    from synthetic import SUBJECT

    Study.create(tmp_path / "s", tiny_config(), SUBJECT, corpus="c", tokenizer="t").close()
    assert _status(["report", str(tmp_path / "s"), "--figure", str(tmp_path / "p.svg"), "--quiet"]) == 0
    assert (tmp_path / "s" / "report.html").is_file()
