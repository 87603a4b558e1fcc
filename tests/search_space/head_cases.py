"""Losses and float32 batches that every implementation of the classification head is judged on, by float64.

Shapes: N batch, R rows of class weights.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import Loss, LossSpec, build, catalog, parts
from search_space.loss import NOT_CHUNKED

CLASSES = 23

CHUNKED = tuple(name for name in catalog.NAMES if not isinstance(catalog.get(name).objective, NOT_CHUNKED))
SPECS = {name: catalog.get(name) for name in CHUNKED} | {
    "arcface under feature norms": catalog.arcface().replace(scale=parts.FeatureNormScale()),
    "bins under feature norms": catalog.modulating_bins().replace(scale=parts.SoftNormScale()),
    "bins with hard negatives": catalog.mv_am().replace(
        target=catalog.modulating_bins().target, margin=parts.NoMargin()
    ),
    "curricular, detached": catalog.curricularface().replace(gradient="detached"),
    "curricular under adacos": catalog.curricularface().replace(scale=parts.AdaCosScale()),
    "npcface of three centers": catalog.npcface().replace(centers=3),
    "mv of three centers under adacos": catalog.mv_arc().replace(centers=3, scale=parts.AdaCosScale()),
    "p2sgrad of three centers": catalog.p2sgrad().replace(centers=3),
    "symbolic": LossSpec(
        target=parts.SymbolicTarget(f=["*", "c", 0.9]),
        negative=parts.SymbolicNegative(n=["*", "c", ["+", "c_y", 1.5]]),
    ),
}

SCALED = tuple(name for name in SPECS if isinstance(SPECS[name].scale, parts.ConstantScale))
BATCHES = 4
"""Errors are those of four batches together: at s = 512 nearly all of one batch's comes from the sample or two whose
targets are on a level with a negative, so that one batch alone compares luck."""


def built(spec: LossSpec, classes: int = CLASSES, seed: int = 0) -> Loss:
    loss = build(spec, num_classes=classes, class_counts=[1 + 7 * j for j in range(classes)])
    loss.generator = torch.Generator().manual_seed(seed)
    return loss


def float32_batch(spec: LossSpec, classes: int, count: int, scale: float, seed: int = 0) -> tuple[Tensor, ...]:
    """Target angles from near 0 to near π, labels that repeat; embeddings as long as the scale where it is the norm."""
    generator = torch.Generator().manual_seed(seed)
    w_RD = torch.randn(classes * spec.centers, 32, generator=generator)
    label_N = torch.randint(classes, (count,), generator=generator)
    closeness_N1 = torch.linspace(-2, 6, count)[:, None]
    x_ND = torch.randn(count, 32, generator=generator) + closeness_N1 * w_RD[label_N * spec.centers]
    is_norm = isinstance(spec.scale, parts.FeatureNormScale | parts.SoftNormScale)
    return (scale * F.normalize(x_ND) if is_norm else x_ND), w_RD, label_N


def with_gradients(loss_N: Tensor, x_ND: Tensor, w_RD: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad(loss_N.sum(), (x_ND, w_RD))
    return [loss_N.detach().double(), *(grad.double() for grad in grads)]


def at_scale(name: str, scale: float) -> LossSpec:
    """AdaCos, and what is scaled by norms, at the scale that it has."""
    spec = SPECS[name]
    return spec.replace(scale=parts.ConstantScale(value=scale)) if name in SCALED else spec


class Error(NamedTuple):
    """The norm of what is wrong with a result by our form and by the plain one, and that of the result itself."""

    ours: float
    plain: float
    size: float

    def is_at_most_twice_the_plain(self, dtype: torch.dtype = torch.float32) -> bool:
        """Beyond the rounding of the result itself."""
        return self.ours <= 2 * self.plain + torch.finfo(dtype).eps * self.size


def answers(
    spec: LossSpec,
    classes: int,
    count: int,
    scale: float,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **how: Any,
) -> list[list[Tensor]]:
    """The loss and its gradients at x and w: in float64, by the plain form, by `Loss.chunked(**how)`."""
    x_ND, w_RD, label_N = (each.to(device) for each in float32_batch(spec, classes, count, scale, seed))
    x_ND, w_RD = (each.to(dtype).requires_grad_() for each in (x_ND, w_RD))
    wide = [each.detach().double().requires_grad_() for each in (x_ND, w_RD)]
    truth, plain, ours = (built(spec, classes).to(device) for _ in range(3))
    return [
        with_gradients(truth(*wide, label_N), *wide),
        with_gradients(plain(x_ND, w_RD, label_N), x_ND, w_RD),
        with_gradients(ours.chunked(x_ND, w_RD, label_N, **how), x_ND, w_RD),
    ]


def errors(
    spec: LossSpec, classes: int, count: int, scale: float, *, batches: int = BATCHES, **how: Any
) -> list[Error]:
    """Of the loss and its gradients at x and w, by `answers(**how)`, over all batches together."""
    of_batches = [answers(spec, classes, count, scale, seed, **how) for seed in range(batches)]
    found = []
    for forms in zip(*(zip(*each, strict=True) for each in of_batches), strict=True):
        true, plain, ours = (torch.cat([batch[i].flatten() for batch in forms]) for i in range(3))
        found.append(Error(float((ours - true).norm()), float((plain - true).norm()), float(true.norm())))
    return found
