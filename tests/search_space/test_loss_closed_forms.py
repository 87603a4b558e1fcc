"""Every loss of the catalog equals its paper's equation (`closed_forms.py`), in value and gradient, in both modes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from search_space import Loss, LossSpec, build, catalog
from tests.search_space import closed_forms as paper
from tests.search_space.batches import Batch, State, assert_equal, batch_at_angles, batch_at_the_tips, random_batch
from tests.search_space.closed_forms import Geometry, Mode

PI = math.pi
SEED = 11
COUNTS = (1, 3, 20, 700, 45, 6, 90)

Form = Callable[[Geometry, Mode, State], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A spec beside the equation that it must equal; AdaCos needs three classes."""

    spec: LossSpec
    form: Form
    classes_at_least: int = 2


def plain(form: Callable[..., Tensor], **parameters: Any) -> Form:
    """An equation that has a gradient mode and no state."""
    return lambda of, mode, _: form(of, **parameters, gradient=mode)


def without_maps(form: Callable[..., Tensor], **parameters: Any) -> Form:
    """An equation that has neither a gradient mode nor a state."""
    return lambda of, _, __: form(of, **parameters)


def with_state(form: Callable[..., Tensor], *, given: Mapping[str, str], **parameters: Any) -> Form:
    """An equation whose arguments `given` are the loss's state of the name beside."""
    return lambda of, mode, state: form(
        of, **{argument: state[name] for argument, name in given.items()}, **parameters, gradient=mode
    )


def elastic(form: Callable[..., Tensor], mean: float, std: float, *, plus: bool = False) -> Form:
    def with_drawn_margins(of: Geometry, mode: Mode, _: State) -> Tensor:
        noise_N = torch.randn(len(of.y_N), generator=torch.Generator().manual_seed(SEED))
        return form(of, paper.elastic_margins(of, noise_N, mean, std, plus), gradient=mode)

    return with_drawn_margins


def counts_of(classes: int) -> list[int]:
    return [COUNTS[j % len(COUNTS)] for j in range(classes)]


UNGUARDED_ARCFACE = LossSpec.model_validate(
    {
        **catalog.get("arcface").model_dump(),
        "target": {"kind": "combined", "guard": "none"},
        "gradient": "detached",
    }
)
UNEVEN = (0.1, 0.05, 0.4, 0.0, 0.9, 0.25, 0.3, 0.7, 0.15, 0.6)
KNOTS = (-2.0, -1.1, -0.7, -0.8, -0.1, 0.3, 0.2, 0.9)
SLOPES = (0.5, 2.0, 1.0, 0.25, 3.0)
ADAFACE = {"mu": "norm_mean", "sigma": "norm_std"}

