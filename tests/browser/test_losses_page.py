"""The page that `lossearch losses --plot` writes, as a browser shows it."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from analysis.loss_page import losses_html
from search_space import catalog
from tests.browser.looks import drawn, overlapping, too_wide_on_a4, watched

BARE_COSINES = ("p2sgrad", "sphereface2_c", "sphereface2_a", "sphereface2_m", "sface")


@pytest.fixture(scope="module")
def losses_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("losses") / "losses.html"
    path.write_text(losses_html({name: catalog.get(name) for name in catalog.NAMES}, num_classes=300))
    return path


def test_the_page_stays_light(losses_page: Path) -> None:
    assert losses_page.stat().st_size < 7_000_000


def test_every_loss_of_the_catalog_is_drawn_offline_without_an_error(browser_page: Page, losses_page: Path) -> None:
    seen = watched(browser_page)
    browser_page.goto(losses_page.as_uri())
    marks = drawn(browser_page)
    assert list(marks) == list(catalog.NAMES)
    panels = {name: 2 if name in BARE_COSINES else 3 for name in marks}
    assert not [name for name, count in marks.items() if count < panels[name]], marks
    assert seen == []


def test_no_text_of_a_figure_lies_on_another(browser_page: Page, losses_page: Path) -> None:
    browser_page.goto(losses_page.as_uri())
    drawn(browser_page)
    assert overlapping(browser_page) == []


def test_an_a4_page_holds_every_figure(browser_page: Page, losses_page: Path) -> None:
    assert too_wide_on_a4(browser_page, losses_page, "table, pre, .plot, .main-svg, .plot svg text") == []
