"""What a loss shows before anything is trained: is it finite, does it pull the right way, is it new?

Shapes: N samples, R classes seen, D embedding, K rows of a sketch. A loss is built for all classes of the search and
called on a sample of R of them, so that AdaCos's scale or SphereFace2's bias are those of training and the cost is
not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space import parts
from search_space.frozen import FrozenModel
from search_space.loss import Loss, build
from search_space.spec import LossSpec

RELATIVE_TOLERANCE = 1e-6
"""Gradients this near are the same: above float64's rounding, below what float32 training could tell apart."""

_SEEN_CLASSES = 16
_STEPS = 100
_NEGATIVES = (-1.0, -0.4, 0.0, 0.4, 1.0)
_NORMS = (1.0, 20.0, 120.0)
_BATCHES, _BATCH_SIZE, _DIM = 4, 1024, 8
_SKETCHES = 4
_MOST_CENTERS = 20
_LOWEST_NORM, _HIGHEST_NORM = 0.01, 1100.0

_ANY_SLOPE: Mapping[str, tuple[type[FrozenModel], ...]] = {
    "∂L/∂cos_y > 0": (parts.PiecewiseTarget, parts.FreePiecewiseTarget, parts.SymbolicTarget, parts.FreePiecewiseTau),
    "∂L/∂cos_j < 0": (parts.SymbolicNegative, parts.FreePiecewiseTau),
}
"""A wrong sign, and the parts that nothing but their values keeps from it: what else has it has it by design."""

_ANY_SHAPE = (
    parts.ModulatingBinsTarget,
    parts.PiecewiseTarget,
    parts.FreePiecewiseTarget,
    parts.SymbolicTarget,
    parts.SymbolicNegative,
    parts.PiecewiseTau,
    parts.FreePiecewiseTau,
)
"""Parts of which two may differ in one place alone, such as a bin of the probability that no probe falls into."""


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """A loss's gradients on the fixed probes: their common direction and length, and the loss's state after them.

    `direction` holds, for each batch, the gradients of embeddings, class weights and whatever the loss learns, divided
    by `length`; where there are many numbers, K fixed sums of them in their place. `shapes` holds the loss's parts that
    may take any shape.
    """

    direction: tuple[npt.NDArray[np.float64], ...]
    length: float
    state: Mapping[str, npt.NDArray[np.float64]]
    shapes: tuple[FrozenModel, ...]

    def parallel_to(self, other: "Gradients") -> bool:
        """Whether one is the other times a positive number, so that the two differ in the learning rate alone."""
        return len(self.direction) == len(other.direction) and all(map(_close, self.direction, other.direction))

    def same_as(self, other: "Gradients") -> bool:
        """Whether the probes cannot tell the two apart."""
        return (
            abs(self.length - other.length) <= RELATIVE_TOLERANCE * self.length
            and self.parallel_to(other)
            and self.state.keys() == other.state.keys()
            and all(_close(value, other.state[name]) for name, value in self.state.items())
        )

    def trains_as(self, other: "Gradients", *, fresh: bool) -> bool:
        """Whether training cannot tell the two apart either, `fresh` saying that it starts with the loss.

        Not assured where they differ in a part that may take any shape, nor where they go on from a state that they
        may take over differently.
        """
        return self.same_as(other) and self.shapes == other.shapes and (fresh or not self.state)


