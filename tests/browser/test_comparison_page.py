from pathlib import Path

import pytest
from playwright.sync_api import Page

from analysis.comparison import Results
from analysis.comparison_page import write_comparison
from tests.analysis.comparisons import ENTRANTS, write_compared
from tests.browser.looks import drawn, overlapping, too_wide_on_a4, watched

FIGURES = ["forest", "seeds", "errors", "cosines", "cost"]
ATTACK = "<script>document.title = 'owned'</script><b>bold</b>"


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    return write_comparison(Results.read(write_compared(run_dir, diverged="p2sgrad", error=ATTACK)), run_dir)[0]


def test_every_figure_is_drawn_without_an_error_or_a_request(browser_page: Page, comparison_page: Path) -> None:
    seen = watched(browser_page)
    browser_page.goto(comparison_page.as_uri())
    marks = drawn(browser_page)
    assert list(marks) == FIGURES
    assert all(marks.values()), marks
    assert seen == []
    assert browser_page.title() == "Loss comparison on glyphs"
    assert ATTACK in browser_page.locator("#raw").inner_text()


def test_the_null_result_is_said_in_words(browser_page: Page, comparison_page: Path) -> None:
    browser_page.goto(comparison_page.as_uri())
    verdicts = browser_page.locator("#verdict tbody tr").all_inner_texts()
    assert len(verdicts) == 3
    assert all("no significant difference" in words for words in verdicts)


def test_the_error_curve_has_bands_and_a_grey_part(browser_page: Page, comparison_page: Path) -> None:
    browser_page.goto(comparison_page.as_uri())
    drawn(browser_page)
    figure = browser_page.locator("#errors-figure")
    assert figure.locator(".cartesianlayer path.js-fill").count() == 2
    assert figure.locator(".shapelayer path").count() == 1
    assert figure.locator(".cartesianlayer path.js-line").count() >= len(ENTRANTS)
    panels = browser_page.locator("#cosines-figure .cartesianlayer .subplot")
    assert panels.count() == len(ENTRANTS)


def test_no_words_of_a_figure_lie_on_others(browser_page: Page, comparison_page: Path) -> None:
    browser_page.goto(comparison_page.as_uri())
    drawn(browser_page)
    assert overlapping(browser_page, "#errors-figure .plot, #cosines-figure .plot, #cost-figure .plot") == []


def test_an_a4_page_holds_figures_and_tables(browser_page: Page, comparison_page: Path) -> None:
    assert too_wide_on_a4(browser_page, comparison_page) == []
