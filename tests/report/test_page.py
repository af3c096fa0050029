"""The page as text: what a parser sees in it, what it weighs, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from synthetic import HOSTILE, make_study

from jaxresearch.report.build import StudyReader, read_record
from jaxresearch.report.page import SCRIPTS, json_block, page_data, render_report
from jaxresearch.report.record import revealed
from jaxresearch.text import clean

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags with attributes, the text of scripts, and all other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def plain(study: Path) -> str:
    return render_report(read_record(study))


@pytest.fixture(scope="module")
def hostile(hostile_study: Path) -> str:
    return render_report(read_record(hostile_study))


def strings(value):
    match value:
        case str():
            yield value
        case dict():
            for key, each in value.items():
                yield key
                yield from strings(each)
        case list():
            for each in value:
                yield from strings(each)


def test_it_holds_every_experiment_with_its_hypothesis_diff_runs_and_verdict(plain: str, study: Path):
    data, record = Page(plain).data, read_record(study)
    assert [row["number"] for row in data["rows"]] == list(range(41))
    for experiment in record.experiments[1:]:
        row, detail = data["rows"][experiment.number], data["details"][str(experiment.number)]
        assert row["verdict"] == experiment.verdict
        assert detail["hypothesis"] == experiment.hypothesis
        assert f"+note: n{experiment.number}" in detail["diff"]
        assert [run["seed"] for run in detail["runs"]] == [run.seed for run in experiment.runs]
        if experiment.val_bpb is not None:
            assert row["val_bpb"] == pytest.approx(experiment.val_bpb, rel=1e-5)
    assert data["study"]["integrity"]["head"] == StudyReader(study).history.head


def test_without_javascript_there_is_a_table(plain: str):
    page = Page(plain)
    assert [tag for tag, _ in page.tags].count("tr") == 42
    assert "depth 2 -> 3: two blocks are few" in page.text


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_nothing_is_fetched_and_only_our_script_may_run(name: str, request: pytest.FixtureRequest):
    html = request.getfixturevalue(name)
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2
    assert not set(names) & {"img", "iframe", "object", "embed", "form", "base", "svg", "video", "a"} - {"a"}
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "action", "srcset"):
            assert attributes.get(key, "#").startswith(("#", "data:")), attributes
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy


def test_hostile_text_is_text(hostile: str):
    page = Page(hostile)
    assert "<script>window.pwned=1</script>" in page.text
    for text in (hostile, *strings(page.data)):
        assert clean(text) == text, "control and bidirectional characters are gone, also behind JSON's escapes"
    assert set(re.findall(r"<script[^>]*>", hostile)) == {'<script type="application/json" id="data">', "<script>"}


def test_source_shows_hidden_characters_instead_of_dropping_them(hostile_study: Path):
    assert revealed("x = 1\u202e\x1b\t\n\U000e0001") == "x = 1\\u202e\\x1b\t\n\\U000e0001"
    assert revealed("naïve ✓") == "naïve ✓"
    tracebacks = {each.traceback for each in read_record(hostile_study).experiments if each.traceback}
    assert tracebacks
    assert all("\\u202eevil" in text for text in tracebacks)


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "&lt;", "\u2028", HOSTILE])
def test_a_json_block_means_nothing_to_a_parser_of_html(text: str):
    block = json_block({"key": text, text: 1})
    assert not set(block) & set("<>&\u2028\u2029")
    assert json.loads(block) == {"key": text, text: 1}


def test_the_scripts_never_parse_html():
    for name in SCRIPTS:
        source = files("jaxresearch.report").joinpath("assets", name).read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|DOMParser|javascript:", source
        )
        assert "</script" not in source.lower()


def test_three_hundred_experiments_stay_well_under_three_megabytes(tmp_path: Path):
    record = read_record(make_study(tmp_path / "big", 300, text=HOSTILE))
    assert len(render_report(record).encode()) < 2_400_000
    padded = record.model_copy(
        update={"experiments": tuple(each.model_copy(update={"diff": "+x\n" * 20_000}) for each in record.experiments)}
    )
    assert len(render_report(padded).encode()) < 3_000_000
    assert "cut here" in page_data(padded)["details"][7]["diff"]


def test_equal_studies_give_equal_pages(study: Path, plain: str):
    assert render_report(read_record(study)) == plain