def _close(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> bool:
    """Norm-wise: rounding moves the small numbers of an array by as much as the large ones."""
    if a.shape != b.shape:
        return False
    return bool(np.linalg.norm(a - b) <= RELATIVE_TOLERANCE * max(np.linalg.norm(a), np.linalg.norm(b)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found: `warn` and `reject` have a `reason`; `gradients` are those of a loss that is finite."""

    verdict: Literal["pass", "warn", "reject"]
    reason: str = ""
    gradients: Gradients | None = None


def examine(spec: LossSpec, *, num_classes: int, class_counts: Sequence[int]) -> Examination:
    """Examine a loss on a grid of cosines with ±1 among them, and on the probes that tell whether it is new.

    It is rejected when it cannot be built, or when its value or gradient is not finite in float32 or float64. Where a
    target nearer to its class, or a negative nearer, has the wrong effect (∂L/∂cos_y > 0, ∂L/∂cos_j < 0), a loss with a
    part free to cause it is rejected and any other gets a warning: P2SGrad and CurricularFace, for two, do so by
    design.

    Raises ValueError when `class_counts` does not give the images of each of the `num_classes` classes.
    """
    classes_R = _seen_classes(num_classes, class_counts)
    for dtype in (torch.float32, torch.float64):
        try:
            loss = _built(spec, num_classes, class_counts, dtype)
        except (ValueError, ArithmeticError) as error:
            return Examination(verdict="reject", reason=f"it cannot be built: {error}")
        response = _on_grid(loss, classes_R, dtype)
        flaw = _not_finite(response)
        if flaw is not None:
            return Examination(verdict="reject", reason=flaw)
    found = gradients(spec, num_classes=num_classes, class_counts=class_counts)
    wrong = _wrong_signs(response)
    if not wrong:
        return Examination(verdict="pass", gradients=found)
    free = [sign for sign in wrong if any(isinstance(part, _ANY_SLOPE[sign]) for _, part in spec)]
    first = next(iter(free or wrong))
    reason = f"{first} at {wrong[first]}"
    if free:
        return Examination(verdict="reject", reason=reason, gradients=found)
    return Examination(verdict="warn", reason=f"{reason}, by its design", gradients=found)


def gradients(spec: LossSpec, *, num_classes: int, class_counts: Sequence[int]) -> Gradients:
    """The loss's gradients over a short fixed sequence of batches in training mode, in float64.

    In the sequence the targets come closer, as they do in training, so that what follows the batches moves.
    """
    classes_R = _seen_classes(num_classes, class_counts)
    loss = _built(spec, num_classes, class_counts, torch.float64)
    weights, batches = _probes(len(classes_R))
    w_RD = weights[:, : spec.centers].reshape(-1, _DIM).requires_grad_()
    blocks = []
    for x_ND, label_N in batches:
        leaves = [x_ND.clone().requires_grad_(), w_RD, *loss.parameters()]
        total = loss(leaves[0], w_RD, label_N, class_N=classes_R[label_N]).sum()
        grad_x_ND, grad_w_RD, *learned = torch.autograd.grad(total, leaves, materialize_grads=True)
        blocks += [_sketch(grad_x_ND), grad_w_RD.numpy(), *map(_sketch, learned)]
    length = float(np.sqrt(sum(np.square(block).sum() for block in blocks)))
    return Gradients(
        direction=tuple(block / max(length, np.finfo(np.float64).tiny) for block in blocks),
        length=length,
        state={name: _sketch(value) for name, value in loss.state_dict().items()},
        shapes=tuple(part for _, part in spec if isinstance(part, _ANY_SHAPE)),
    )


def _built(spec: LossSpec, num_classes: int, class_counts: Sequence[int], dtype: torch.dtype) -> Loss:
    """The loss in training mode, its random margins from a fixed generator."""
    seen = min(num_classes, _SEEN_CLASSES)
    loss = build(spec, num_classes=num_classes, class_counts=class_counts, classes_seen=seen).to(dtype).train()
    loss.generator = torch.Generator().manual_seed(0)
    return loss


def _seen_classes(num_classes: int, class_counts: Sequence[int]) -> Tensor:
    """Up to R classes, from the smallest to the largest: margins by class size differ as they do in training."""
    if len(class_counts) != num_classes:
        raise ValueError(f"class_counts must hold num_classes={num_classes} numbers, but got {len(class_counts)}")
    by_size_C = torch.as_tensor(class_counts).argsort(stable=True)
    return by_size_C[torch.linspace(0, num_classes - 1, min(num_classes, _SEEN_CLASSES)).long()]


def _sketch(value: Tensor) -> npt.NDArray[np.float64]:
    """K fixed sums over the first dimension, of which each row has its own share: enough to tell two values apart."""
    rows = value.detach().double().reshape(len(value) if value.ndim else 1, -1)
    share_KN = torch.outer(torch.arange(1.0, _SKETCHES + 1), torch.arange(1.0, len(rows) + 1)).double().cos()
    sums: npt.NDArray[np.float64] = (share_KN @ rows).numpy()
    return sums


@cache
def _probes(seen: int) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    """Class weights R×centers×D, and batches of embeddings and labels.

    Target cosines cover [−1, 1] without gaps, so that no piece of a piecewise map goes unseen. Norms cover all bounds
    that a spec sets them, each batch a range of its own: beside the large gradients of small norms, or those of large
    ones where the norm is the scale, a regularizer's would be lost.
    """
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, dtype=torch.float64, generator=generator)
    uniform = partial(torch.rand, dtype=torch.float64, generator=generator)
    weights = normal(seen, _MOST_CENTERS, _DIM)
    label_N = torch.arange(_BATCH_SIZE) % seen
    axis_ND = F.normalize(weights[label_N, 0])

    def places() -> Tensor:
        place_N = (torch.arange(_BATCH_SIZE) + uniform(_BATCH_SIZE)) / _BATCH_SIZE
        return place_N[torch.randperm(_BATCH_SIZE, generator=generator), None]

    batches = []
    for batch in range(_BATCHES):
        cos_N1 = 1 - 2 * places() ** (batch + 1)
        side_ND = normal(_BATCH_SIZE, _DIM)
        side_ND -= (side_ND * axis_ND).sum(1, keepdim=True) * axis_ND
        norm_N1 = _LOWEST_NORM * (_HIGHEST_NORM / _LOWEST_NORM) ** ((batch + places()) / _BATCHES)
        sine_N1 = (1 - cos_N1.square()).sqrt()
        x_ND = norm_N1 * (cos_N1 * axis_ND + sine_N1 * F.normalize(side_ND))
        batches.append((x_ND, label_N))
    return weights, tuple(batches)


class _Response(NamedTuple):
    """A loss on the grid: cosines, target columns and norms, its values, and its gradients with respect to them."""

    cos_NR: Tensor
    label_N: Tensor
    norm_N: Tensor
    loss_N: Tensor
    grad_NR: Tensor
    other_grads: tuple[Tensor, ...]


@cache
def _grid(seen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines N×R, target columns and norms: targets × kinds of negatives × norms, in float64."""
    target_T = torch.arange(-_STEPS, _STEPS + 1, dtype=torch.float64) / _STEPS
    levels_LR = torch.tensor(_NEGATIVES, dtype=torch.float64)[:, None].expand(-1, seen)
    negatives_PR = torch.cat([levels_LR, torch.linspace(-1, 1, seen, dtype=torch.float64)[None]])
    norm_M = torch.tensor(_NORMS, dtype=torch.float64)
    sizes = (len(target_T), len(negatives_PR), len(norm_M))
    target_N, kind_N, norm_N = torch.cartesian_prod(*map(torch.arange, sizes)).unbind(1)
    label_N = torch.arange(len(target_N)) % seen
    cos_NR = negatives_PR[kind_N].scatter(1, label_N[:, None], target_T[target_N, None])
    return cos_NR, label_N, norm_M[norm_N]


def _on_grid(loss: Loss, classes_R: Tensor, dtype: torch.dtype) -> _Response:
    cos_NR, label_N, norm_N = _grid(len(classes_R))
    cos_NR, norm_N = cos_NR.to(dtype).requires_grad_(), norm_N.to(dtype).requires_grad_()
    loss_N = loss.from_cosines(cos_NR, label_N, norm_N=norm_N, class_N=classes_R[label_N])
    leaves = [cos_NR, norm_N, *loss.parameters()]
    grad_NR, *others = torch.autograd.grad(loss_N.sum(), leaves, materialize_grads=True)
    return _Response(cos_NR.detach(), label_N, norm_N.detach(), loss_N.detach(), grad_NR, tuple(others))


def _not_finite(at: _Response) -> str | None:
    """Where the value or a gradient is not finite, in words."""
    dtype = str(at.loss_N.dtype).removeprefix("torch.")
    for what, finite_N in (("value", at.loss_N.isfinite()), ("gradient", at.grad_NR.isfinite().all(1))):
        if not finite_N.all():
            return f"its {what} is not finite in {dtype} at {_place(at, int(finite_N.int().argmin()))}"
    if not all(grad.isfinite().all() for grad in at.other_grads):
        return f"the gradient of the norm or of what it learns is not finite in {dtype}"
    return None


def _wrong_signs(at: _Response) -> dict[str, str]:
    """Whether the loss falls as the target moves away, or as a negative comes nearer, and where: the worst place."""
    label_N1 = at.label_N[:, None]
    size_N = at.grad_NR.abs().amax(1).clamp_min(torch.finfo(at.grad_NR.dtype).tiny)
    pull_N = at.grad_NR.gather(1, label_N1).squeeze(1) / size_N
    push_N = at.grad_NR.scatter(1, label_N1, 0.0).amin(1) / size_N
    wrongs = zip(_ANY_SLOPE, (pull_N, -push_N), strict=True)
    return {sign: _place(at, int(by_N.argmax())) for sign, by_N in wrongs if by_N.max() > RELATIVE_TOLERANCE}


def _place(at: _Response, index: int) -> str:
    label, cosines = int(at.label_N[index]), at.cos_NR[index].tolist()
    target, low, high = cosines.pop(label), min(cosines), max(cosines)
    negatives = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"cos_y = {target:.3g}, cos_j = {negatives}, ‖x‖ = {float(at.norm_N[index]):g}"
