"""The live dashboard: over plain HTTP, and in headless Chromium while the ledger grows."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import until
from synthetic import HOSTILE, StudyMaker, append, make_study

pytest.importorskip("uvicorn", reason="the extra [dashboard] is not installed")

from jaxresearch.cli.app import _status
from jaxresearch.config import TournamentConfig
from jaxresearch.experiment import RunProgress
from jaxresearch.report.server import DashboardServer
from jaxresearch.study.heartbeat import Heartbeat
from jaxresearch.study.layout import StudyLayout
from jaxresearch.tournament.plan import Arm
from jaxresearch.tournament.tournament import Tournament


@contextmanager
def serving(folder: Path, *, port: int = 0, token: str | None = None) -> Iterator[str]:
    """The address of a dashboard over `folder`."""
    bound: queue.Queue[int] = queue.Queue()
    server = DashboardServer(folder, port=port, token=token, poll_seconds=0.05, on_started=bound.put)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.get(timeout=10)}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={key.replace("_", "-"): value for key, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, study: Path, hostile_study: Path) -> Path:
    """A folder of studies: two whole, one in a folder of its own, one damaged."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copytree(study, folder / "plain")
    shutil.copytree(hostile_study, folder / "group one" / "hostile")
    shutil.copytree(study, folder / "damaged")
    (folder / "damaged" / "ledger.sqlite").write_bytes(b"no database" * 1000)
    return folder


@pytest.fixture(scope="module")
def home(many: Path) -> Iterator[str]:
    with serving(many) as url:
        yield url


@pytest.fixture
def growing(tmp_path: Path) -> tuple[Path, list]:
    """A study in its folder, and the events that a driver is still to write."""
    events = StudyMaker(tmp_path / "studies" / "live", 12, seed=4).create()
    baseline = next(at for at, (_, event) in enumerate(events) if event.kind == "decided") + 1
    append(tmp_path / "studies" / "live", events[:baseline])
    return tmp_path / "studies", events[baseline:]


def test_details_come_one_by_one(home: str):
    status, text = get(f"{home}/api/group%20one%2Fhostile/experiments/3")
    assert status == 200
    assert json.loads(text)["diff"]
    assert not set(text) & set("<>&")
    assert get(f"{home}/api/plain/experiments/99")[0] == 404
    assert get(f"{home}/api/nope/experiments/1")[0] == 404
    assert get(f"{home}/studies/..%2f..%2f..%2fetc")[0] == 404


def test_it_only_answers_get_on_its_own_name(home: str):
    assert get(home, Host="evil.example")[0] == 403
    assert get(home, Host="localhost:1")[0] == 200
    request = urllib.request.Request(home, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 405


def test_with_a_token_nothing_is_answered_without_it(many: Path):
    with serving(many, token="right") as url:
        for path in ("/", "/studies/plain", "/api/plain/experiments/1", "/events", "/?token=wrong", "/nowhere"):
            assert get(f"{url}{path}")[0] == 401, path
        assert get(url, Authorization="Bearer right")[0] == 200
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"{url}/?token=right", timeout=10) as answer:
            assert answer.url == f"{url}/", "the token leaves the address bar"
        with opener.open(f"{url}/studies/plain", timeout=10) as answer:
            assert answer.status == 200


def test_serving_changes_nothing(many: Path, home: str):
    ledger = (many / "plain" / "ledger.sqlite").read_bytes()
    get(f"{home}/studies/plain")
    get(f"{home}/api/plain/experiments/2")
    assert (many / "plain" / "ledger.sqlite").read_bytes() == ledger
    assert {path.name for path in (many / "plain").iterdir()} <= {
        "ledger.sqlite",
        "ledger.sqlite-shm",
        "ledger.sqlite-wal",
        "program.md",
        "programs",
        "runs",
        "study.yaml",
        "workspace",
    }


def test_the_list_shows_every_study_and_says_which_is_damaged(visit, home: str):
    page = visit(home, home=home)
    page.wait_for_selector(".badge.on")
    assert page.locator(".card").count() == 3
    assert "damaged" in page.locator(".card", has_text="damaged").inner_text()
    page.click("text=group one/hostile")
    page.wait_for_selector("#progress svg")
    assert page.evaluate("window.pwned") is None


def test_hostile_text_is_inert_here_too(visit, home: str):
    page = visit(f"{home}/studies/group%20one/hostile", home=home, width=390)
    page.fill("#search", "window.pwned")
    page.locator("#e3 > summary").click()
    page.wait_for_selector("#e3 .diff")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#app script, #app img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not {"\u202e", "\x1b"} & set(page.evaluate("document.body.innerText"))
    assert "\u202e" in HOSTILE


def test_it_updates_while_the_study_runs(visit, growing: tuple[Path, list]):
    folder, events = growing
    with serving(folder) as url:
        page = visit(f"{url}/studies/live", home=url)
        page.wait_for_selector(".badge.on")
        assert page.locator(".exp").count() == 1
        half = len(events) // 2
        append(folder / "live", events[:half])
        until(page, "document.querySelectorAll('.exp').length > 4")
        page.locator("#e1 > summary").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#e1 .diff")
        page.fill("#search", "#1")
        append(folder / "live", events[half:])
        until(page, "document.querySelectorAll('.exp').length === 13")
        until(page, "document.querySelector('header.top').textContent.includes('finished')")
        assert page.locator("#e1 .diff").is_visible(), "what was open stays open"
        assert page.locator("#search").input_value() == "#1"
        assert page.locator(".exp:not([hidden])").count() == 1, "the filter holds for what is new"
        assert page.locator("#progress svg[role=application] circle").count() > 5


