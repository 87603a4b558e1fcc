"""HTML of the report: pieces that escape every text they are given, and the page that holds them.

The page is one file that works offline: styles, scripts and plotly are inlined, and its policy forbids every request.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import pandas as pd

from analysis.figures import Figure, plotly_js
from analysis.tables import records

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_TITLES = {
    "number": "trial",
    "at_horizon": "at horizon",
    "reward": "reward half",
    "choice": "choice half",
    "val/tar_at_far_1e-1": "TAR@FAR 1e-1",
    "val/tar_at_far_1e-2": "TAR@FAR 1e-2",
    "val/tar_at_far_1e-3": "TAR@FAR 1e-3",
    "val/tar_at_far_1e-4": "TAR@FAR 1e-4",
    "val/eer": "EER (low is good)",
    "val/auc": "AUC",
    "val/rank1": "rank-1",
    "val/mean_tar": "mean TAR over log FAR",
    "val/blend": "blend",
    "val/lfw_accuracy": "LFW-style accuracy",
    "seconds": "training seconds",
    "lineage_seconds": "training seconds, its lineage",
    "lineage_images": "images, its lineage",
    "total_images": "images in all",
    "search_images": "images seen by then",
    "theta_deg": "θ (degrees)",
    "logit": "target logit T",
    "gradient": "−∂L/∂cos θ",
    "told": "scored",
    "best": "best so far",
    "reward_gain": "winner − it, reward half",
    "choice_gain": "winner − it, choice half",
}


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into the page. Plain strings are escaped, these are not."""

    markup: str


_FORMATS = {
    **dict.fromkeys(("number", "parent", "round", "epoch", "epochs", "trial"), "{:.0f}"),
    **dict.fromkeys(("seconds", "lineage_seconds"), "{:,.1f}"),
    **dict.fromkeys(("reward_gain", "choice_gain"), "{:+.4f}"),
}
_LONG_TEXT = 40
_SMALLEST_IN_DECIMALS = 5e-5
"""With four of them anything smaller is shown as nothing."""


def text(value: object, column: str = "") -> str:
    """A value as a reader wants it: four decimals, thousands separated, a dash for nothing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _FORMATS.get(column, "{:,}").format(value)
    if isinstance(value, float):
        usual = "{:,.0f}" if abs(value) >= 1000 else "{:.1f}" if abs(value) >= 100 else "{:.4g}"
        small = "{:.2g}" if 0 < abs(value) < _SMALLEST_IN_DECIMALS else "{:.4f}"
        return _FORMATS.get(column, usual if abs(value) >= 1 else small).format(value).replace("-", "−")
    return str(value)


def paragraph(words: str) -> Html:
    """One paragraph."""
    return Html(f"<p>{escape(words)}</p>")


def heading(words: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(words)}</h3>")


def code(words: str, *, folded: str = "") -> Html:
    """Preformatted text; with a summary in `folded`, shown on demand."""
    pre = f"<pre>{escape(words)}</pre>"
    return Html(f"<details><summary>{escape(folded)}</summary>{pre}</details>" if folded else pre)


def verdict(headline: str, remarks: Iterable[str]) -> Html:
    """The headline of the report with what must be said beside it."""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return Html(f'<div class="verdict"><p>{escape(headline)}</p><ul>{items}</ul></div>')


def tiles(numbers: Mapping[str, str]) -> Html:
    """A row of headline numbers: what it is → the number."""
    items = "".join(
        f"<li><strong>{escape(number)}</strong><span>{escape(name)}</span></li>" for name, number in numbers.items()
    )
    return Html(f'<ul class="tiles">{items}</ul>')


def table(
    frame: pd.DataFrame,
    *,
    caption: str = "",
    sortable: bool = False,
    marked: Callable[[Mapping[str, object]], bool] = lambda _: False,
) -> Html:
    """A table of a frame's rows; `marked` says which rows stand out. Numbers align right."""
    columns = [str(column) for column in frame.columns]
    numeric = {column for column in columns if pd.api.types.is_numeric_dtype(frame[column])}
    head = "".join(
        f'<th scope="col"{" class=n" if c in numeric else ""}>{escape(_TITLES.get(c, c))}</th>' for c in columns
    )
    body = "".join(
        ('<tr class="marked">' if marked(row) else "<tr>")
        + "".join(_cell(row[c], c, c in numeric) for c in columns)
        + "</tr>"
        for row in records(frame)
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="sortable"' if sortable else ""
    markup = f"<table{kind}>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Html(f'<div class="scroll">{markup}</div>')


def _cell(value: object, column: str, is_number: bool) -> str:
    shown = text(value, column)
    if is_number:
        exact = "" if shown == "–" else f' data-v="{value}"'
        return f'<td class="n"{exact}>{escape(shown)}</td>'
    return f"<td{' class=long' if len(shown) > _LONG_TEXT else ''}>{escape(shown)}</td>"


def figure(drawn: Figure) -> Html:
    """A figure: the drawing, its caption, and its data as a table that opens on demand."""
    label, source = escape(drawn.label, quote=True), f"{drawn.key}-data"
    # "<" inside the JSON would let a name close the script element.
    safe_json = drawn.plot.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Html(
        f'<figure id="{drawn.key}-figure"><h3>{escape(drawn.title)}</h3>'
        f'<div class="plot" role="img" aria-label="{label}" data-source="{source}"></div>'
        f'<script type="application/json" id="{source}">{safe_json}</script>'
        f"<figcaption>{escape(drawn.caption)}</figcaption>"
        f"<details><summary>Data of this figure</summary>{table(drawn.table).markup}</details></figure>"
    )


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading; pieces that are None are left out."""

    key: str
    title: str
    pieces: tuple[Html | None, ...]

    def markup(self) -> str:
        """The section as HTML."""
        body = "".join(piece.markup for piece in self.pieces if piece is not None)
        return f'<section id="{self.key}"><h2>{escape(self.title)}</h2>{body}</section>'


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document."""
    assets = files("analysis")
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
            f"<style>{(assets / 'page.css').read_text(encoding='utf-8')}</style></head><body>",
            f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>',
            f'<nav aria-label="Contents">{links}</nav></header>',
            f"<main>{''.join(section.markup() for section in sections)}</main>",
            f"<footer>{escape(footer)}</footer>",
            f"<script>{plotly_js()}</script>",
            f"<script>{(assets / 'page.js').read_text(encoding='utf-8')}</script>",
            "</body></html>\n",
        )
    )
