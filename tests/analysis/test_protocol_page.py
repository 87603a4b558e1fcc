"""The curves of an evaluation's page: what is drawn is what was given, on the axes that are named."""

import json
from statistics import NormalDist

import pandas as pd
import pytest

from analysis.protocol_page import det_figure, evaluation_html, roc_figure

FAR_TAR = ("FAR", "TAR")


def curve(*tar: float) -> pd.DataFrame:
    rates = [10.0**-power for power in range(len(tar), 0, -1)]
    low, high = ([min(max(each + move, 0), 1) for each in tar] for move in (-0.1, 0.1))
    return pd.DataFrame({"far": rates, "tar": tar, "low": low, "high": high})


def test_the_roc_is_drawn_over_log_far_with_its_band() -> None:
    plot = json.loads(roc_figure({"all": curve(0.3, 0.6, 1.0)}, FAR_TAR).plot)
    band, line = plot["data"]
    assert (line["x"], line["y"]) == ([1e-3, 1e-2, 1e-1], [0.3, 0.6, 1.0])
    assert band["y"] == pytest.approx([0.4, 0.7, 1.0, 0.9, 0.5, 0.2])
    assert plot["layout"]["xaxis"]["type"] == "log"


def test_tables_name_the_rates_as_the_axes_do() -> None:
    for figure in (roc_figure, det_figure):
        table = figure({"all": curve(0.3, 0.6, 1.0)}, ("FPIR", "TPIR")).table
        assert list(table) == ["FPIR", "TPIR", "low", "high", "curve"]


def test_the_det_is_drawn_on_normal_deviates_without_what_has_none() -> None:
    plot = json.loads(det_figure({"all": curve(0.0, 0.3, 0.6, 1.0)}, FAR_TAR).plot)
    band, line = plot["data"]
    deviate = NormalDist().inv_cdf
    assert line["x"] == pytest.approx([deviate(1e-3), deviate(1e-2)])
    assert line["y"] == pytest.approx([deviate(0.7), deviate(0.4)])
    assert band["y"] == pytest.approx([deviate(rate) for rate in (0.8, 0.5, 0.3, 0.6)])
    ticks = dict(zip(plot["layout"]["yaxis"]["ticktext"], plot["layout"]["yaxis"]["tickvals"], strict=True))
    assert ticks["0.05"] == pytest.approx(deviate(0.05))


def test_two_normal_distributions_make_a_straight_line() -> None:
    rates = [0.001, 0.01, 0.1, 0.5]
    normal = NormalDist()
    tar = [1 - normal.cdf(normal.inv_cdf(1 - far) - 2) for far in rates]
    frame = pd.DataFrame({"far": rates, "tar": tar, "low": tar, "high": tar})
    line = json.loads(det_figure({"all": frame}, FAR_TAR).plot)["data"][-1]
    assert [y + x for x, y in zip(line["x"], line["y"], strict=True)] == pytest.approx([-2.0] * 4)


def test_many_curves_are_told_apart_by_more_than_colour_and_have_no_bands() -> None:
    plot = json.loads(roc_figure({name: curve(0.2, 0.8) for name in "abc"}, FAR_TAR).plot)
    assert [trace["name"] for trace in plot["data"]] == ["a", "b", "c"]
    assert len({trace["line"]["dash"] for trace in plot["data"]}) == 3


def main_of(curves: dict[str, pd.DataFrame]) -> str:
    table = pd.DataFrame({"of": ["<b>"], "measure": ["eer"], "value": [0.1234]})
    html = evaluation_html("mine", "all pairs", tables={"t": table}, curves=curves, axes=FAR_TAR, notes=["this & that"])
    return html.split("<main>")[1].split("</main>")[0]


def test_the_page_says_the_numbers_and_escapes_names() -> None:
    page = main_of({"<b>": curve(0.5)})
    assert "0.1234" in page
    assert "this &amp; that" in page
    assert "<b>" not in page
    assert "figure" in page
    assert "figure" not in main_of({})
