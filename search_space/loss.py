"""`build` composes the parts of a `LossSpec` into a module; `target_logit` draws its target map.

Every target-only margin loss is  softplus(lse_neg − T(cos_y)):  lse_neg = log Σ_{j≠y} exp(s·cos_j),  T = s·f(cos_y).
Maps of the negatives change lse_neg; objectives other than cross entropy change what is made of the gap.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space import functional as fn
from search_space import parts
from search_space.chunked import ChunkedNegatives, GradientDtype, Memory
from search_space.chunked_squares import ChunkedSquares
from search_space.distributed import gathered
from search_space.head_sgd import HeadSGD
from search_space.maps import Batch, DenseNegatives, NegativeMap, Negatives, column, make_negative_map, target_map
from search_space.objectives import Logits, make_objective, softmax_objective
from search_space.providers import DynamicAdaCos, LearnedMargins, margin_provider, scale_provider
from search_space.spec import COSINE_OBJECTIVES, LossSpec
from search_space.step_buffers import Buffers
from search_space.triton_head import TritonNegatives

NOT_CHUNKED = (parts.SphereFace2, parts.SFace, parts.UniFace)
"""Objectives that are no softmax of the logits, P2SGrad's excepted."""

NOMINAL_NORM = 20.0
"""‖x‖ where a loss is drawn or probed without embeddings: the middle of AdaFace's range, as it starts."""

_CLOSEST_RAD = 1e-3
"""Class weights closer than this count as this far apart, and no longer repel each other (θ^−2 has no bound)."""