CASES = {
    "softmax": Case(catalog.get("softmax"), plain(paper.softmax)),
    "sphereface": Case(catalog.get("sphereface"), plain(paper.sphereface)),
    "sphereface, m=4": Case(catalog.get("sphereface", m=4.0, scale=64.0), plain(paper.sphereface, m=4, s=64)),
    "sphereface_plus": Case(catalog.get("sphereface_plus"), plain(paper.sphereface_plus)),
    "sphereface_plus, 5": Case(
        catalog.get("sphereface_plus", m=2.0, scale=10.0, strength=5.0),
        plain(paper.sphereface_plus, m=2, s=10, strength=5),
    ),
    "sphereface_r_v1": Case(catalog.get("sphereface_r_v1"), plain(paper.sphereface_r_v1)),
    "sphereface_r_v1, m=2.5": Case(catalog.get("sphereface_r_v1", m=2.5), plain(paper.sphereface_r_v1, m=2.5)),
    "sphereface_r_v2": Case(catalog.get("sphereface_r_v2"), plain(paper.sphereface_r_v2)),
    "sphereface_r_nfn": Case(catalog.get("sphereface_r_nfn"), plain(paper.sphereface_r_nfn)),
    "sphereface_r_sfn": Case(catalog.get("sphereface_r_sfn"), plain(paper.sphereface_r_sfn)),
    "sphereface_r_sfn, 40": Case(
        catalog.get("sphereface_r_sfn", m=1.2, norm=40.0, strength=0.5, weight=0.25),
        plain(paper.sphereface_r_sfn, m=1.2, s=40, t=0.5, lw=10),
    ),
    "cosface": Case(catalog.get("cosface"), plain(paper.cosface)),
    "arcface": Case(catalog.get("arcface"), plain(paper.arcface)),
    "arcface, released": Case(UNGUARDED_ARCFACE, plain(paper.unguarded_arcface)),
    "combined": Case(catalog.get("combined"), plain(paper.combined)),
    "combined, all three": Case(
        catalog.get("combined", m1=1.4, m2_rad=0.7, m3=0.25, scale=16.0),
        plain(paper.combined, m1=1.4, m2=0.7, m3=0.25, s=16),
    ),
    "combined, past 4π": Case(
        catalog.get("combined", m1=4.0, m2_rad=PI / 2, m3=1.0, scale=8.0),
        plain(paper.combined, m1=4, m2=PI / 2, m3=1, s=8),
    ),
    "modulating": Case(catalog.get("modulating"), plain(paper.modulating)),
    "modulating_bins": Case(catalog.get("modulating_bins"), plain(paper.modulating_bins)),
    "modulating_bins, uneven": Case(
        catalog.get("modulating_bins", margins=UNEVEN, scale=4.0), plain(paper.modulating_bins, m=UNEVEN, s=4)
    ),
    "am_lfs": Case(catalog.get("am_lfs"), plain(paper.am_lfs)),
    "am_lfs, uneven": Case(
        catalog.get("am_lfs", t=KNOTS, tau=SLOPES, scale=4.0), plain(paper.am_lfs, t=KNOTS, tau=SLOPES, s=4)
    ),
    "am_lfs_free": Case(catalog.get("am_lfs_free"), plain(paper.am_lfs_free)),
    "am_lfs_free, uneven": Case(
        catalog.get(
            "am_lfs_free",
            t_slopes=SLOPES,
            t_offsets=UNEVEN[:5],
            tau_slopes=SLOPES[::-1],
            tau_offsets=(-0.2, 0.1, -0.8, 0.3, 0.2),
            scale=4.0,
        ),
        plain(
            paper.am_lfs_free,
            t_slopes=SLOPES,
            t_offsets=UNEVEN[:5],
            tau_slopes=SLOPES[::-1],
            tau_offsets=(-0.2, 0.1, -0.8, 0.3, 0.2),
            s=4,
        ),
    ),
    "mv_am": Case(catalog.get("mv_am"), plain(paper.mv_am)),
    "mv_am, fixed": Case(catalog.get("mv_am", variant="fixed"), plain(paper.mv_am, variant="fixed")),
    "mv_arc": Case(catalog.get("mv_arc"), plain(paper.mv_arc)),
    "mv_arc, fixed": Case(catalog.get("mv_arc", variant="fixed"), plain(paper.mv_arc, variant="fixed")),
    "curricularface": Case(catalog.get("curricularface"), with_state(paper.curricularface, given={"t": "t"})),
    "npcface": Case(catalog.get("npcface"), plain(paper.npcface)),
    "npcface, all its own": Case(
        catalog.get("npcface", margin_rad=0.3, m0_rad=0.2, m1_rad=0.7, t=1.5, a=0.4, scale=16.0),
        plain(paper.npcface, m=0.3, m0=0.2, m1=0.7, t=1.5, a=0.4, s=16),
    ),
    "magface": Case(catalog.get("magface"), plain(paper.magface)),
    "adaface": Case(catalog.get("adaface"), with_state(paper.adaface, given=ADAFACE)),
    "adaface, h=3": Case(
        catalog.get("adaface", margin=0.6, h=3.0, scale=32.0),
        with_state(paper.adaface, given=ADAFACE, m=0.6, h=3, s=32),
    ),
    "elasticface_arc": Case(catalog.get("elasticface_arc"), elastic(paper.arcface, 0.5, 0.05)),
    "elasticface_arc_plus": Case(catalog.get("elasticface_arc_plus"), elastic(paper.arcface, 0.5, 0.0175, plus=True)),
    "elasticface_cos": Case(catalog.get("elasticface_cos"), elastic(paper.cosface, 0.35, 0.05)),
    "elasticface_cos_plus": Case(catalog.get("elasticface_cos_plus"), elastic(paper.cosface, 0.35, 0.02, plus=True)),
    "circle": Case(catalog.get("circle"), plain(paper.circle)),
    "li_arcface": Case(catalog.get("li_arcface"), plain(paper.li_arcface)),
    "x2_softmax": Case(catalog.get("x2_softmax"), plain(paper.x2_softmax)),
    "x2_softmax, moved": Case(
        catalog.get("x2_softmax", a=-0.5, h_rad=-0.3, k=0.9, scale=16.0),
        plain(paper.x2_softmax, a=-0.5, h=-0.3, k=0.9, s=16),
    ),
    "poly1": Case(catalog.get("poly1"), plain(paper.poly1)),
    "focal": Case(catalog.get("focal"), plain(paper.focal)),
    "focal, γ=.5": Case(catalog.get("focal", gamma=0.5, scale=4.0), plain(paper.focal, gamma=0.5, s=4)),
    "adaptiveface": Case(catalog.get("adaptiveface"), with_state(paper.adaptiveface, given={"margin_C": "margin_C"})),
    "adacos_fixed": Case(
        catalog.get("adacos_fixed"),
        lambda of, mode, _: paper.softmax(of, math.sqrt(2) * math.log(of.cos_NC.shape[1] - 1), mode),
        classes_at_least=3,
    ),
    "adacos_dynamic": Case(
        catalog.get("adacos_dynamic"), with_state(paper.softmax, given={"s": "value"}), classes_at_least=3
    ),
    "p2sgrad": Case(catalog.get("p2sgrad"), without_maps(paper.p2sgrad)),
    "p2sgrad × 30": Case(catalog.get("p2sgrad", weight=30.0), without_maps(paper.p2sgrad, weight=30)),
    "p2sgrad, update": Case(catalog.get("p2sgrad", weight=3.0, form="update"), without_maps(paper.p2sgrad, weight=3)),
    "sphereface2_c": Case(
        catalog.get("sphereface2_c"), with_state(paper.sphereface2, given={"bias": "bias"}, kind="c", m=0.4)
    ),
    "sphereface2_c, t=2.5": Case(
        catalog.get("sphereface2_c", alpha=0.8, scale=64.0, margin=0.5, t=2.5, lw=10.0),
        with_state(paper.sphereface2, given={"bias": "bias"}, kind="c", m=0.5, alpha=0.8, r=64, t=2.5, lw=10),
    ),
    "sphereface2_a": Case(
        catalog.get("sphereface2_a"), with_state(paper.sphereface2, given={"bias": "bias"}, kind="a", m=0.5)
    ),
    "sphereface2_m": Case(
        catalog.get("sphereface2_m"), with_state(paper.sphereface2, given={"bias": "bias"}, kind="m", m=1.7)
    ),
    "arcnegface": Case(catalog.get("arcnegface"), plain(paper.arcnegface)),
    "class_size": Case(
        catalog.get("class_size"),
        lambda of, mode, state: paper.arcface(of, state["margin_C"].detach()[of.y_N], gradient=mode),
    ),
    "uniface": Case(catalog.get("uniface"), with_state(paper.uniface, given={"bias": "threshold"})),
    "sface": Case(catalog.get("sface"), without_maps(paper.sface)),
    "subcenter_arcface": Case(catalog.get("subcenter_arcface"), plain(paper.arcface)),
}

