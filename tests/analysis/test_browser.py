"""The page in a real browser, as a file: it asks for nothing, nothing is wrong, tables sort and are searched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from analysis.collect import collect
from analysis.report.report import write_report
from analysis.search import read_search
from tests.analysis.made_runs import write_model
from tests.analysis.made_searches import drawn_search
from trainer.rundir import RunDir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page with all that the browser had to say of it."""

    def __init__(self, browser: Browser, file: Path, width: int):
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture(params=[1280, 400], ids=["laptop", "phone"])
def opened(request: pytest.FixtureRequest, browser: Browser, run: RunDir, tmp_path: Path) -> Iterator[Opened]:
    write_model(run, 3)
    report = write_report(collect([run.path]), tmp_path / "out")
    page = Opened(browser, report.page, request.param)
    yield page
    page.page.close()


def test_it_opens_without_a_word_and_asks_for_nothing(opened: Opened) -> None:
    assert opened.said == []
    assert [url.partition(":")[0] for url in opened.asked if not url.startswith("data:")] == ["file"]
    broken = "[...document.images].filter((image) => !(image.complete && image.naturalWidth)).length"
    assert opened.page.evaluate(broken) == 0
    assert opened.page.evaluate("document.images.length") > 20
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"


def test_its_policy_lets_nothing_else_run(opened: Opened) -> None:
    opened.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken over'";
            document.body.append(script);
            fetch("https://example.org/").catch(() => {});
        }"""
    )
    opened.page.wait_for_timeout(300)
    assert opened.page.title() != "taken over"
    assert any("Content Security Policy" in line for line in opened.said)
    assert not [url for url in opened.asked if url.startswith("http")]


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(opened: Opened) -> None:
    table = opened.page.locator("table", has=opened.page.locator("th", has_text="recall")).last
    recall = table.locator("th button", has_text="recall")
    shown = []
    for _ in range(2):
        recall.click()
        shown.append([float(text.split()[0]) for text in table.locator("td:nth-child(4)").all_inner_texts()])
    assert shown[0] == sorted(shown[0])
    assert shown[1] == shown[0][::-1]
    assert len(set(shown[0])) > 1
    assert table.locator("th[aria-sort]").count() == 1


def test_what_paper_should_say_is_unfolded_while_it_is_printed(opened: Opened) -> None:
    count = "document.querySelectorAll('details.printed[open]').length"
    opened.page.evaluate(f"addEventListener('beforeprint', () => {{ window.unfolded = {count}; }})")
    assert opened.page.evaluate(count) == 0
    assert opened.page.pdf().startswith(b"%PDF")
    assert opened.page.evaluate("window.unfolded") == opened.page.locator("details.printed").count() > 0
    assert opened.page.evaluate(count) == 0


def test_a_long_table_is_searched(browser: Browser, tmp_path: Path) -> None:
    search = drawn_search(tmp_path / "runs" / "searched", 14)
    report = write_report([], tmp_path / "out", read_search(search.path))
    page = Opened(browser, report.page, 1280)
    rows = page.page.locator("table.trials tbody tr:not([hidden]) td:nth-child(2)")
    assert rows.count() == 14
    page.page.locator("input[type=search]").first.fill("0007")
    assert rows.all_inner_texts() == ["0007"]
    page.page.locator("table.trials th button", has_text="lr").first.click()
    assert page.said == []
    page.page.close()