class Loss(nn.Module):
    """A loss over raw embeddings and raw class weights; one float32 value a sample (float64 for float64 input).

    What it learns or tracks (AdaCos's scale, running averages, margins, a bias) is in `state_dict`; it moves in
    training mode, before it is used, and under data parallelism follows the global batch. Random margins are drawn in
    training mode from `generator`, from torch's global one when that is None.
    """

    def __init__(
        self, spec: LossSpec, num_classes: int, *, class_counts: Sequence[int] | None, classes_seen: int
    ) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.rows = classes_seen * spec.centers
        self.generator: torch.Generator | None = None
        self.margin = margin_provider(spec.margin, spec.negative, num_classes=num_classes, class_counts=class_counts)
        self.scale = scale_provider(spec.scale, num_classes=num_classes)
        self.target = partial(target_map, spec.target)
        self.negative = make_negative_map(spec.negative)
        self.objective = make_objective(spec, num_classes=num_classes, classes_seen=classes_seen)

    def forward(self, x_ND: Tensor, w_RD: Tensor, label_N: Tensor, *, class_N: Tensor | None = None) -> Tensor:
        """Loss of each sample. `x_ND` and `w_RD` are normalised here; `label_N` int64 counts classes of `w_RD`.

        With several centers, row j·K + k is center k of class j. `class_N` names the classes of the labels where
        `w_RD` holds a sample of all classes. Raises ValueError when `w_RD` has another number of rows than the loss was
        built for.
        """
        self._refuse_misfit(w_RD)
        with torch.autocast(device_type=x_ND.device.type, enabled=False):
            cos_NC = fn.nearest_center(fn.cosines(x_ND, w_RD), self.spec.centers)
            loss_N = self.from_cosines(cos_NC, label_N, norm_N=fn.norms(x_ND), class_N=class_N)
            return loss_N + self._energy(w_RD, label_N, class_N)

    def chunked(
        self,
        x_ND: Tensor,
        w_RD: Tensor,
        label_N: Tensor,
        *,
        class_N: Tensor | None = None,
        memory: Memory = "store",
        gradient_dtype: GradientDtype = "float32",
        chunk_rows: int | None = None,
        buffers: Buffers | None = None,
        fused_step: HeadSGD | None = None,
        kernels: bool = False,
    ) -> Tensor:
        """What `forward` gives, without a matrix of all cosines, for a softmax of the logits and for P2SGrad.

        `memory` says whether backward finds exponentials N×C stored in place of the cosines, or computes them again;
        `gradient_dtype` of bfloat16 rounds the factors of the gradients' products; `buffers` keeps what this batch
        allocates for the next; `fused_step` updates its class weights in backward, and leaves them no gradient;
        `kernels` are Triton's, for the losses that `triton_head` supports. Raises ValueError for the other objectives,
        and where `forward` does.
        """
        self._refuse_misfit(w_RD)
        if isinstance(self.spec.objective, NOT_CHUNKED):
            raise ValueError(f"objective '{self.spec.objective.kind}' is no softmax of the logits and has no chunks")
        with torch.autocast(device_type=x_ND.device.type, enabled=False):
            unit_ND, w_RD = F.normalize(x_ND.to(fn.wide(x_ND, w_RD))).contiguous(), w_RD.contiguous()
            negatives = negatives_of(self.spec, kernels=kernels)(
                unit_ND,
                w_RD,
                label_N,
                centers=self.spec.centers,
                memory=memory,
                gradient_dtype=gradient_dtype,
                chunk_rows=chunk_rows,
                buffers=buffers,
                fused_step=fused_step,
            )
            cos_y_N = negatives.targets(unit_ND, w_RD)
            loss_N = self.from_negatives(negatives, cos_y_N, label_N, fn.norms(x_ND), class_N)
            return loss_N + self._energy(w_RD, label_N, class_N)

    def from_negatives(
        self,
        negatives: ChunkedNegatives,
        cos_y_N: Tensor,
        label_N: Tensor,
        norm_N: Tensor,
        class_N: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample, given its target's cosine and all that is asked of its negatives.

        All but the hyperspherical energy, which is of the class weights.
        """
        batch = self._batch(negatives, cos_y_N, label_N, norm_N, class_N)
        if isinstance(negatives, ChunkedSquares):
            return self.spec.weight * negatives.squared_error(cos_y_N) + self._penalty(batch)
        scale = self.scale(batch)
        target_N, negative = self._mapped(batch, scale)
        changes = not isinstance(self.spec.negative, parts.IdentityNegative)
        gap_N = negatives.gap(cos_y_N, target_N, scale, negative if changes else None)
        return self.spec.weight * softmax_objective(self.spec.objective, gap_N) + self._penalty(batch)

    def from_cosines(
        self, cos_NC: Tensor, label_N: Tensor, *, norm_N: Tensor | None = None, class_N: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample, given its cosines and embedding norms (`NOMINAL_NORM` by default).

        All but the hyperspherical energy, which is of the class weights.
        """
        of, batch = self._dense(cos_NC, label_N, norm_N, class_N)
        scale = self.scale(batch)
        loss_N = self.objective(of, batch, scale, self._logits)
        return self.spec.weight * loss_N + self._penalty(batch)

    def logits(self, cos_NC: Tensor, label_N: Tensor, *, norm_N: Tensor | None = None) -> Logits:
        """The target's and the negatives' logits. Raises ValueError for an objective on bare cosines."""
        if isinstance(self.spec.objective, COSINE_OBJECTIVES):
            raise ValueError(f"objective '{self.spec.objective.kind}' works on bare cosines and has no logits")
        of, batch = self._dense(cos_NC, label_N, norm_N, None)
        return self._logits(of, batch, self.scale(batch))

    def tracked(self) -> dict[str, float]:
        """The single numbers that the loss tracks or learns, by name, such as AdaCos's scale."""
        state = self.state_dict()
        return {name.removesuffix(".value"): float(value) for name, value in state.items() if value.ndim == 0}

    def diagnose(self) -> str | None:
        """A sentence when the loss's own state has diverged, else None."""
        return self.scale.diagnose() if isinstance(self.scale, DynamicAdaCos) else None

    def _refuse_misfit(self, w_RD: Tensor) -> None:
        if len(w_RD) != self.rows:
            raise ValueError(
                f"the loss was built for num_classes={self.num_classes} and needs {self.rows} class weights, but got "
                f"{len(w_RD)}"
            )

    def _dense(
        self, cos_NC: Tensor, label_N: Tensor, norm_N: Tensor | None, class_N: Tensor | None
    ) -> tuple[DenseNegatives, Batch]:
        of = DenseNegatives(cos_NC, label_N)
        norm_N = cos_NC.new_full((len(cos_NC),), NOMINAL_NORM) if norm_N is None else norm_N
        return of, self._batch(of, fn.gather_target(cos_NC, label_N), label_N, norm_N, class_N)

    def _batch(
        self, negatives: Negatives, cos_y_N: Tensor, label_N: Tensor, norm_N: Tensor, class_N: Tensor | None
    ) -> Batch:
        return Batch(
            negatives=negatives,
            cos_y_N=cos_y_N,
            class_N=label_N if class_N is None else class_N,
            norm_N=norm_N,
            training=self.training,
            generator=self.generator,
        )

    def _logits(self, of: DenseNegatives, batch: Batch, scale: float | Tensor) -> Logits:
        target_N, negative = self._mapped(batch, scale)
        return Logits(target_N=target_N, negative_NC=column(scale) * negative(of.cos_NC), label_N=of.label_N)

    def _mapped(self, batch: Batch, scale: float | Tensor) -> tuple[Tensor, NegativeMap]:
        """T, and the map of the negatives, which holds nothing that has a gradient."""
        gradient, margins = self.spec.gradient, self.margin(batch)
        f_N = self.target(batch, margins, scale)
        negative = self.negative(batch, f_N, margins)
        target_N = scale * fn.straight_through(batch.cos_y_N, f_N, gradient)
        return target_N, partial(fn.mapped_through, negative, gradient)

    def _energy(self, w_RD: Tensor, label_N: Tensor, class_N: Tensor | None) -> Tensor | float:
        regularizer = self.spec.regularizer
        if not isinstance(regularizer, parts.EnergyRegularizer):
            return 0.0
        one_sample_for_all = self.training and class_N is None
        present = gathered(label_N) if one_sample_for_all else label_N
        return regularizer.strength * hyperspherical_energy(w_RD, present)

    def _penalty(self, batch: Batch) -> Tensor | float:
        regularizer, scale = self.spec.regularizer, self.spec.scale
        penalty: Tensor | float = 0.0
        if isinstance(regularizer, parts.NormRegularizer):
            a_N = batch.norm_N.clamp(regularizer.lower_norm, regularizer.upper_norm)
            penalty = regularizer.strength * (a_N / regularizer.upper_norm**2 + 1 / a_N)
        if isinstance(regularizer, parts.MarginRegularizer) and isinstance(self.margin, LearnedMargins):
            penalty = regularizer.strength * (1 - self.margin.projected_C().mean())
        if isinstance(scale, parts.SoftNormScale):
            penalty = penalty + scale.strength * (batch.norm_N - scale.norm).abs()
        return penalty


def negatives_of(spec: LossSpec, *, kernels: bool = False) -> type[ChunkedNegatives]:
    """How the negatives of a loss are walked."""
    if isinstance(spec.objective, parts.SquaredError):
        return ChunkedSquares
    return TritonNegatives if kernels else ChunkedNegatives


def hyperspherical_energy(w_CD: Tensor, label_N: Tensor) -> Tensor:
    """Mean over the pairs of classes among the labels of θ_ij^−2, 0 for a single class (SphereFace+)."""
    w_ND = w_CD[label_N]
    energy_NN = fn.angle(fn.cosines(w_ND, w_ND)).clamp_min(_CLOSEST_RAD) ** -2
    repeats_N = (label_N[:, None] == label_N).tril(-1).any(1)
    is_pair_NN = (~(repeats_N[:, None] | repeats_N)).triu(1)
    return torch.where(is_pair_NN, energy_NN, 0.0).sum() / is_pair_NN.sum().clamp_min(1)


def carries_over(name: str, old: LossSpec, new: LossSpec) -> bool:
    """Whether the state of this name means the same under both: a bias belongs to one kind of objective and scale."""
    if not name.startswith("objective."):
        return True
    kinds = [(spec.objective.kind, getattr(spec.objective, "variant", None), spec.scale) for spec in (old, new)]
    return kinds[0] == kinds[1]


def target_logit(spec: LossSpec, cos_N: Tensor, *, num_classes: int) -> Tensor:
    """T(cos_y) of each target cosine with every negative at 90°, differentiable as the loss is, its state as it starts.

    Classes have as many images as `NOMINAL_NORM`. Raises ValueError for an objective on bare cosines (P2SGrad, SFace,
    SphereFace2).
    """
    loss = build(spec, num_classes=num_classes, class_counts=[int(NOMINAL_NORM)] * num_classes)
    cos_NC = torch.cat([cos_N[:, None], cos_N.new_zeros(len(cos_N), num_classes - 1)], dim=1)
    label_N = torch.zeros(len(cos_N), dtype=torch.long, device=cos_N.device)
    return loss.eval().to(cos_N.device).logits(cos_NC, label_N).target_N


def build(
    spec: LossSpec, *, num_classes: int, class_counts: Sequence[int] | None = None, classes_seen: int | None = None
) -> Loss:
    """The module that computes `spec` over `num_classes` classes.

    `class_counts` gives the training images of each class, which margin 'class_size' needs. `classes_seen` is the
    number of classes in each call where that is a sample of them (all by default).

    Raises ValueError for fewer than 2 classes, fewer than 3 under AdaCos, missing class counts.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but got num_classes={num_classes}")
    seen = num_classes if classes_seen is None else classes_seen
    if not 2 <= seen <= num_classes:
        raise ValueError(f"classes_seen must lie in [2, num_classes={num_classes}], but got classes_seen={seen}")
    return Loss(spec, num_classes, class_counts=class_counts, classes_seen=seen)
