from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from analysis import write_report
from search_space import LossSchedule
from search_space.unified_space import Unified
from tests.analysis.journals import sampled_journal, search_journal, write_journal
from tests.browser.looks import drawn, overlapping, too_wide_on_a4, watched

ATTACK = "<script>document.title = 'owned'</script><b>bold</b>"
FIGURES = ["health", "history", "controller", "entrants", "training", "training-loss", "loss", "compute"]


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_journal(tmp_path_factory.mktemp("run"), search_journal(error=ATTACK)))


def test_every_figure_is_drawn_without_an_error_or_a_request(browser_page: Page, report: Path) -> None:
    seen = watched(browser_page)
    browser_page.goto(report.as_uri())
    marks = drawn(browser_page)
    assert list(marks) == FIGURES
    assert all(marks.values()), marks
    assert marks["history"] > 40
    assert seen == []


def test_the_report_works_in_a_frame_that_allows_only_scripts(browser_page: Page, report: Path, tmp_path: Path) -> None:
    seen = watched(browser_page)
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe sandbox="allow-scripts" width="1100" height="800" src="{report.as_uri()}"></iframe>')
    browser_page.goto(outer.as_uri())
    frame = browser_page.frames[1]
    assert all(drawn(frame).values())
    assert frame.locator("nav").is_hidden()
    assert frame.locator("[data-title^='Download plot']").count() == 0
    assert seen == []


def test_markup_in_an_error_stays_text(browser_page: Page, report: Path) -> None:
    browser_page.goto(report.as_uri())
    drawn(browser_page)
    assert browser_page.title() == "Loss search on glyphs"
    assert browser_page.locator("b").count() == 0
    assert ATTACK in browser_page.locator("#trials").inner_text()
    assert "<b>bold</b>" in " ".join(browser_page.locator("#health-figure svg text").all_text_contents())


def test_tables_hold_every_trial_and_every_figures_data(browser_page: Page, report: Path) -> None:
    browser_page.goto(report.as_uri())
    assert browser_page.locator("#trials tbody tr").count() == 36 + 7
    assert browser_page.locator("#trials tr.marked").inner_text().endswith("winner")
    for figure in browser_page.locator("figure").all():
        figure.locator("summary").click()
        assert figure.locator("details tbody tr").first.is_visible()


def test_pressing_a_heading_sorts_the_trials(browser_page: Page, report: Path) -> None:
    browser_page.goto(report.as_uri())
    numbers = browser_page.locator("#trials tbody tr td:first-child")
    heading = browser_page.locator("#trials th button", has_text="trial").first
    heading.click()
    assert numbers.all_inner_texts() == [str(number) for number in range(43)]
    heading.press("Enter")
    assert numbers.first.inner_text() == "42"
    assert browser_page.locator("#trials th[aria-sort=descending]").count() == 1
    headings = browser_page.locator("#trials th").all_inner_texts()
    place = next(index for index, text in enumerate(headings) if text.startswith("choice"))
    column = browser_page.locator(f"#trials tbody tr td:nth-child({place + 1})")
    for _ in range(2):
        browser_page.locator("#trials th button").nth(place).click()
        assert column.last.inner_text() == "–"  # of the trial that failed
    scores = [float(text) for text in column.all_inner_texts()[:-1]]
    assert scores == sorted(scores, reverse=True)


def test_a_samplers_choices_and_numbers_are_drawn_and_no_words_lie_on_others(
    browser_page: Page, tmp_path: Path
) -> None:
    space, rng = Unified(), np.random.default_rng(0)
    candidates = [LossSchedule.constant(space.sample(rng)) for _ in range(40)]
    seen = watched(browser_page)
    path = write_report(write_journal(tmp_path, sampled_journal(candidates, space={"kind": "unified"})))
    browser_page.goto(path.as_uri())
    marks = drawn(browser_page)
    assert marks["choices"] >= 40
    assert marks["sampled"] >= 12
    assert "controller" not in marks
    assert browser_page.locator("#choices-figure .cartesianlayer .subplot").count() == 6
    assert overlapping(browser_page, "#choices-figure .plot, #sampled-figure .plot") == []
    assert seen == []


def test_an_a4_page_holds_figures_and_tables(browser_page: Page, report: Path) -> None:
    assert too_wide_on_a4(browser_page, report) == []
