"""The curves of losses against formulas that are written out here, and the figures made of them."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from analysis.loss_curves import curves
from analysis.loss_page import losses_html
from analysis.loss_plots import loss_figure
from analysis.terminal_plot import terminal_plot
from search_space import LossSpec, catalog, parts

CLASSES = 300
NO_CURVES = curves({}, num_classes=CLASSES)
BARE_COSINES = ("p2sgrad", "sphereface2_c", "sphereface2_a", "sphereface2_m", "sface")


def curve(spec: LossSpec, name: str = "it") -> pd.DataFrame:
    return curves({name: spec}, num_classes=CLASSES)


def cosine(frame: pd.DataFrame) -> "pd.Series[float]":
    return pd.Series(np.cos(np.deg2rad(frame["theta_deg"])), dtype=float)


def between(frame: pd.DataFrame, low: float, high: float) -> pd.DataFrame:
    return frame[frame["p"].between(low, high)]


def test_the_drawn_loss_is_the_closed_form() -> None:
    scale, margin = 16.0, 0.3
    frame = curve(catalog.cosface(margin=margin, scale=scale))
    logit = scale * (cosine(frame) - margin)
    np.testing.assert_allclose(frame["logit"], logit, atol=1e-9)
    wrong_probability = (CLASSES - 1) / (CLASSES - 1 + np.exp(logit))
    np.testing.assert_allclose(frame["gradient"], scale * wrong_probability, rtol=1e-9)
    plain = np.exp(scale * cosine(frame))
    np.testing.assert_allclose(frame["p"], plain / (plain + CLASSES - 1), rtol=1e-9)
    np.testing.assert_allclose(frame["margin"], margin, atol=1e-9)


def test_a_detached_loss_pulls_with_the_slope_of_the_plain_cosine() -> None:
    frame = curve(catalog.arcface(margin_rad=0.5, scale=16, gradient="detached"))
    wrong_probability = (CLASSES - 1) / (CLASSES - 1 + np.exp(frame["logit"]))
    np.testing.assert_allclose(frame["gradient"], 16 * wrong_probability, rtol=1e-9)


def test_arcface_gives_up_cosine_as_the_angle_grows_and_falls_back_past_pi() -> None:
    frame = curve(catalog.arcface(margin_rad=0.5, scale=16))
    theta = np.deg2rad(frame["theta_deg"])
    given_up = np.where(theta <= math.pi - 0.5, np.cos(theta) - np.cos(theta + 0.5), 0.5 * math.sin(0.5))
    np.testing.assert_allclose(frame["margin"], given_up, atol=1e-9)


def test_modulating_bins_step_where_the_probability_enters_another_bin() -> None:
    margins = np.linspace(0.05, 0.5, 10)
    frame = between(curve(catalog.modulating_bins(tuple(margins), scale=32)), 0.005, 0.995)
    assert len(frame) >= 50
    np.testing.assert_allclose(frame["margin"], margins[np.floor(frame["p"] * 10).astype(int)], atol=1e-9)


def test_a_map_of_the_negatives_is_an_effective_margin_too() -> None:
    np.testing.assert_allclose(curve(catalog.sphereface_r_v2(m=1.4))["margin"], math.cos(math.pi / 2.8), atol=1e-9)
    mv = curve(catalog.mv_am(margin=0.35, t=0.2, scale=32))
    np.testing.assert_allclose(mv["margin"], np.where(cosine(mv) < 0.35, 0.55, 0.35), atol=1e-9)


def test_objectives_on_the_same_logits_change_the_pull_alone() -> None:
    softmax, focal = curve(catalog.softmax(16)), curve(catalog.focal(gamma=2, scale=16))
    np.testing.assert_allclose(focal["logit"], softmax["logit"])
    np.testing.assert_allclose(focal["margin"], 0, atol=1e-9)
    p = softmax["p"]
    np.testing.assert_allclose(focal["gradient"], 16 * (1 - p) ** 2 * ((1 - p) - 2 * p * np.log(p)), rtol=1e-6)


def test_the_push_of_one_negative_has_the_target_at_sixty_degrees() -> None:
    frame = curve(catalog.softmax(8))
    ours, target = np.exp(8 * cosine(frame)), math.exp(8 * 0.5)
    np.testing.assert_allclose(frame["push"], 8 * ours / (ours + target + CLASSES - 2), rtol=1e-9)
    assert not frame["own_negatives"].any()


def test_bare_cosines_have_no_logit_but_a_pull_and_a_push() -> None:
    frame = curve(catalog.p2sgrad(weight=3))
    assert frame[["logit", "p", "margin"]].isna().all(axis=None)
    np.testing.assert_allclose(frame["gradient"], 3 * (1 - cosine(frame)), atol=1e-9)
    np.testing.assert_allclose(frame["push"], 3 * cosine(frame), atol=1e-9)


def test_what_a_loss_tells_apart_has_a_curve_each() -> None:
    def margins(spec: LossSpec) -> dict[str, float]:
        frame = curve(spec)
        near_half = between(frame, 0.4, 0.6).groupby("loss", sort=False)["margin"].mean()
        return {str(name).removeprefix("it, "): round(margin, 3) for name, margin in near_half.items()}

    assert margins(catalog.elasticface_cos()) == {"mean margin": 0.35, "+2σ": 0.45, "−2σ": 0.25}
    wide = margins(catalog.elasticface_cos(margin=0.05, std=0.1))
    assert wide["−2σ"] == -0.15, "drawn margins are not clamped"
    assert margins(catalog.adaptiveface()) == {
        "a margin of 0, as it starts": 0,
        "a margin that reached 0.3": 0.3,
    }
    magface = margins(catalog.magface())
    assert list(magface) == ["‖x‖ = 10", "‖x‖ = 30", "‖x‖ = 100"]
    assert sorted(magface.values()) == list(magface.values()), "a larger norm has the larger margin"
    few, more, many = margins(catalog.class_size()).values()
    assert few > more > many, "a rare class has the larger margin"


def test_curricular_negatives_push_more_once_t_has_grown() -> None:
    frame = curve(catalog.curricularface())
    fresh, later = (part.set_index("theta_deg")["push"] for _, part in frame.groupby("loss", sort=False))
    np.testing.assert_allclose(fresh[10.0], 64 * 2 * math.cos(math.radians(10)), rtol=1e-3)
    np.testing.assert_allclose(later[10.0], 64 * (0.3 + 2 * math.cos(math.radians(10))), rtol=1e-3)


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_of_the_catalog_has_a_picture_with_data(name: str) -> None:
    frame = curve(catalog.get(name), name)
    assert np.isfinite(frame[["gradient", "push"]]).all(axis=None)
    figure = loss_figure(frame, NO_CURVES, NO_CURVES, num_classes=CLASSES, key=name)
    assert len(figure.table) >= 11
    drawn = json.loads(figure.plot)
    assert all(trace["x"] and np.isfinite(trace["y"]).all() for trace in drawn["data"])
    panels = {trace.get("yaxis", "y") for trace in drawn["data"]}
    titles = {drawn["layout"]["yaxis" + panel.removeprefix("y")]["title"]["text"].split()[0] for panel in panels}
    if name in BARE_COSINES:
        assert titles == {"pull", "push"}
        assert "no target logit" in drawn["layout"]["annotations"][0]["text"]
    else:
        assert np.isfinite(frame[["logit", "p", "margin"]]).all(axis=None)
        own = frame["own_negatives"].any()
        assert titles == {"target", "pull", "effective", *(["push"] if own else [])}


@pytest.mark.parametrize("name", [name for name in catalog.NAMES if name not in ("npcface", "magface")])
def test_a_target_logit_never_rises_with_the_angle(name: str) -> None:
    for _, part in curve(catalog.get(name)).dropna(subset="logit").groupby("loss"):
        assert (part["logit"].diff().dropna() <= 1e-9).all()


@pytest.mark.parametrize("name", ["npcface", "magface"])
def test_a_margin_on_positive_cosines_alone_ends_at_ninety_degrees(name: str) -> None:
    for _, part in curve(catalog.get(name)).groupby("loss"):
        rises = part.loc[part["logit"].diff() > 1e-9, "theta_deg"]
        assert len(rises) == 1
        assert 90 <= rises.iloc[0] <= 91


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_of_the_catalog_pulls_its_target(name: str) -> None:
    assert (curve(catalog.get(name))["gradient"] >= 0).all()


def test_a_winner_without_a_logit_is_drawn_beside_references_that_have_one() -> None:
    references = curves({"softmax": catalog.softmax(16)}, num_classes=CLASSES)
    drawn = json.loads(loss_figure(curve(catalog.sface()), NO_CURVES, references, num_classes=CLASSES).plot)
    assert [trace["name"] for trace in drawn["data"]] == ["softmax"] * 2 + ["it"] * 2


def test_earlier_losses_are_drawn_with_one_entry_in_the_legend() -> None:
    earlier = curves({f"earlier {k}": catalog.cosface(k / 10, 16) for k in range(3)}, num_classes=CLASSES)
    drawn = json.loads(loss_figure(curve(catalog.cosface(0.4, 16)), earlier, NO_CURVES, num_classes=CLASSES).plot)
    faint = [trace for trace in drawn["data"] if "earlier" in trace["name"]]
    assert len(faint) == 9
    assert sum(trace.get("showlegend", True) for trace in faint) == 1


def test_an_axis_is_cut_where_an_angular_pull_grows_without_bound_and_the_caption_says_so() -> None:
    cut = loss_figure(curve(catalog.li_arcface()), NO_CURVES, NO_CURVES, num_classes=CLASSES)
    whole = loss_figure(curve(catalog.cosface()), NO_CURVES, NO_CURVES, num_classes=CLASSES)
    assert "the axis is cut" in cut.caption
    assert "cut" not in whole.caption
    assert json.loads(cut.plot)["layout"]["yaxis2"]["range"][1] < curve(catalog.li_arcface())["gradient"].max()


def test_the_page_has_formula_source_and_figure_of_each_loss() -> None:
    page = losses_html({name: catalog.get(name) for name in ("sface", "arcface")}, num_classes=CLASSES)
    for name in ("sface", "arcface"):
        entry = catalog.ENTRIES[name]
        assert entry.formula in page
        assert entry.source in page
        assert f'id="{name}-figure"' in page


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", ["arcface", "magface", "sface", "circle"])
def test_a_terminal_plot_keeps_to_its_width_and_has_no_colours(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    drawn = terminal_plot(curve(catalog.get(name), ""), width=width)
    lines = drawn.splitlines()
    assert "\x1b" not in drawn
    assert max(map(len, lines)) <= width
    assert "pull −∂L/∂cos θ" in lines[0]
    assert ("target logit T" in lines[0]) == (name != "sface")
    assert lines[16].split() == ["angle", "(degrees)"] * 2
    assert lines[15].split() == ["0", "45", "90", "135", "180"] * 2
    assert lines[17:] == (["⣀ ‖x‖ = 10   · ‖x‖ = 30   x ‖x‖ = 100"] if name == "magface" else [])
    assert sum("⠁" <= character <= "⣿" for character in drawn) > 0.6 * width


def test_a_loss_at_its_norm_equals_itself_with_that_margin() -> None:
    magface = curve(catalog.magface())
    at_ten = magface[magface["loss"] == "it, ‖x‖ = 10"].reset_index(drop=True)
    margin = parts.ConstantMargin(m2_rad=0.45)
    fixed = curve(LossSpec(target=parts.CombinedTarget(only_positive=True), margin=margin))
    columns = ["theta_deg", "logit", "gradient", "p", "margin", "push"]
    np.testing.assert_allclose(at_ten[columns], fixed[columns], rtol=1e-6, atol=1e-9)


def test_a_loss_found_by_evolution_is_drawn_like_any_other() -> None:
    written = LossSpec(target=parts.SymbolicTarget(f=("-", "c", 0.35)), scale=parts.ConstantScale(value=16))
    columns = ["theta_deg", "logit", "gradient", "p", "margin", "push"]
    np.testing.assert_allclose(curve(written)[columns], curve(catalog.cosface(0.35, 16))[columns], atol=1e-9)