ONE_MODE = {
    "softmax",
    "arcface, released",
    "poly1",
    "focal",
    "adaptiveface",
    "adacos_fixed",
    "adacos_dynamic",
    "p2sgrad",
    "sface",
}
"""Losses with no map to detach, one whose margin only the exact gradient teaches, one that only detached can be."""

BATCHES: dict[str, dict[str, Any]] = {
    "C=2": {"classes": 2, "dim": 3, "count": 5},
    "C=2, batch of 1": {"classes": 2, "dim": 3, "count": 1},
    "C=3, batch of 1": {"classes": 3, "dim": 2, "count": 1},
    "C=3, D=2": {"classes": 3, "dim": 2, "count": 4},
    "C=7": {"classes": 7, "dim": 5, "count": 9},
    "C=40, labels twice": {"classes": 40, "dim": 16, "count": 24},
    "C=7, close to their classes": {"classes": 7, "dim": 16, "count": 9, "closeness": 2.0},
}
EDGE = PI - 0.5
ANGLES = [
    *(1e-3, 0.1, 0.7, PI / 4, 1.3, PI / 2 - 1e-3, PI / 2 + 1e-3, 2.0, PI / 1.5 + 0.01, PI / 1.4 + 0.01),
    *(EDGE - 1e-6, EDGE + 1e-6, 2.9, 3.1, PI - 1e-3),
]
"""Below and above every edge: π/2 (MagFace), π − m (ArcFace), π/m (SphereFace, SphereFace-R)."""


