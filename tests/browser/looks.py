"""What the tests see of a page with figures."""

from pathlib import Path

from playwright.sync_api import Frame, Page

MARKS = ".cartesianlayer .point, .cartesianlayer path.js-line"
A4_CONTENT_PIXELS = 703


def watched(page: Page) -> list[str]:
    """Everything that the page should not do, as it does it."""
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url.startswith("file:") else seen.append(request.url))
    return seen


def drawn(frame: Page | Frame) -> dict[str, int]:
    """How many marks each figure shows."""
    frame.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))")
    counts: dict[str, int] = frame.evaluate(
        """marks => Object.fromEntries([...document.querySelectorAll('figure')].map(figure =>
            [figure.id.replace('-figure', ''), figure.querySelectorAll(marks).length]))""",
        MARKS,
    )
    return counts


def overlapping(page: Page, plots: str = ".plot") -> list[str]:
    """The pairs of words in a figure, among `plots`, that lie on each other."""
    pairs: list[str] = page.evaluate(
        """plots => [...document.querySelectorAll(plots)].flatMap(plot => {
            const boxes = [...plot.querySelectorAll('svg text')]
                .map(text => [text.textContent, text.getBoundingClientRect()]).filter(([, box]) => box.width);
            return boxes.flatMap(([one, a], index) => boxes.slice(index + 1)
                .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1
                    && b.top < a.bottom - 1)
                .map(([other]) => `${plot.dataset.source}: ${one} / ${other}`));
        })""",
        plots,
    )
    return pairs


def too_wide_on_a4(page: Page, file: Path, parts: str = "table, pre, .plot, .main-svg") -> list[str]:
    """How those of `parts` begin that would not fit on a printed A4 page of this file."""
    page.set_viewport_size({"width": A4_CONTENT_PIXELS, "height": 1000})
    page.goto(file.as_uri())
    drawn(page)
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    wide: list[str] = page.evaluate(
        """([parts, limit]) => [...document.querySelectorAll(parts)]
            .filter(part => part.getBoundingClientRect().right > limit + 1).map(part => part.outerHTML.slice(0, 80))""",
        [parts, A4_CONTENT_PIXELS],
    )
    return wide
