"""The page that `lossearch losses --plot` writes, as a browser shows it."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from analysis.loss_page import losses_html
from search_space import catalog
from tests.browser.test_report import A4_CONTENT_PIXELS, drawn, watched

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
    overlapping = browser_page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
            const boxes = [...plot.querySelectorAll('svg text')]
                .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
            return boxes.flatMap(([one, a], index) => boxes.slice(index + 1)
                .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
                    && b.top < a.bottom - 1)
                .map(([other]) => `${plot.dataset.source}: ${one} / ${other}`));
        })"""
    )
    assert overlapping == []


def test_an_a4_page_holds_every_figure(browser_page: Page, losses_page: Path) -> None:
    browser_page.set_viewport_size({"width": A4_CONTENT_PIXELS, "height": 1000})
    browser_page.goto(losses_page.as_uri())
    drawn(browser_page)
    browser_page.emulate_media(media="print")
    browser_page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    too_wide = browser_page.evaluate(
        """limit => [...document.querySelectorAll('table, pre, .plot, .main-svg, .plot svg text')]
            .filter(part => part.getBoundingClientRect().right > limit + 1).map(part => part.outerHTML.slice(0, 80))""",
        A4_CONTENT_PIXELS,
    )
    assert too_wide == []
