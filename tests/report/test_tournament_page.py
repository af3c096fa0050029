"""The page and the figure of a tournament."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import HOSTILE, tournament_facts

from jaxresearch.report.figure import write_curves
from jaxresearch.report.page import render_tournament


def test_the_page_tells_the_result_without_javascript_and_carries_no_single_curves():
    page = render_tournament(tournament_facts())
    assert "greedy beat random_search by 0.0080 bpb" in page.split("<noscript>")[1].split("</noscript>")[0]
    assert len(page) < 200_000
    assert "<script>window" not in render_tournament(tournament_facts(HOSTILE))


def test_curves_over_four_kinds_of_spending_arms_and_contrasts_are_shown(visit, tmp_path: Path):
    (tmp_path / "page.html").write_text(render_tournament(tournament_facts()), "utf-8")
    page = visit((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#curves .chart svg")
    assert page.locator("#curves .chart svg > path").count() == 6, "a band and a line for each arm"
    drawn = set()
    for over in ("experiments", "accelerator_seconds", "llm_cost_usd", "flops"):
        page.locator(f"[data-over={over}]").focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(60)
        drawn.add(page.locator("#curves .axis-title").first.text_content())
        assert page.locator("#curves [aria-pressed=true]").get_attribute("data-over") == over
    assert len(drawn) == 4
    assert page.locator("#arms tbody tr").count() == 3
    assert "0.0200" in page.locator("#pairwise").inner_text()


@pytest.mark.parametrize("width", [320, 1200])
def test_hostile_names_are_text_and_fit(visit, tmp_path: Path, width: int):
    (tmp_path / "page.html").write_text(render_tournament(tournament_facts(HOSTILE)), "utf-8")
    page = visit((tmp_path / "page.html").as_uri(), width=width, dark=True)
    page.wait_for_selector("#curves .chart svg")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#app script, #app img").count() == 0


@pytest.mark.parametrize("text", ["", HOSTILE])
def test_the_figure_shows_every_arm(tmp_path: Path, text: str):
    write_curves(tournament_facts(text), tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text("utf-8")
    assert all(each in drawn for each in ("accelerator seconds", "dollars of language model", "random_search"))
    assert "<script" not in drawn
