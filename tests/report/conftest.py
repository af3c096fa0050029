"""Fixtures of the report's tests: studies of both kinds, and a browser where there is one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browsing import Visitor
from synthetic import HOSTILE, make_study

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain study of 40 experiments. Read it only."""
    return make_study(tmp_path_factory.mktemp("plain") / "study", 40, seed=1)


@pytest.fixture(scope="session")
def hostile_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with an attack in every text field. Read it only."""
    return make_study(tmp_path_factory.mktemp("hostile") / "study", 60, seed=2, text=HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium. It is not ours to download: the system's is used, and without one the test is skipped.

    Not for the whole session: while playwright is on, no other test of this thread may run an event loop.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium, or set CHROMIUM to its path)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator:
    """Opens pages; at the end each must have been without a problem."""
    visitors: list[Visitor] = []

    def open_page(url: str, **options):
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1].page

    yield open_page
    problems = [problem for visitor in visitors for problem in visitor.problems]
    for visitor in visitors:
        visitor.context.close()
    assert problems == []
