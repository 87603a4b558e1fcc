"""Batches in float64 that closed forms and losses are compared on, and the comparison.

Shapes: N batch, C classes, D embedding, K centers a class, R = C·K rows of weights. Embeddings and weights are raw.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from search_space import Loss
from tests.search_space.closed_forms import Geometry, geometry

PI = math.pi

Batch = tuple[Tensor, Tensor, Tensor]
"""x_ND, w_RD and label_N; the first two are leaves that ask for a gradient."""

State = dict[str, Tensor]
"""What a loss learns or tracks, by the last word of its name: parameters and buffers."""

Form = Callable[[Geometry, State], Tensor]
"""A closed form of the batch's geometry and the loss's state."""


def random_batch(
    classes: int, dim: int, count: int, *, centers: int = 1, closeness: float = 0.0, seed: int = 0
) -> Batch:
    """Embeddings of norms from 1 to 200, `closeness` drawing them to their class weights; labels repeat."""
    generator = torch.Generator().manual_seed(seed)
    w_RD = torch.randn(classes * centers, dim, dtype=torch.float64, generator=generator)
    label_N = torch.randint(max(2, classes // 2), (count,), generator=generator)
    x_ND = torch.randn(count, dim, dtype=torch.float64, generator=generator) + closeness * w_RD[label_N * centers]
    norm_N1 = 200 ** torch.rand(count, 1, dtype=torch.float64, generator=generator)
    return (x_ND / x_ND.norm(dim=1, keepdim=True) * norm_N1).requires_grad_(), (w_RD / 10).requires_grad_(), label_N


def batch_at_angles(thetas: Sequence[float], *, classes: int = 5, dim: int = 4, centers: int = 1) -> Batch:
    """Embeddings at the given angles (radians) to the first center of their class, of norms below, in and above
    MagFace's range."""
    generator = torch.Generator().manual_seed(len(thetas))
    w_RD = torch.randn(classes * centers, dim, dtype=torch.float64, generator=generator)
    label_N = torch.arange(len(thetas)) % classes
    axis_ND = w_RD[label_N * centers] / w_RD[label_N * centers].norm(dim=1, keepdim=True)
    side_ND = torch.randn(len(thetas), dim, dtype=torch.float64, generator=generator)
    side_ND -= (side_ND * axis_ND).sum(1, keepdim=True) * axis_ND
    side_ND /= side_ND.norm(dim=1, keepdim=True)
    theta_N1 = torch.tensor(thetas, dtype=torch.float64)[:, None]
    norm_N1 = torch.tensor([0.5, 20, 60, 109, 150], dtype=torch.float64).repeat(len(thetas))[: len(thetas), None]
    x_ND = norm_N1 * (theta_N1.cos() * axis_ND + theta_N1.sin() * side_ND)
    return x_ND.requires_grad_(), w_RD.requires_grad_(), label_N


def batch_at_the_tips(*, centers: int = 1) -> Batch:
    """Every way for a cosine to be 1 or −1 but for rounding: the target's, and those of two opposite negatives.

    Classes 1 and 2 point in opposite directions and label nothing.
    """
    generator = torch.Generator().manual_seed(5)
    w_RD = torch.randn(5 * centers, 4, dtype=torch.float64, generator=generator)
    w_RD[2 * centers] = -3 * w_RD[centers]
    label_N = torch.tensor([0, 3, 0, 3, 4])
    row_N = torch.tensor([0, 3, 0, 1, 2]) * centers
    sign_N1 = torch.tensor([1.0, -1, -1, 1, 1], dtype=torch.float64)[:, None]
    norm_N1 = torch.tensor([7.0, 30, 80, 120, 12], dtype=torch.float64)[:, None]
    x_ND = sign_N1 * norm_N1 * w_RD[row_N] / w_RD[row_N].norm(dim=1, keepdim=True)
    return x_ND.requires_grad_(), w_RD.requires_grad_(), label_N


def state_of(loss: Loss) -> State:
    """A copy in float64, each a leaf that asks for a gradient."""
    held = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
    return {name.rpartition(".")[2]: value.detach().double().clone().requires_grad_() for name, value in held.items()}


def assert_equal(
    loss: Loss,
    form: Form,
    batch: Batch,
    *,
    rtol: float = 1e-9,
    atol: float = 1e-11,
) -> None:
    """Value and gradients at x, w and all that the loss learns; its state as the loss's own call leaves it.

    Samples are weighed unequally, so that the gradient of each counts by itself.
    """
    x_ND, w_RD, label_N = batch
    loss_N = loss(x_ND, w_RD, label_N)
    state = state_of(loss)
    wanted_N = form(geometry(x_ND, w_RD, label_N, centers=loss.spec.centers), state)
    assert loss_N.dtype == torch.float64
    torch.testing.assert_close(loss_N, wanted_N, rtol=rtol, atol=atol)

    weight_N = 1 + torch.arange(len(label_N), dtype=torch.float64)
    learned = dict(loss.named_parameters())
    wanted_leaves = [x_ND, w_RD, *(state[name.rpartition(".")[2]] for name in learned)]
    grads = torch.autograd.grad((weight_N * loss_N).sum(), [x_ND, w_RD, *learned.values()])
    wanted_grads = torch.autograd.grad((weight_N * wanted_N).sum(), wanted_leaves)
    for grad, wanted in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=10 * rtol, atol=10 * atol)