def other_mode(spec: LossSpec) -> LossSpec | None:
    """The same composition under the other gradient mode, None where it is refused."""
    mode = "detached" if spec.gradient == "exact" else "exact"
    try:
        return LossSpec.model_validate({**spec.model_dump(), "gradient": mode})
    except ValidationError:
        return None


def in_both_modes() -> Iterator[Any]:
    for name, case in CASES.items():
        yield pytest.param(case, case.spec, id=f"{name} ({case.spec.gradient})")
        if (other := other_mode(case.spec)) is not None:
            yield pytest.param(case, other, id=f"{name} ({other.gradient})")


def built(spec: LossSpec, classes: int) -> Loss:
    loss = build(spec, num_classes=classes, class_counts=counts_of(classes)).double()
    loss.generator = torch.Generator().manual_seed(SEED)
    return loss


def assert_equal_to_the_paper(case: Case, spec: LossSpec, batch: Batch, **tolerances: float) -> None:
    loss = built(spec, len(batch[1]) // spec.centers)
    assert_equal(loss, lambda of, state: case.form(of, spec.gradient, state), batch, **tolerances)


def test_the_cases_cover_the_catalog() -> None:
    assert set(catalog.NAMES) <= set(CASES)
    assert {name.partition(",")[0].partition(" ×")[0] for name in CASES} == set(catalog.NAMES)


def test_only_losses_without_maps_refuse_the_other_mode() -> None:
    refused = {name for name, case in CASES.items() if other_mode(case.spec) is None}
    assert refused & {*catalog.NAMES, "arcface, released"} == ONE_MODE


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize(("case", "spec"), [*in_both_modes()])
def test_losses_equal_their_equations_on_random_batches(case: Case, spec: LossSpec, shape: str) -> None:
    if BATCHES[shape]["classes"] < case.classes_at_least:
        with pytest.raises(ValueError, match="num_classes >= 3"):
            built(spec, 2)
        return
    assert_equal_to_the_paper(case, spec, random_batch(**BATCHES[shape], centers=spec.centers))


@pytest.mark.parametrize(("case", "spec"), [*in_both_modes()])
def test_losses_equal_their_equations_at_every_angle(case: Case, spec: LossSpec) -> None:
    """θ + m > π for ArcFace and mθ > π for SphereFace are among the angles; so is each side of ArcFace's edge."""
    assert_equal_to_the_paper(case, spec, batch_at_angles(ANGLES, centers=spec.centers))


@pytest.mark.parametrize(("case", "spec"), [*in_both_modes()])
def test_losses_equal_their_equations_where_cosines_are_one_or_minus_one(case: Case, spec: LossSpec) -> None:
    """There dcos/dx = 0: whatever the map, only the other cosines move the embedding.

    Rounded cosines miss ±1 by a unit in the last place, which is 2e-8 radians: hence the tolerance.
    """
    assert_equal_to_the_paper(case, spec, batch_at_the_tips(centers=spec.centers), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("case", "spec"), [*in_both_modes()])
def test_losses_are_finite_in_eval_and_leave_their_state(case: Case, spec: LossSpec) -> None:
    loss = built(spec, 7).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    batch = random_batch(classes=7, dim=5, count=9, centers=spec.centers)
    assert torch.isfinite(loss(*batch)).all()
    torch.testing.assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)


def test_the_weight_multiplies_loss_and_gradient() -> None:
    x_ND, w_CD, label_N = random_batch(5, 4, 6)
    plain_spec = catalog.get("cosface")
    heavy_spec = LossSpec.model_validate({**plain_spec.model_dump(), "weight": 2.5})
    plain_N, heavy_N = (built(spec, 5)(x_ND, w_CD, label_N) for spec in (plain_spec, heavy_spec))
    torch.testing.assert_close(heavy_N, 2.5 * plain_N, rtol=1e-14, atol=0)
    grads = [torch.autograd.grad(loss_N.sum(), x_ND)[0] for loss_N in (plain_N, heavy_N)]
    torch.testing.assert_close(grads[1], 2.5 * grads[0], rtol=1e-12, atol=0)