def test_a_run_on_its_way_shows_its_loss(visit, growing: tuple[Path, list]):
    folder, _ = growing
    driver = Heartbeat(StudyLayout(folder / "live"))
    with serving(folder) as url:
        page = visit(f"{url}/studies/live", home=url, width=390)
        until(page, "document.querySelector('#now').hidden")
        for step in range(1, 5):
            driver.on_progress(0, 0, RunProgress("train", step / 10, 6.0 - step, step))
        driver.on_progress(0, 1, RunProgress("compile"))
        driver.beat(None)
        until(page, "document.querySelectorAll('#now .running').length === 2")
        until(page, "document.querySelector('#now').innerText.includes('loss 2.000')")
        assert page.locator("#now .spark path").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        StudyLayout(folder / "live").heartbeat.unlink()
        until(page, "document.querySelector('#now').hidden")


def test_tournaments_are_listed_and_open(visit, tmp_path: Path):
    config = TournamentConfig.model_validate({"tournament": {"arms": ["greedy", "tpe"]}})
    Tournament.create_or_open(
        tmp_path / "cups" / "first", config, [Arm("greedy", "greedy", "builtin"), Arm("tpe", "tpe", "builtin")]
    )
    with serving(tmp_path) as url:
        page = visit(url, home=url)
        page.click("text=cups/first")
        page.wait_for_selector("#arms tbody tr")
        assert "No repeat is complete yet" in page.locator("header").inner_text()
        assert get(f"{url}/tournaments/nope")[0] == 404


def test_the_list_updates_too(visit, growing: tuple[Path, list]):
    folder, events = growing
    with serving(folder) as url:
        page = visit(url, home=url)
        page.wait_for_selector("text=0 of 12")
        append(folder / "live", events)
        page.wait_for_selector("text=12 of 12")
        make_study(folder / "second", 2)
        page.wait_for_selector("text=second")


def test_a_lost_server_is_told_and_found_again(browser, growing: tuple[Path, list]):
    folder, events = growing
    page = browser.new_page()
    with serving(folder) as url:
        page.goto(f"{url}/studies/live")
        page.wait_for_selector(".badge.on")
    page.wait_for_selector(".badge.off")
    assert "lost" in page.locator(".badge").inner_text()
    append(folder / "live", events)
    with serving(folder, port=int(url.rsplit(":", 1)[1])):
        until(page, "document.querySelectorAll('.exp').length === 13")
        page.close()


def test_a_page_starts_anew_when_another_study_takes_the_place(visit, growing: tuple[Path, list]):
    folder, events = growing
    append(folder / "live", events)
    with serving(folder) as url:
        page = visit(f"{url}/studies/live", home=url)
        page.wait_for_selector(".badge.on")
        assert page.locator(".exp").count() == 13
        make_study(folder / "other", 2, seed=8)
        with page.expect_event("load"):
            (folder / "live").rename(folder / "gone")
            (folder / "other").rename(folder / "live")
        page.wait_for_selector(".badge.on")
        assert page.locator(".exp").count() == 3


def test_new_rows_leave_the_old_ones_where_they_are(visit, growing: tuple[Path, list]):
    folder, events = growing
    half = len(events) // 2
    append(folder / "live", events[:half])
    with serving(folder) as url:
        page = visit(f"{url}/studies/live", home=url)
        page.wait_for_selector(".badge.on")
        page.evaluate(
            "window.moved = 0;"
            "new MutationObserver(all => { for (const each of all) window.moved += each.removedNodes.length; })"
            ".observe(document.querySelector('#experiments .rows'), { childList: true })"
        )
        append(folder / "live", events[half:])
        until(page, "document.querySelectorAll('.exp').length === 13")
        ids = page.eval_on_selector_all(".exp", "all => all.map(each => each.id)")
        assert ids == [f"e{number}" for number in reversed(range(13))], "the newest is first"
        assert page.evaluate("window.moved") == 0
        page.select_option("[aria-label=Order]", "oldest")
        assert page.eval_on_selector_all(".exp", "all => all.map(each => each.id)") == ids[::-1]


def test_a_thousand_experiments(visit, tmp_path: Path):
    make_study(tmp_path / "big", 1000, commits=False)
    with serving(tmp_path) as url:
        page = visit(f"{url}/studies/big", home=url)
        page.wait_for_selector("#progress svg")
        until(page, "document.querySelectorAll('.exp').length === 1001")
        page.fill("#search", '"try 777"')
        until(page, "document.querySelectorAll('.exp:not([hidden])').length === 1")


def test_the_command_says_where_and_stops_at_once(many: Path):
    command = [sys.executable, "-m", "jaxresearch", "serve", str(many), "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    assert facts["url"].startswith("http://127.0.0.1:")
    assert get(facts["url"])[0] == 200
    stream = urllib.request.urlopen(f"{facts['url']}events", timeout=10)
    process.send_signal(signal.SIGINT)
    process.wait(120)  # though a page still listens
    stream.close()
    assert "Traceback" not in process.stderr.read()


def test_wrong_folder_is_one_line(tmp_path: Path, capsys):
    assert _status(["serve", str(tmp_path / "none")]) == 1
    assert "no folder" in capsys.readouterr().err
