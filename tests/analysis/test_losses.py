import math

import numpy as np
import pytest

from analysis.losses import curves, describe, reference_losses
from search_space import LossSpec, catalog


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (catalog.softmax(scale=30), "softmax s=30"),
        (catalog.sphereface(m=1.5, scale=30), "SphereFace m=1.5 s=30 detached"),
        (catalog.cosface(margin=0.35, scale=64), "CosFace m=0.35 s=64"),
        (catalog.arcface(margin_rad=0.5, scale=64), "ArcFace m=0.5 rad s=64"),
        (catalog.combined(), "combined m1=1 m2=0.3 rad m3=0.2 s=64"),
        (catalog.modulating(margin=0.2, scale=32), "modulating u=6.4 (m=0.200) s=32"),
        (catalog.adacos_fixed(), "AdaCos fixed"),
        (catalog.adacos_dynamic(), "AdaCos dynamic"),
        (catalog.p2sgrad(weight=10), "P2SGrad ×10"),
    ],
)
def test_a_loss_is_described_with_all_its_numbers(spec: LossSpec, words: str) -> None:
    assert describe(spec) == words


def test_the_drawn_loss_is_the_closed_form() -> None:
    scale, margin, classes = 16.0, 0.3, 300
    frame = curves({"cos": catalog.cosface(margin=margin, scale=scale)}, num_classes=classes)
    cos = np.cos(np.deg2rad(frame["theta_deg"]))
    logit = scale * (cos - margin)
    wrong_probability = (classes - 1) / (classes - 1 + np.exp(logit))
    np.testing.assert_allclose(frame["logit"], logit, atol=1e-9)
    np.testing.assert_allclose(frame["gradient"], scale * wrong_probability, rtol=1e-9)


def test_a_detached_loss_pulls_with_the_slope_of_the_plain_cosine() -> None:
    exact = catalog.arcface(margin_rad=0.5, scale=16)
    frame = curves({"detached": exact.model_copy(update={"gradient": "detached"})}, num_classes=300)
    wrong_probability = 299 / (299 + np.exp(frame["logit"]))
    np.testing.assert_allclose(frame["gradient"], 16 * wrong_probability, rtol=1e-9)


def test_a_loss_without_a_target_logit_is_left_out() -> None:
    drawn = curves({"p2sgrad": catalog.p2sgrad(), "softmax": catalog.softmax()}, num_classes=10)
    assert set(drawn["loss"]) == {"softmax"}
    assert curves({"p2sgrad": catalog.p2sgrad()}, num_classes=10).empty


def test_references_share_the_losss_scale_or_adacos_fixed_one() -> None:
    assert "ArcFace m=0.5 rad s=16" in reference_losses(catalog.modulating(scale=16), 300)
    fixed = math.sqrt(2) * math.log(299)
    assert f"softmax s={fixed:.3g}" in reference_losses(catalog.adacos_dynamic(), 300)
