"""The page and the figure of a tournament."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from synthetic import HOSTILE, tournament_facts

from jaxresearch.report.figure import write_curves
from jaxresearch.report.page import render_tournament
from tests.laboratory import ROOT


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


def test_its_tables_fit_a_desk_and_say_on_a_phone_that_there_is_more(visit, tmp_path: Path):
    (tmp_path / "page.html").write_text(render_tournament(tournament_facts()), "utf-8")
    url = (tmp_path / "page.html").as_uri()
    beyond = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
    assert visit(url, width=1200).evaluate(beyond) == 0
    phone = visit(url, width=320)
    assert phone.evaluate(beyond) > 0
    assert "gradient" in phone.evaluate("getComputedStyle(document.querySelector('.scroll')).backgroundImage")
    assert phone.locator("#experiments p code").all_inner_texts() == ["jaxresearch report", "replay"]


def test_rates_and_calibration_of_the_example_are_on_the_page_and_fit_a_desk(visit, tmp_path: Path):
    facts = json.loads((ROOT / "docs/tournament/result.json").read_text())
    facts["strategies"][0]["rates"]["duplicate"] = 0.07
    (tmp_path / "page.html").write_text(render_tournament(facts), "utf-8")
    page = visit((tmp_path / "page.html").as_uri(), width=1200)
    page.wait_for_selector("#curves .chart svg")
    scored, shown = facts["strategies"][0]["calibration"], page.locator("#rates tbody tr").first.locator("td, th")
    kept, _, duplicates, *_, brier, of_share = shown.all_inner_texts()[1:]
    assert kept.startswith("6")
    assert duplicates.startswith("7")
    assert (brier, of_share) == (f"{scored['brier']:.3f}", f"{scored['brier_of_share']:.3f}")
    wide = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
    assert page.evaluate(wide) == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (119.7, "2 min 0 s"), (3599.7, "1 h 0 min"), (7190, "2 h 0 min")],
)  # fmt: skip
def test_a_length_of_time_is_rounded_before_it_is_split(visit, tmp_path: Path, seconds: float, shown: str):
    facts = tournament_facts()
    facts["strategies"][0] |= {"accelerator_seconds": seconds, "repeats": 1}
    (tmp_path / "page.html").write_text(render_tournament(facts), "utf-8")
    page = visit((tmp_path / "page.html").as_uri())
    assert page.locator("#money tbody tr").first.locator("td").nth(1).inner_text() == shown


@pytest.mark.parametrize(
    ("budget", "shown"), [("300000000000flop", "3e11 FLOPs"), ("300s", "5 min 0 s"), ("2000steps", "2,000 steps")]
)
def test_the_example_of_the_docs_has_even_marks_and_a_budget_in_words(visit, tmp_path: Path, budget: str, shown: str):
    facts = json.loads((ROOT / "docs/tournament/result.json").read_text()) | {"run_budget": budget}
    (tmp_path / "page.html").write_text(render_tournament(facts), "utf-8")
    page = visit((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#curves .chart svg")
    words = page.eval_on_selector_all(
        "#curves .axis > text[text-anchor=end]:not(.axis-title)", "all => all.map(e => e.textContent)"
    )
    marks = [float(each) for each in words]
    assert len(marks) > 3
    (step,) = {round(b - a, 6) for a, b in itertools.pairwise(marks)}
    assert f"{step:e}"[:3] in ("1.0", "2.0", "2.5", "5.0"), "of a length that people count in"
    assert f"{shown} a run" in page.locator("header").inner_text()
    offered = page.eval_on_selector_all("[data-over]", "all => all.map((each) => each.dataset.over)")
    assert offered == ["experiments", "accelerator_seconds", "flops"], "no dollars were spent"


@pytest.mark.parametrize("text", ["", HOSTILE])
def test_the_figure_shows_every_arm(tmp_path: Path, text: str):
    write_curves(tournament_facts(text), tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text("utf-8")
    assert all(each in drawn for each in ("accelerator seconds", "dollars of language model", "random_search"))
    assert "<script" not in drawn


def test_the_figure_has_no_panel_of_what_nobody_spent(tmp_path: Path):
    write_curves(json.loads((ROOT / "docs/tournament/result.json").read_text()), tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text("utf-8")
    assert "accelerator seconds" in drawn
    assert "dollars" not in drawn
