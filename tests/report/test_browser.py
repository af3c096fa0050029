"""The report in headless Chromium. `visit` asserts of every page: no console error, no request to anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import until
from synthetic import HOSTILE

from jaxresearch.report.build import read_record
from jaxresearch.report.page import render_report


@pytest.fixture(scope="module")
def url(study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_report(read_record(study)), "utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def hostile_url(hostile_study: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "hostile.html"
    file.write_text(render_report(read_record(hostile_study)), "utf-8")
    return file.as_uri()


def shown(page) -> list[str]:
    return page.eval_on_selector_all(".exp:not([hidden])", "all => all.map(each => each.id)")


def test_it_draws_everything(visit, url: str):
    page = visit(url)
    page.wait_for_selector("#loss .chart path")
    assert page.locator(".exp").count() == 41
    assert "600,000 tokens a run" in page.locator("header").inner_text()
    assert page.locator("#progress .chart svg").count() == 1
    assert page.locator("#tree .chart svg path").count() > 1
    assert page.locator("#loss .chart svg g path").count() == 6, "two experiments with three seeds each"
    assert "40 % expected to be kept" in (page.locator("body").text_content() or "")
    assert page.locator("#kept tbody tr").count() == page.locator(".exp.kept").count() - 1
    steps = page.eval_on_selector_all(".steps a", "all => all.map(each => each.getAttribute('href'))")
    assert steps[-1] == page.locator(".verdict-line a").get_attribute("href"), "what the best one is made of"
    assert len(steps) == len(set(steps))


def test_search_and_verdicts_filter(visit, url: str):
    page = visit(url)
    page.fill("#search", '"try 17" first')
    assert shown(page) == ["e17"]
    page.fill("#search", "note: n23")
    assert shown(page) == ["e23"], "diffs are searched too"
    page.fill("#search", "#4")
    assert shown(page) == ["e4"]
    page.fill("#search", "no such thing")
    assert shown(page) == []
    page.fill("#search", "")
    page.click("[data-verdict=discard]")
    assert page.locator(".exp:not([hidden]) summary", has_text="discard").count() == 0
    assert page.locator("[data-verdict=discard]").get_attribute("aria-pressed") == "false"
    page.select_option("select", "best")
    scores = page.eval_on_selector_all(".exp.kept .score", "all => all.map(each => parseFloat(each.textContent))")
    assert scores == sorted(scores)


def test_an_experiment_opens_with_its_diff_and_its_curve_can_be_compared(visit, url: str):
    page = visit(url)
    page.click("#e7 > summary")
    body = page.locator("#e7 .body")
    assert "+note: n7" in body.locator(".diff").inner_text()
    assert body.locator(".diff .add").count() > 2
    assert "jaxresearch" in body.locator("code.command").inner_text()
    scored = page.eval_on_selector_all(
        ".exp:not(.kept) .score", "all => all.find(e => e.textContent[0] === '1').closest('.exp').id"
    )
    page.evaluate(f"document.getElementById('{scored}').open = true")
    before = page.locator("#loss .legend li").count()
    page.click(f"#{scored} .body button")
    until(page, f"document.querySelectorAll('#loss .legend li').length === {before + 1}")


def test_it_works_by_keyboard_alone(visit, url: str):
    page = visit(url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type('"try 5)')
    assert shown(page) == ["e5"]
    page.locator("#e5 summary").focus()
    page.keyboard.press("Enter")
    page.locator("#e5 .diff").wait_for()
    page.locator("#progress svg[role=application]").focus()
    page.keyboard.press("End")
    told = page.locator("#progress [aria-live]").inner_text()
    assert "#40" in told
    assert page.locator("#e40 .chip").inner_text() in told.split(), "words of two lines are told apart"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.closest('#e39') !== null")
    assert page.locator("#e39").get_attribute("open") is not None
    assert page.locator("#search").input_value() == "", "a search that hides it is given up"


def test_pointing_at_the_chart_tells_and_opens(visit, url: str):
    page = visit(url)
    chart = page.locator("#progress svg[role=application]")
    box = chart.bounding_box()
    chart.hover(position={"x": 69, "y": box["height"] - 150})
    chart.click(position={"x": 66, "y": float(page.locator("#progress svg circle").nth(0).get_attribute("cy"))})
    until(page, "location.hash === '#e0' || document.querySelector('.exp[open]') !== null")


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("name", ["url", "hostile_url"])
def test_a_phone_needs_no_sideways_scrolling(visit, width: int, name: str, request: pytest.FixtureRequest):
    page = visit(request.getfixturevalue(name), width=width)
    page.evaluate("document.querySelectorAll('.exp').forEach((each, at) => { each.open = at < 12 })")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_inert(visit, hostile_url: str):
    page = visit(hostile_url, dark=True)
    page.click("text=open all shown")
    until(page, "document.querySelectorAll('.exp .body h3').length > 60")
    page.locator("#progress svg[role=application]").focus()
    page.keyboard.press("End")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#app script, #app img, #app iframe").count() == 0
    assert "<script>window.pwned=1</script>" in page.locator("#e3 .what").inner_text()
    text = page.evaluate("document.body.innerText")
    assert not {"\u202e", "\u2066", "\x1b", "\x07"} & set(text)
    assert set(HOSTILE) & {"\u202e", "\x1b"}, "the attack holds what is looked for"


def test_the_policy_stops_what_would_slip_through(browser, hostile_url: str):
    """The second wall: even a script that got into the page would not run."""
    page = browser.new_page()
    page.goto(hostile_url)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 2'; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 3\">')"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    page.close()


def test_it_prints_light_and_without_controls(visit, url: str):
    page = visit(url, dark=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#search").is_visible()
    assert len(page.pdf(format="A4")) > 10_000
